"""How far behind its plan the sender of a live run was, and whether that is good enough.

The load is open loop: a frame has an instant, and what leaves late is a fault of the rig, not of
the decoder that is judged. ``docs/time.md`` states the rule and why.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.timebase import PS_PER_NS
from hil.units import format_ps
from hil.verdict.histogram import Histogram

MOST_LATE: Final = 1e-3
"""Share of frames that may leave late before the cadence counts as not held."""

SHARE_OF_DEADLINE: Final = 10
"""A frame is late beyond the deadline / 10, or one round period where that is longer."""


class SenderLateness:
    """Lateness of every frame: the instant it left (T2) minus the instant it was planned for.

    Args:
        tolerance_ps: a frame that left more than this behind its plan was late.
    """

    def __init__(self, tolerance_ps: int) -> None:
        self.tolerance_ps = tolerance_ps
        self.late = 0
        self._histogram = Histogram()

    @classmethod
    def for_deadline(cls, deadline_ps: int, round_period_ps: int) -> SenderLateness:
        """With the tolerance of a system that has to answer within ``deadline_ps``."""
        return cls(max(round_period_ps, deadline_ps // SHARE_OF_DEADLINE))

    def update(self, lateness_ps: NDArray[np.int64]) -> None:
        """Add frames that were sent: int64 [n], any order."""
        self.late += int(np.count_nonzero(lateness_ps > self.tolerance_ps))
        self._histogram.update(lateness_ps)

    @property
    def frames(self) -> int:
        """Frames sent."""
        return self._histogram.count

    @property
    def held(self) -> bool:
        """Whether the intended cadence really went out."""
        return self.late <= MOST_LATE * self.frames

    def quantile_ps(self, q: float) -> int:
        """Upper edge of a quantile in ps; 0 without a frame."""
        if not self.frames:
            return 0
        return self._histogram.order_statistic(max(1, int(np.ceil(q * self.frames))))[1]

    @property
    def maximum_ps(self) -> int:
        """Largest lateness, exact; 0 without a frame."""
        return self._histogram.maximum

    def counts(self) -> dict[str, int]:
        """Figures for the report, in ns."""
        return {
            "sender.frames": self.frames,
            "sender.late": self.late,
            "sender.tolerance_ns": self.tolerance_ps // PS_PER_NS,
            "sender.lateness_p50_ns": self.quantile_ps(0.5) // PS_PER_NS,
            "sender.lateness_p99_ns": self.quantile_ps(0.99) // PS_PER_NS,
            "sender.lateness_max_ns": self.maximum_ps // PS_PER_NS,
        }

    def words(self) -> str:
        """The figures as a sentence."""
        return (
            f"{self.late} of {self.frames} frames left more than {format_ps(self.tolerance_ps)} "
            f"late (p50 {format_ps(self.quantile_ps(0.5))}, p99 {format_ps(self.quantile_ps(0.99))}"
            f", max {format_ps(self.maximum_ps)})"
        )
