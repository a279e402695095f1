"""Time: integer picoseconds and exact clock edges.

All times in the core are ``int`` or ``int64`` counts of picoseconds (suffix ``_ps``). int64 spans
106.75 days from the epoch of a clock. Which clock a time belongs to, and which differences are
legal, is written in ``docs/time.md``; in a trace every time column names its clock. Rates that are
not a whole number of picoseconds keep their fraction: 322.265625 MHz has a period of 102400/33 ps
and edge ``n`` is at ``floor(n * 102400 / 33)``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

PS_PER_NS: Final = 1_000
PS_PER_US: Final = 1_000_000
PS_PER_MS: Final = 1_000_000_000
PS_PER_S: Final = 1_000_000_000_000

MISSING_PS: Final = -(2**63)
"""Sentinel of a time that is not known (numpy's NaT bit pattern)."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """A clock as an exact rational period ``num / den`` picoseconds."""

    num: int
    den: int

    @classmethod
    def from_hz(cls, hz: Fraction) -> Ticks:
        """Clock with frequency ``hz`` (an exact fraction of hertz, > 0)."""
        period = Fraction(PS_PER_S) / hz
        return cls(period.numerator, period.denominator)

    def edge_ps(self, n: int) -> int:
        """Time of edge ``n``: ``floor(n * num / den)`` ps; never a sum of rounded periods."""
        return n * self.num // self.den


def monotonic_ps() -> int:
    """The host's monotonic clock in ps; shared by all processes of one machine."""
    return time.monotonic_ns() * PS_PER_NS
