"""Where the bits of a shot lie in its messages, and which of them make a detector.

A shot arrives as ``pieces`` messages (one per board and round, or one in all). Its *record* is what
they carry, joined in the order of the pieces: detection events, or raw measurements of which each
detector is the parity of a few. A ``DetectorTable`` joins both steps, and the permutation to the
order of the engine's input, into one sparse table of bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import stim

U32Array: TypeAlias = NDArray[np.uint32]
U64Array: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of a shot.

    Attributes:
        bits: bits of the record that it carries, in order.
        payload_at: byte of the message where the first of them lies (56 in enqueue_syndromes,
            ``docs/wire.md``; an envelope lies behind the bits and moves nothing).
    """

    bits: int
    payload_at: int

    @property
    def end(self) -> int:
        """Bytes of the message up to its last bit."""
        return self.payload_at + (self.bits + 7) // 8


@dataclass(frozen=True)
class DetectorTable:
    """Which bits of which message make each input of the engine (compressed rows).

    Attributes:
        pieces: messages of a shot.
        row_start: uint32 [N + 1], first entry of each row; the last is their number.
        row_piece: uint32 [row_start[N]], message of each entry.
        row_bit: uint32 of the same length, bit of that message, LSB first, headers counted.
    """

    pieces: tuple[Piece, ...]
    row_start: U32Array
    row_piece: U32Array
    row_bit: U32Array

    @property
    def n_detectors(self) -> int:
        """N, inputs of the engine."""
        return len(self.row_start) - 1

    def check_messages(self, message_at: U64Array, memory_bytes: int) -> None:
        """Refuse offsets of messages that do not lie in the receive memory.

        Raises:
            ValueError: shape, or a message that would reach beyond the memory.
        """
        if message_at.ndim != 2 or message_at.shape[1] != len(self.pieces):
            raise ValueError(f"offsets {message_at.shape}, allowed: (shots, {len(self.pieces)})")
        ends = np.array([piece.end for piece in self.pieces], dtype=np.uint64)
        room = np.uint64(memory_bytes) - np.minimum(ends, np.uint64(memory_bytes))
        bad = (message_at > room) | (ends > np.uint64(memory_bytes))
        if bad.any():
            shot, piece = np.argwhere(bad)[0]
            raise ValueError(
                f"message {piece} of shot {shot} at byte {message_at[shot, piece]} needs "
                f"{ends[piece]} bytes, the receive memory has {memory_bytes}"
            )


def detector_table(
    pieces: Sequence[Piece],
    rows: Sequence[Sequence[int]] | None = None,
    order: Sequence[int] | None = None,
) -> DetectorTable:
    """Join record layout, parities and permutation.

    Args:
        pieces: messages of a shot, in the order in which their bits form the record.
        rows: bits of the record of which each detector is the parity; ``None``: the record is the
            detectors.
        order: detector that each input of the engine takes; ``None``: as they are.

    Raises:
        ValueError: a bit or a detector that does not exist, or an order that is no permutation.
    """
    n_bits = sum(piece.bits for piece in pieces)
    listed = [(i,) for i in range(n_bits)] if rows is None else rows
    taken = range(len(listed)) if order is None else order
    if sorted(taken) != list(range(len(listed))):
        raise ValueError(f"order is no permutation of {len(listed)} detectors")
    entries = np.array([bit for j in taken for bit in listed[j]], dtype=np.int64)
    if entries.size and not 0 <= entries.min() <= entries.max() < n_bits:
        raise ValueError(
            f"a detector takes bit {entries.max()} or {entries.min()}, "
            f"allowed: 0..{n_bits - 1}, the bits of {len(pieces)} messages"
        )
    of_bit = np.repeat(np.arange(len(pieces)), [piece.bits for piece in pieces])
    at_bit = np.concatenate(
        [np.empty(0, dtype=np.int64)]
        + [8 * piece.payload_at + np.arange(piece.bits) for piece in pieces]
    )
    lengths = [len(listed[j]) for j in taken]
    return DetectorTable(
        tuple(pieces),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.uint32),
        of_bit[entries].astype(np.uint32),
        at_bit[entries].astype(np.uint32),
    )


def measurement_rows(circuit: stim.Circuit) -> list[tuple[int, ...]]:
    """Measurements (counted from 0) of which each detector of a circuit is the parity.

    A measurement that a detector names twice cancels. Parities that are 1 without noise are not
    corrected for: the circuits of this library have none.
    """
    rows: list[tuple[int, ...]] = []
    measured = 0
    for instruction in circuit.flattened():
        if instruction.name == "DETECTOR":
            targets = [measured + target.value for target in instruction.targets_copy()]
            rows.append(tuple(sorted(k for k in set(targets) if targets.count(k) % 2)))
        else:
            measured += instruction.num_measurements
    return rows
