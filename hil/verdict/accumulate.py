"""Streaming state that the statistics of dependent shots need: episodes and batches.

Both take positions (shot numbers, ascending over all calls) and forget the samples themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import UsageError
from hil.verdict.stats import SLOPE_BATCHES, clustering_p_value

I64 = NDArray[np.int64]

TABLE_BINS: Final = 8192
"""Fine bins of a `BatchTable`; between half of them and all are in use on a long run."""
CHAINING: Final = 0.5
"""Largest chance that two unrelated successive events share an episode."""


class Runs:
    """Clusters of events: two events at most ``gap`` positions apart share a cluster."""

    __slots__ = ("_current", "_last", "count", "events", "gap", "longest")

    def __init__(self, gap: int) -> None:
        if gap < 1:
            raise UsageError("episode gap out of range", got=str(gap), allowed=">= 1 shot")
        self.gap = gap
        self.events = 0
        self.count = 0
        self.longest = 0
        self._last: int | None = None
        self._current = 0

    def update(self, positions: I64) -> None:
        """Add events at ``positions``, int64 [m], strictly ascending over all calls."""
        m = int(positions.shape[0])
        if m == 0:
            return
        first = int(positions[0])
        lead = self.gap + 1 if self._last is None else first - self._last
        if lead < 1:
            raise UsageError("events out of order", got=f"{first} after {self._last}")
        gaps = np.empty(m, np.int64)
        gaps[0] = lead
        np.subtract(positions[1:], positions[:-1], out=gaps[1:])
        starts = np.flatnonzero(gaps > self.gap)
        lengths = np.diff(np.append(starts, m), prepend=0)
        lengths[0] += self._current  # what lies before the first start continues the open cluster
        self.events += m
        self.count += int(starts.shape[0])
        self.longest = max(self.longest, int(lengths.max()))
        self._current = int(lengths[-1])
        self._last = int(positions[-1])

    @property
    def close_pairs(self) -> int:
        """Successive events at most ``gap`` apart."""
        return self.events - self.count

    @property
    def mean_length(self) -> float:
        """Events per cluster; 1 if there was none."""
        return self.events / self.count if self.count else 1.0


class Episodes:
    """Clusters of events at two scales: episodes (``gap``) and runs of adjacent shots.

    ``gap`` should exceed the gaps inside one recovery (``docs/verdict.md``).
    """

    __slots__ = ("adjacent", "wide")

    def __init__(self, gap: int) -> None:
        self.wide = Runs(gap)
        self.adjacent = Runs(1)

    def update(self, positions: I64) -> None:
        """Add events at ``positions``, int64 [m], strictly ascending over all calls."""
        self.wide.update(positions)
        self.adjacent.update(positions)

    @property
    def events(self) -> int:
        """Number of events."""
        return self.wide.events

    def p_value(self, trials: int) -> float:
        """Smaller p of two tests against independence: adjacent events, events within ``gap``."""
        return min(
            clustering_p_value(runs.events, trials, runs.close_pairs, runs.gap)
            for runs in (self.wide, self.adjacent)
        )

    def scale(self, trials: int) -> Runs:
        """The scale that tells episodes: the wide one, unless unrelated events would share one.

        Events at rate ``m / n`` are within ``gap`` by chance with ``1 - (1 - m/n)**gap``; above
        `CHAINING` only adjacent events form an episode.
        """
        rate = min(1.0, self.events / trials)
        chance = 1.0 - (1.0 - rate) ** self.wide.gap
        return self.wide if chance <= CHAINING else self.adjacent


class BatchTable:
    """Sums of named integer columns over equal stretches of positions.

    Bins double their width whenever the positions outgrow the table, so that any number of shots
    ends as 20 batches of equal length (to one bin of 4,096 or more) without knowing it before.
    Sums are exact int64.
    """

    __slots__ = ("columns", "width")

    def __init__(self, names: Sequence[str]) -> None:
        self.width = 1
        self.columns: dict[str, I64] = {name: np.zeros(TABLE_BINS, np.int64) for name in names}

    def update(self, positions: I64, values: Mapping[str, NDArray[np.generic]]) -> None:
        """Add rows: ``positions`` int64 [n] ascending, >= 0; ``values`` integers or bools [n]."""
        n = int(positions.shape[0])
        if n == 0:
            return
        self._widen(int(positions[-1]))
        bins = positions // self.width
        starts = np.flatnonzero(bins[1:] != bins[:-1]) + 1
        starts = np.concatenate([np.zeros(1, starts.dtype), starts])
        touched = bins[starts]
        for name, column in values.items():
            sums = np.add.reduceat(column, starts, dtype=np.int64)
            self.columns[name][touched] += sums

    def copy(self) -> BatchTable:
        """An independent copy."""
        twin = BatchTable(tuple(self.columns))
        twin.width = self.width
        for name, column in self.columns.items():
            twin.columns[name][:] = column
        return twin

    def merge(self, other: BatchTable) -> None:
        """Add the sums of ``other`` (unchanged)."""
        twin = other.copy()
        while self.width < twin.width:
            self._fold()
        while twin.width < self.width:
            twin._fold()
        for name, column in twin.columns.items():
            self.columns[name] += column

    def batches(self, count: int = SLOPE_BATCHES) -> dict[str, I64]:
        """Sums over ``count`` stretches of equal length, int64 [count] per column.

        The stretch covers the bins in use; fewer positions than ``count`` give empty batches.
        """
        used = 0
        for column in self.columns.values():
            filled = np.flatnonzero(column)
            used = max(used, int(filled[-1]) + 1 if filled.size else 0)
        first = min(
            (int(np.flatnonzero(c)[0]) for c in self.columns.values() if c.any()), default=0
        )
        edges = first + (np.arange(count + 1) * (used - first)) // count
        out = {}
        for name, column in self.columns.items():
            running = np.concatenate([np.zeros(1, np.int64), np.cumsum(column)])
            out[name] = running[edges[1:]] - running[edges[:-1]]
        return out

    def _widen(self, position: int) -> None:
        while position >= self.width * TABLE_BINS:
            self._fold()

    def _fold(self) -> None:
        self.width *= 2
        for column in self.columns.values():
            column[: TABLE_BINS // 2] = column[0::2] + column[1::2]
            column[TABLE_BINS // 2 :] = 0
