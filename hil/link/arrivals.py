"""What the receiving end of a link would count, found without frames: the virtual run's receiver.

The same sequence audit as in a live run judges the numbers in the order in which a plan lets them
arrive; frames that a check refuses are counted under the name of that check.
"""

from __future__ import annotations

import numpy as np

from hil.link.fault_plan import CLEAN_RULE, LinkPlan
from hil.link.frame_fault import GONE, I64, U8, FrameFault, arrivals
from hil.link.sequence import DEFAULT_MEMORY, SequenceAudit


class ArrivalAudit:
    """Receiver of one link; batches in order.

    Attributes:
        audit: judges what reaches the application.
        counts: frames by fault; of HOLD only the pauses: a stopped port is one event.

    Args:
        plan: what happens to the frames.
        gone: faults after which a frame does not reach the audit.
        memory: numbers back that a late one is told from a repeated one.
    """

    def __init__(
        self,
        plan: LinkPlan,
        gone: tuple[FrameFault, ...] = GONE,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self._plan = plan
        self._gone = gone
        self.audit = SequenceAudit(64, 0, memory)
        self.counts = dict.fromkeys(FrameFault, 0)
        self._late: I64 = np.empty((2, 0), np.int64)  # numbers, and when they arrive
        self._held_before = False

    def take(self, first: int, n: int) -> None:
        """The next ``n`` frames are sent; they follow the ones taken before."""
        kinds, amounts, _ = self._plan.suffering(first, n)
        self._count(kinds, amounts)
        numbers, when = arrivals(np.arange(first, first + n), kinds, amounts, self._gone)
        numbers, when = np.concatenate((self._late, np.stack((numbers, when))), axis=1)
        order = np.lexsort((numbers, when))
        now = when[order] < 2 * (first + n)
        self._late = np.stack((numbers, when))[:, order[~now]]
        self.audit.update(numbers[order[now]])

    def close(self, frames: int) -> None:
        """The run is over after so many frames."""
        self.audit.update(self._late[0])
        self._late = self._late[:, :0]
        self.audit.close(frames)

    def _count(self, kinds: U8, amounts: I64) -> None:
        for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            self.counts[FrameFault(kind)] += int(count)
        held = kinds == FrameFault.HOLD
        before = np.concatenate(([self._held_before], held[:-1]))
        self.counts[FrameFault.HOLD] += int((held & ~before).sum()) - int(held.sum())
        self._held_before = bool(held[-1]) if held.size else self._held_before


def late_behind(plan: LinkPlan, first_shot: int, n_shots: int, per_shot: int) -> np.ndarray:
    """Shots that a reordered frame of theirs reaches too late: behind a frame of a newer shot.

    Args:
        plan: of the uplink.
        first_shot: first shot asked for.
        n_shots: how many.
        per_shot: frames of a shot; the last one, the request, may be late.

    Returns:
        bool[n_shots].
    """
    first = first_shot * per_shot
    n = n_shots * per_shot
    ahead = max(0, min(plan.longest_wait, plan.frames - first - n))
    kinds, amounts, rules = plan.suffering(first, n + ahead)
    originals = np.where(kinds == FrameFault.DUPLICATE, np.uint8(FrameFault.NONE), kinds)
    numbers, _ = arrivals(np.arange(first, first + n + ahead), originals, amounts)
    shot, place = np.divmod(numbers, per_shot)
    newest = np.maximum.accumulate(shot) if shot.size else shot
    late = (shot < newest) & (place < per_shot - 1) & (rules[numbers - first] != CLEAN_RULE)
    hit = np.zeros(n_shots, np.bool_)
    mine = shot[late] - first_shot
    hit[mine[mine < n_shots]] = True
    return hit
