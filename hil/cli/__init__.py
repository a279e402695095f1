"""Command line of ``hil``. One module per command; heavy imports happen inside the commands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 pass, 1 fail, 2 usage or scenario error, 3 rig error (and any error nobody foresaw),
    4 inconclusive.
    """
    from hil.cli.app import run_app

    return run_app(list(sys.argv[1:] if arguments is None else arguments))


def script() -> None:
    """Entry point of the installed command.

    Until a run listens for them, Ctrl-C and SIGTERM end the process at once with exit code 3.
    Python's own way would be 130 or a death by signal, depending on the line that it hits.
    """
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    raise SystemExit(main())


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(3)
