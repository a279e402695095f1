"""Sliding windows in the event executor: ring and workers of a streaming decoder.

A window is ready when its last block is visible (plus dispatch); the windows of a shot are decoded
in order, because each one needs the carried defects of the one before. A worker belongs to one shot
from its first window to its last; shots take workers first in, first out. A slot of the ring is
free when the first window that contains its block starts.

A shot with a lost or refused block is decoded up to the window before the first one that misses
it, and then given up: its worker and its slots are free, later blocks are discarded when visible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_decoder.windows import WindowPlan
from hil.rack.timeline import I64


@dataclass(slots=True, eq=False)
class StreamedShot:
    """One shot under way.

    Attributes:
        dispatch_ps, service_ps: int64 [w] of this shot.
        start_ps, end_ps: int64 [w], filled here.
        finished: called with True when it is answered, False when it is given up and all its
            blocks have come.
        waited: called with the number of windows that waited when the last one became ready.
        bad: first block that was lost or refused.
        passed: last block that has passed ``deliver``.
        seen, ready, done: windows whose last block has passed; that became ready; that are decoded.
        doomed: first window that misses a block.
        given_up: it is not decoded any further.
        held: blocks that hold a slot, in order.
    """

    dispatch_ps: I64
    service_ps: I64
    start_ps: I64
    end_ps: I64
    finished: Callable[[bool], None]
    waited: Callable[[int], None]
    bad: int = 2**62
    passed: int = -1
    seen: int = 0
    ready: int = 0
    done: int = 0
    doomed: int = 2**62
    given_up: bool = False
    held: deque[int] = field(default_factory=deque)


class StreamingNode:
    """See module text.

    Args:
        plan: the windows of a shot.
        workers, slots: of the node.
        now: the present instant.
        at_ready, at_done: call something later, before what arrives at that instant.
    """

    def __init__(
        self,
        plan: WindowPlan,
        workers: int,
        slots: int,
        *,
        now: Callable[[], int],
        at_ready: Callable[[int, Callable[[], None]], None],
        at_done: Callable[[int, Callable[[], None]], None],
    ) -> None:
        self._last = plan.last_round.tolist()
        self._idle, self._slots, self._used = workers, slots, 0
        self._now, self._at_ready, self._at_done = now, at_ready, at_done
        self._queue: deque[StreamedShot] = deque()
        self._waiting = 0
        self._last_ready = 0

    def admit(self, shot: StreamedShot, block: int) -> bool:
        """A block arrives: whether the ring has a slot for it."""
        if self._used >= self._slots:
            return False
        self._used += 1
        shot.held.append(block)
        return True

    def visible(self, shot: StreamedShot, block: int) -> None:
        """A block, or the gap where it should be, has passed ``deliver``."""
        k, shot.passed = shot.seen, block
        if block == self._last[k]:
            shot.seen += 1
            if k < shot.doomed:
                self._complete(shot, k, block)
        if shot.given_up:
            self._discard(shot)

    def _complete(self, shot: StreamedShot, k: int, block: int) -> None:
        if shot.bad <= block:
            shot.doomed = k
            if shot.done == k:
                self._give_up(shot)
            return
        self._last_ready = max(self._now() + int(shot.dispatch_ps[k]), self._last_ready)
        self._at_ready(self._last_ready, lambda: self._ready(shot, k))

    def _ready(self, shot: StreamedShot, k: int) -> None:
        self._waiting += 1
        shot.ready = k + 1
        if k == 0:
            self._queue.append(shot)
            self._assign()
        elif shot.done == k:
            self._start(shot, k)
        if k == len(self._last) - 1:
            own = not int(shot.start_ps[k])
            shot.waited(self._waiting - own)

    def _release(self) -> None:
        """A worker is done with its shot."""
        self._idle += 1
        self._assign()

    def _assign(self) -> None:
        while self._idle and self._queue:
            self._idle -= 1
            self._start(self._queue.popleft(), 0)

    def _start(self, shot: StreamedShot, k: int) -> None:
        self._waiting -= 1
        shot.start_ps[k] = self._now()
        self._free(shot, self._last[k])
        self._at_done(self._now() + int(shot.service_ps[k]), lambda: self._done(shot, k))

    def _done(self, shot: StreamedShot, k: int) -> None:
        shot.end_ps[k] = self._now()
        shot.done = k + 1
        if k == len(self._last) - 1:
            shot.finished(True)  # noqa: FBT003
            self._release()
        elif shot.doomed == k + 1:
            self._give_up(shot)
            self._discard(shot)
        elif shot.ready > k + 1:
            self._start(shot, k + 1)

    def _give_up(self, shot: StreamedShot) -> None:
        shot.given_up = True
        if shot.done:
            self._release()

    def _discard(self, shot: StreamedShot) -> None:
        """Free what has come of a shot that was given up; it is over when all of it has come."""
        self._free(shot, shot.passed)
        if shot.passed == self._last[-1]:
            shot.finished(False)  # noqa: FBT003

    def _free(self, shot: StreamedShot, last: int) -> None:
        """Free the slots of blocks up to ``last``."""
        while shot.held and shot.held[0] <= last:
            shot.held.popleft()
            self._used -= 1
