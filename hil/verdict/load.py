"""Load of sliding windows: does a streaming decoder keep up with the rounds?

The windows of a shot are sequential, so they keep up if and only if the mean service time of a full
window stays below the time in which the rounds it commits arrive: tau(C + B) < C x T. More workers
do not help within a shot. Neighbouring windows share rounds and hand on defects, so their service
times depend on each other; bounds come from the means of 20 long stretches of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.scenario.system import SystemSpec
from hil.timebase import MISSING_PS
from hil.verdict import stats
from hil.verdict.accumulate import BatchTable
from hil.verdict.measured import Measured, NotMeasuredError

I64 = NDArray[np.int64]

METRIC: Final = "window.load"
WINDOWS_PER_BATCH: Final = 10
"""Fewest windows of a stretch: it must be long against the windows that share a round."""


def window_time_ps(system: SystemSpec) -> int | None:
    """C x T, in which the rounds that a window commits arrive; ``None`` without windows."""
    sliding = system.decoder.window.sliding
    return None if sliding is None else sliding[0] * system.qpu.round_period_ps


class WindowServices:
    """Sums of the service times of full windows, over stretches of windows."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table = BatchTable(("windows", "service"))

    def update(self, position: I64, service_ps: I64) -> None:
        """Add shots: ``position`` int64 [n] ascending, ``service_ps`` int64 [n, w].

        The last window of a shot is left out: it may be shorter than the others.
        """
        n, w = service_ps.shape
        if w < 2 or not n:
            return
        where = (position[:, None] * w + np.arange(w - 1)).ravel()
        full = service_ps[:, :-1].ravel()
        known = full != MISSING_PS
        self.table.update(where, {"windows": known, "service": np.where(known, full, 0)})


def measure(
    groups: Sequence[WindowServices],
    window_time_ps: int | None,
    confidence: float,
    scope: str,
    label: str,
) -> Measured:
    """Mean service time of a full window over ``window_time_ps``.

    Raises:
        NotMeasuredError: the run has no sliding windows, or no full one was decoded and kept.
    """
    if window_time_ps is None:
        raise NotMeasuredError("the run has no sliding windows", where=METRIC)
    table = groups[0].table.copy()
    for other in groups[1:]:
        table.merge(other.table)
    sums = table.batches()
    filled = sums["windows"] > 0
    n = int(sums["windows"].sum())
    if not n:
        raise NotMeasuredError(
            "the time of no full window is known", where=f"{METRIC}, scope {scope}"
        )
    loads = sums["service"][filled] / sums["windows"][filled] / window_time_ps
    enough = n >= WINDOWS_PER_BATCH * stats.SLOPE_BATCHES
    return Measured(
        metric=METRIC,
        stat="",
        scope=scope,
        value=int(sums["service"].sum()) / n / window_time_ps,
        lower=stats.mean_lower_bound(loads, confidence) if enough else None,
        upper=-stats.mean_lower_bound(-loads, confidence) if enough else None,
        unit="1",
        n=n,
        confidence=confidence,
        method=f"one-sided t bounds from {loads.size} batch means of windows",
        label=label,
    )
