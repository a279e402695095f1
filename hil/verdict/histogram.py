"""Durations in bounded memory: a histogram from which order statistics come with their error.

Log-linear buckets over int64 picoseconds: magnitudes below 2^13 ps have a bucket each, every
octave above is cut into 2^12 equal buckets (relative width at most 2^-12, about 0.024 %), up to
2^63. Negative durations (a stamp that ran backwards) are kept in mirrored buckets. Minimum,
maximum and count are exact. At most 1.7 MB, and only up to the largest value seen.

`Histogram.order_statistic` gives both edges of the bucket: an upper bound takes the upper edge, a
lower bound the lower edge, so the resolution can never turn a verdict into a PASS.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import UsageError
from hil.timebase import MISSING_PS

I64 = NDArray[np.int64]

EXACT_BITS: Final = 13
"""Values below 2**13 ps have their own bucket."""
OCTAVE_BITS: Final = 12
"""Every octave above has 2**12 buckets."""

_EXACT: Final = 1 << EXACT_BITS
_PER_OCTAVE: Final = 1 << OCTAVE_BITS
_MANTISSA_SHIFT: Final = 52 - OCTAVE_BITS
_OFFSET: Final = ((1023 + EXACT_BITS) << OCTAVE_BITS) - _EXACT
_FLOAT_EXACT: Final = 1 << 53
_GATHER: Final = 16_384
_LOW_BITS: Final = 11  # dropped from values that a float64 would round; far below one bucket


def bucket_index(magnitude: I64) -> I64:
    """Bucket numbers of non-negative values, int64 [n] -> int64 [n].

    The exponent and the top 12 mantissa bits of the value as float64 are the bucket number.
    """
    top = (magnitude.astype(np.float64).view(np.int64) >> _MANTISSA_SHIFT) - _OFFSET
    large = magnitude >= _FLOAT_EXACT
    if large.any():
        floored = (magnitude >> _LOW_BITS).astype(np.float64).view(np.int64) >> _MANTISSA_SHIFT
        top = np.where(large, floored - _OFFSET + (_LOW_BITS << OCTAVE_BITS), top)
    return np.where(magnitude < _EXACT, magnitude, top)


def bucket_edges(index: int) -> tuple[int, int]:
    """Smallest and largest value of bucket ``index`` (both inside)."""
    if index < _EXACT:
        return index, index
    octave, part = divmod(index - _EXACT, _PER_OCTAVE)
    shift = octave + EXACT_BITS - OCTAVE_BITS
    return (_PER_OCTAVE + part) << shift, ((_PER_OCTAVE + part + 1) << shift) - 1


class Histogram:
    """Streaming counts of durations in ps."""

    __slots__ = (
        "_count",
        "_cumulative",
        "_maximum",
        "_minimum",
        "_negative",
        "_pending",
        "_pending_count",
        "_positive",
    )

    def __init__(self) -> None:
        self._count = 0
        self._minimum = 0
        self._maximum = 0
        self._positive: I64 = np.zeros(0, np.int64)
        self._negative: I64 = np.zeros(0, np.int64)
        self._cumulative: tuple[I64, I64] | None = None
        self._pending: list[I64] = []
        self._pending_count = 0

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._count + self._pending_count

    @property
    def minimum(self) -> int:
        """Smallest sample in ps, exact; 0 if there is none."""
        self._flush()
        return self._minimum

    @property
    def maximum(self) -> int:
        """Largest sample in ps, exact; 0 if there is none."""
        self._flush()
        return self._maximum

    def update(self, values: I64) -> None:
        """Add durations, int64 [n], any order; the array may be reused by the caller.

        Small batches are gathered first: sorting n values into buckets has a fixed cost.

        Raises:
            UsageError: if a value is `MISSING_PS`; leave those out first.
        """
        n = int(values.shape[0])
        if n == 0:
            return
        low, high = int(values.min()), int(values.max())
        if low == MISSING_PS:
            raise UsageError("a missing time is no duration", fix="filter MISSING_PS before update")
        if low == high:
            self._extend(low, high, n)
            self._add_at(low, n)
            return
        if n >= _GATHER:
            self._put(values, low, high)
            return
        self._pending.append(values.copy())
        self._pending_count += n
        if self._pending_count >= _GATHER:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            gathered = np.concatenate(self._pending)
            self._pending, self._pending_count = [], 0
            self._put(gathered, int(gathered.min()), int(gathered.max()))

    def _put(self, values: I64, low: int, high: int) -> None:
        self._extend(low, high, int(values.shape[0]))
        if low >= 0:
            self._positive = _add(self._positive, values, low, high)
        else:
            negative = -values[values < 0]
            self._negative = _add(self._negative, negative, int(negative.min()), -low)
            if high >= 0:
                rest = values[values >= 0]
                self._positive = _add(self._positive, rest, int(rest.min()), high)

    def merge(self, other: Histogram) -> None:
        """Add all counts of ``other`` (unchanged); equal to having seen both sample sets."""
        if other.count == 0:
            return
        other._flush()
        self._flush()
        self._extend(other._minimum, other._maximum, other._count)
        self._positive = _sum(self._positive, other._positive)
        self._negative = _sum(self._negative, other._negative)

    def order_statistic(self, rank: int) -> tuple[int, int]:
        """Edges (lower, upper) in ps that enclose the sample of ``rank`` (1 = smallest).

        Raises:
            UsageError: if ``rank`` is not in 1..count.
        """
        if not 1 <= rank <= self.count:
            raise UsageError(
                "no such rank", got=str(rank), allowed=f"1..{self.count} (samples seen)"
            )
        positive, negative = self._sums()
        below_zero = int(negative[-1]) if negative.size else 0
        if rank <= below_zero:
            # ascending values are descending magnitudes
            low, high = bucket_edges(int(np.searchsorted(negative, below_zero - rank + 1)))
            low, high = -high, -low
        else:
            low, high = bucket_edges(int(np.searchsorted(positive, rank - below_zero)))
        return max(low, self.minimum), min(high, self.maximum)

    def count_above(self, limit: int) -> tuple[int, int]:
        """Samples greater than ``limit`` ps: (at least, at most); equal but for one bucket."""
        if self.count == 0 or limit >= self.maximum:
            return 0, 0
        if limit < self.minimum:
            return self.count, self.count
        low, high = 1, self.count
        while low < high:  # first rank whose upper edge is above the limit
            middle = (low + high) // 2
            if self.order_statistic(middle)[1] > limit:
                high = middle
            else:
                low = middle + 1
        most = self.count - low + 1
        high = self.count
        while low < high:  # first rank whose lower edge is above the limit
            middle = (low + high) // 2
            if self.order_statistic(middle)[0] > limit:
                high = middle
            else:
                low = middle + 1
        least = self.count - low + 1 if self.order_statistic(low)[0] > limit else 0
        return least, most

    def to_arrays(self) -> dict[str, NDArray[np.int64] | NDArray[np.uint64]]:
        """Non-empty buckets as columns, ascending.

        ``edges_ps`` i8: the bucket's smallest value; ``last_ps`` i8: its largest; ``counts`` u8;
        ``extent_ps`` i8 [2]: exact minimum and maximum.
        """
        self._flush()
        filled_neg = np.flatnonzero(self._negative)[::-1]
        filled_pos = np.flatnonzero(self._positive)
        pairs = [bucket_edges(int(i)) for i in filled_neg]
        edges = [(-high, -low) for low, high in pairs]
        edges += [bucket_edges(int(i)) for i in filled_pos]
        counts = np.concatenate([self._negative[filled_neg], self._positive[filled_pos]])
        return {
            "edges_ps": np.array([low for low, _ in edges], np.int64),
            "last_ps": np.array([high for _, high in edges], np.int64),
            "counts": counts.astype(np.uint64),
            "extent_ps": np.array([self._minimum, self._maximum], np.int64),
        }

    @classmethod
    def from_arrays(cls, edges_ps: I64, counts: NDArray[np.uint64], extent_ps: I64) -> Histogram:
        """Rebuild what `to_arrays` gave."""
        histogram = cls()
        for negative in (True, False):
            chosen = (edges_ps < 0) == negative
            if not chosen.any():
                continue
            index = bucket_index(np.abs(edges_ps[chosen]).astype(np.int64))
            side = np.zeros(int(index.max()) + 1, np.int64)
            side[index] = counts[chosen].astype(np.int64)
            if negative:
                histogram._negative = side
            else:
                histogram._positive = side
        histogram._count = int(counts.sum())
        histogram._minimum, histogram._maximum = int(extent_ps[0]), int(extent_ps[1])
        return histogram

    def _extend(self, low: int, high: int, n: int) -> None:
        self._minimum = min(self._minimum, low) if self._count else low
        self._maximum = max(self._maximum, high) if self._count else high
        self._count += n
        self._cumulative = None

    def _add_at(self, value: int, n: int) -> None:
        index = int(bucket_index(np.array([abs(value)], np.int64))[0])
        if value < 0:
            self._negative = _grown(self._negative, index + 1)
            self._negative[index] += n
        else:
            self._positive = _grown(self._positive, index + 1)
            self._positive[index] += n

    def _sums(self) -> tuple[I64, I64]:
        self._flush()
        if self._cumulative is None:
            self._cumulative = (np.cumsum(self._positive), np.cumsum(self._negative))
        return self._cumulative


def _add(counts: I64, magnitudes: I64, low: int, high: int) -> I64:
    """Counts with the magnitudes (all in low..high) added; grown in place where possible."""
    first, last = (int(i) for i in bucket_index(np.array([low, high], np.int64)))
    index = _index_in_range(magnitudes, low, high)
    index -= first
    counts = _grown(counts, last + 1)
    counts[first : last + 1] += np.bincount(index, minlength=last - first + 1)
    return counts


def _index_in_range(magnitudes: I64, low: int, high: int) -> I64:
    """`bucket_index` without the branches that the range rules out; newly allocated."""
    if high < _EXACT:
        return magnitudes.copy()
    if low < _EXACT or high >= _FLOAT_EXACT:
        return bucket_index(magnitudes)
    index: I64 = magnitudes.astype(np.float64).view(np.int64)
    index >>= _MANTISSA_SHIFT
    index -= _OFFSET
    return index


def _grown(counts: I64, size: int) -> I64:
    if counts.shape[0] >= size:
        return counts
    # whole octaves, so that a slowly rising maximum does not reallocate each time
    larger = np.zeros(-(-size // _PER_OCTAVE) * _PER_OCTAVE, np.int64)
    larger[: counts.shape[0]] = counts
    return larger


def _sum(a: I64, b: I64) -> I64:
    out = _grown(a, b.shape[0])
    out[: b.shape[0]] += b
    return out
