"""Ctrl-C and SIGTERM: the first one ends a run in good order, the second one at once.

The first signal only sets a flag; drivers look at it between batches, finish what is under way and
the run closes its trace. The second one ends the process without closing anything: what the ledger
of the live trace counts can be recovered, and child processes die with their parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

from hil.errors import RigError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_FIRST: Final = (
    "\n{name}: {what} ends after what is under way; once more ends it at once, unclosed\n"
)
_SECOND: Final = (
    "\nended at once; what was committed is in the live trace: "
    "`hil trace recover DIR/trace.part.h5`, or go on with `hil run ... --out DIR --resume`\n"
)
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Interrupt:
    """Whether somebody asked this run to end.

    Args:
        second: what the second signal says before it ends the process.
        what: what ends, in the words of the first signal.

    Attributes:
        name: name of the signal (``SIGINT``); empty while nobody asked.
    """

    def __init__(self, second: str = _SECOND, what: str = "the run") -> None:
        self.name = ""
        self._second = second
        self._what = what

    def __bool__(self) -> bool:
        """Whether the run shall end."""
        return bool(self.name)

    def refuse(self) -> None:
        """End here, before a trace is begun.

        Raises:
            RigError: somebody asked.
        """
        if self:
            raise RigError("interrupted before the first shot", got=self.name)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals. Only the main thread can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.name:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a progress bar may have hidden it
            os.write(2, self._second.encode())
            os._exit(RigError.exit_code)
        self.name = signal.Signals(number).name
        os.write(2, _FIRST.format(name=self.name, what=self._what).encode())
