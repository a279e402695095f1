"""Exact audit of a stream of sequence numbers: lost, duplicate, reordered, stale.

One class serves every width: 24-bit PSN, 20-bit PSN in immediates, 32-bit request id, 64-bit
application counter. Comparison is modular: a number ahead of the expected one by less than half
the range opens a gap (all skipped numbers count as lost); a number behind it is

- ``REORDERED`` if it is one of the missing: it fills its gap (lost - 1, reordered + 1);
- ``DUPLICATE`` if it was seen before;
- ``STALE`` if it is older than the memory of the audit or older than the stream's first number.

Memory is bounded: the last ``memory`` numbers are remembered as one byte each. A number that left
that window can no longer fill its gap: it stays lost and its late arrival counts as stale.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hil.errors import UsageError

DEFAULT_MEMORY: Final = 4096
_FAR: Final = 1 << 61


class Arrival(IntEnum):
    """What the audit says of one number."""

    IN_ORDER = 0
    GAP = 1
    REORDERED = 2
    DUPLICATE = 3
    STALE = 4


class SequenceAudit:
    """Audit of one stream.

    Attributes:
        received: numbers seen, of every kind.
        gaps: how often the stream jumped ahead.
        lost: numbers skipped and not seen since.
        duplicate: numbers seen again.
        reordered: numbers that came late and filled their gap.
        stale: numbers too old to be judged.
        widest: most numbers skipped at once, whether some of them came later or not.

    Args:
        bits: width of the number, 2..64.
        start: first number expected; None = the first one seen.
        memory: how many numbers back a late one can still be told from a repeated one. It must
            not exceed a quarter of the range.
    """

    __slots__ = (
        *("_half", "_mask", "_memory", "_next", "_position", "_seen", "_size"),
        *("duplicate", "gaps", "lost", "received", "reordered", "stale", "widest"),
    )

    def __init__(self, bits: int, start: int | None = 0, memory: int = DEFAULT_MEMORY) -> None:
        if not 2 <= bits <= 64 or not 1 <= memory <= 1 << (bits - 2):
            raise UsageError(
                "sequence audit cannot be built",
                got=f"{bits} bits, memory {memory}",
                allowed="2..64 bits, memory 1..2^(bits-2)",
            )
        self._mask = (1 << bits) - 1
        self._half = 1 << (bits - 1)
        self._size = 1 << bits
        self._memory = memory
        self._seen = bytearray(memory)
        self._next = start
        self._position = 0  # numbers from the start of the stream to the expected one
        self.received = self.gaps = self.lost = 0
        self.duplicate = self.reordered = self.stale = self.widest = 0

    @property
    def expected(self) -> int | None:
        """The number expected next; None before the first of an open start."""
        return self._next

    def observe(self, number: int) -> Arrival:
        """Judge one number (taken modulo the range)."""
        number &= self._mask
        self.received += 1
        if self._next is None:
            self._next = number
        ahead = (number - self._next) & self._mask
        if ahead == 0:
            self._advance(1)
            return Arrival.IN_ORDER
        if ahead < self._half:
            self.gaps += 1
            self.lost += ahead
            self.widest = max(self.widest, ahead)
            self._advance(ahead + 1)
            return Arrival.GAP
        age = self._size - ahead
        if age > self._memory or age > self._position:
            self.stale += 1
            return Arrival.STALE
        place = (self._position - age) % self._memory
        if self._seen[place]:
            self.duplicate += 1
            return Arrival.DUPLICATE
        self._seen[place] = 1
        self.lost -= 1
        self.reordered += 1
        return Arrival.REORDERED

    def update(self, numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Judge many numbers at once, in order of arrival; the same result as one by one.

        Args:
            numbers: integers [n], taken modulo the range.

        Returns:
            u1[n], codes of :class:`Arrival`.
        """
        if len(numbers) == 0:
            return np.empty(0, np.uint8)
        values = np.asarray(numbers).astype(np.uint64)
        first = self._next if self._next is not None else int(values[0]) & self._mask
        self._next = first
        ahead = self._unwrap(values, first)
        if ahead is None:  # a jump of half the range: let the scalar rule decide each one
            return np.fromiter((self.observe(int(v)) for v in values), np.uint8, len(values))
        return self._judge(ahead)

    def in_order(self, count: int) -> None:
        """Book so many numbers that were each the expected one."""
        self.received += count
        self._skip(count, b"\x01")

    def close(self, next_number: int) -> int:
        """The sender says which number would come next: count what is missing at the end.

        Returns:
            Numbers newly counted as lost; 0 if that number lies behind the expected one.
        """
        if self._next is None:
            self._next = next_number & self._mask
        missing = (next_number - self._next) & self._mask
        if missing == 0 or missing >= self._half:
            return 0
        self.gaps += 1
        self.lost += missing
        self.widest = max(self.widest, missing)
        self._skip(missing)
        return missing

    def counts(self) -> dict[str, int]:
        """All counts by name."""
        names = ("received", "gaps", "lost", "duplicate", "reordered", "stale")
        return {name: getattr(self, name) for name in names}

    def _advance(self, steps: int) -> None:
        if steps > 1:
            self._skip(steps - 1)
        self._seen[self._position % self._memory] = 1
        self._move(1)

    def _skip(self, steps: int, seen: bytes = b"\x00") -> None:
        memory = self._memory
        count = min(steps, memory)
        first = self._position % memory
        end = min(first + count, memory)
        self._seen[first:end] = seen * (end - first)
        self._seen[: first + count - end] = seen * (first + count - end)
        self._move(steps)

    def _move(self, steps: int) -> None:
        self._position += steps
        if self._next is not None:
            self._next = (self._next + steps) & self._mask

    def _unwrap(self, values: npt.NDArray[np.uint64], first: int) -> npt.NDArray[np.int64] | None:
        """Positions relative to the expected number, or None where they are not plain."""
        shift = np.uint64(64 - self._mask.bit_length())
        previous = np.empty_like(values)
        previous[0] = first
        previous[1:] = values[:-1]
        steps = ((values - previous) << shift).view(np.int64) >> shift.astype(np.int64)
        if float(np.abs(steps.astype(np.float64)).sum()) >= _FAR:
            return None
        ahead = np.cumsum(steps)
        distance = ahead - _before(ahead)
        plain = (distance >= -self._half) & (distance < self._half)
        return ahead if bool(plain.all()) else None

    def _judge(self, ahead: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        distance = ahead - _before(ahead)
        codes = np.zeros(len(ahead), np.uint8)
        jumps = distance > 0
        codes[jumps] = Arrival.GAP
        self.received += len(ahead)
        self.gaps += int(jumps.sum())
        self.lost += int(distance[jumps].sum())
        self.widest = max(self.widest, int(distance.max()))
        behind = np.flatnonzero(distance < 0)
        if len(behind):
            codes[behind] = self._judge_behind(ahead, distance, behind)
        self._remember(ahead)
        return codes

    def _judge_behind(
        self,
        ahead: npt.NDArray[np.int64],
        distance: npt.NDArray[np.int64],
        behind: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint8]:
        place = ahead[behind]
        old = (-distance[behind] > self._memory) | (place < -self._position)
        _, first, inverse = np.unique(ahead, return_index=True, return_inverse=True)
        again = first[inverse[behind]] < behind
        seen = np.frombuffer(self._seen, np.uint8)
        known = seen[(place + self._position % self._memory) % self._memory].astype(np.bool_)
        again |= known & (place < 0)
        late = ~old & ~again
        self.stale += int(old.sum())
        self.duplicate += int((~old & again).sum())
        self.reordered += int(late.sum())
        self.lost -= int(late.sum())
        codes = np.where(again, np.uint8(Arrival.DUPLICATE), np.uint8(Arrival.REORDERED))
        codes[old] = Arrival.STALE
        return codes

    def _remember(self, ahead: npt.NDArray[np.int64]) -> None:
        steps = max(0, int(ahead.max()) + 1)
        origin = self._position
        self._skip(steps)
        recent = ahead[ahead >= steps - self._memory]
        seen = np.frombuffer(self._seen, np.uint8)
        seen[(recent + origin % self._memory) % self._memory] = 1


def _before(ahead: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The expected position at the time of each arrival, relative to the one at the beginning."""
    expected = np.zeros_like(ahead)
    np.maximum.accumulate(ahead[:-1] + 1, out=expected[1:])
    np.maximum(expected, 0, out=expected)
    return expected
