"""What every exchange format gives and takes: batches of packed bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import U8Array

BATCH_BYTES: Final = 16 << 20
"""About how many unpacked bits (one byte each) a batch holds."""


@dataclass(frozen=True, slots=True)
class Shots:
    """A batch of shots, packed as stim b8 (LSB first, each shot padded to a byte).

    Attributes:
        detectors_b8: uint8 [n, ceil(D/8)].
        observables_b8: uint8 [n, ceil(O/8)], observable flips that really happened.
        predictions_b8: uint8 [n, ceil(O/8)], PyMatching's, where the format carries them.
        predecoded: uint8 [n, 1 + D], flip of the observable and residual detectors one byte each,
            where the format carries them.
    """

    detectors_b8: U8Array
    observables_b8: U8Array
    predictions_b8: U8Array | None = None
    predecoded: U8Array | None = None

    def __len__(self) -> int:
        return len(self.detectors_b8)


def batch_shots(columns: int) -> int:
    """Shots per batch for rows of so many bits: 1 to 65,536."""
    return min(1 << 16, max(1, BATCH_BYTES // max(1, columns)))


def unpack(packed: U8Array, columns: int) -> U8Array:
    """Bits, uint8 [n, columns], of packed rows uint8 [n, ceil(columns/8)]."""
    return np.unpackbits(packed, axis=1, count=columns, bitorder="little")


def pack(bits: NDArray[np.bool_] | U8Array) -> U8Array:
    """Packed rows of bits."""
    return np.packbits(bits, axis=1, bitorder="little")
