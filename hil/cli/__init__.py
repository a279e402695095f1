"""Command line of ``hil``. One module per command; heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 pass, 1 fail, 2 usage or scenario error, 3 rig error (and any error nobody foresaw),
    4 inconclusive.
    """
    try:
        from hil.cli.app import run_app

        return run_app(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # while modules are read
        sys.stderr.write("interrupted\n")
        return 3


def script() -> None:
    """Entry point of the installed command."""
    raise SystemExit(main())
