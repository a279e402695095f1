"""Rules of the house for child processes: a child never outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Ask the kernel (Linux) for ``number`` as soon as the parent has died.

    Linux sends it also when only the *thread* that started this process ends, so a receiver that
    can run a handler checks ``os.getppid`` first. Elsewhere this does nothing; end of file on the
    control pipe is then the only watch.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
