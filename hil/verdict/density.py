"""How much a pre-decoder thins out the syndromes: events before it over events behind it.

Only shots that it answered count. Shots depend on each other where noise drifts; bounds come from
the sums of 20 long stretches of shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.verdict import stats
from hil.verdict.accumulate import BatchTable
from hil.verdict.measured import Measured, NotMeasuredError

I64 = NDArray[np.int64]

METRIC: Final = "predecoder.density_reduction"
EVENTS_PER_BATCH: Final = 10
"""Fewest events left in each stretch: below, t bounds of so few events promise too much."""


@dataclass(frozen=True, slots=True)
class EventCounts:
    """Detection events of ``n`` shots.

    Attributes:
        before: int64 [n], of the raw syndrome.
        left: int64 [n], behind the pre-decoder; -1 where it did not answer.
    """

    before: I64
    left: I64


class EventSums:
    """Sums of events before and behind the pre-decoder, over stretches of shots."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table = BatchTable(("shots", "before", "left"))

    def update(self, position: I64, events: EventCounts) -> None:
        """Add shots at ``position``, int64 [n] ascending."""
        done = events.left >= 0
        self.table.update(
            position,
            {
                "shots": done,
                "before": np.where(done, events.before, 0),
                "left": np.where(done, events.left, 0),
            },
        )


def measure(groups: Sequence[EventSums], confidence: float, scope: str) -> Measured:
    """Events before over events left, all shots together.

    Raises:
        NotMeasuredError: no pre-decoder answered, or no event is left at all.
    """
    table = groups[0].table.copy()
    for other in groups[1:]:
        table.merge(other.table)
    sums = table.batches()
    before, left = int(sums["before"].sum()), int(sums["left"].sum())
    if not int(sums["shots"].sum()):
        raise NotMeasuredError("no pre-decoder answered", where=f"{METRIC}, scope {scope}")
    if not left:
        raise NotMeasuredError("no event is left", where=METRIC, got=f"{before} events before")
    enough = int(sums["left"].min()) >= EVENTS_PER_BATCH
    lower, upper = ratio_bounds(sums["before"], sums["left"], confidence)
    return Measured(
        metric=METRIC,
        stat="",
        scope=scope,
        value=before / left,
        lower=lower if enough else None,
        upper=upper if enough else None,
        unit="1",
        n=int(sums["shots"].sum()),
        confidence=confidence,
        method=f"one-sided t bounds of a ratio of sums over {sums['left'].size} stretches of shots",
        label="detection events of answered shots",
    )


def ratio_bounds(before: I64, left: I64, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound, each at ``confidence``, on a ratio R of two mean sums.

    t bounds of R + (before - R left) / mean(left), whose mean is R (Cochran, Sampling Techniques,
    1977, 6.4). The mean of the stretches' own ratios lies above R: by 1 / left of it.

    Args:
        before: int64 [k], of each stretch.
        left: int64 [k], with a positive sum.
        confidence: of each bound.
    """
    ratio = before.sum() / left.sum()
    linear = ratio + (before - ratio * left) / left.mean()
    return stats.mean_lower_bound(linear, confidence), -stats.mean_lower_bound(-linear, confidence)
