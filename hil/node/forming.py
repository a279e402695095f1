"""From the bits of a shot's messages to its detection events.

Bits are detection events already, or raw measurements: then a detector is the parity of the
measurements in its row of D, inverted where that parity is 1 without noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hil.node.config import DetectorMap, NodeConfig

Bits = NDArray[np.uint8]


class Forming:
    """Collects the bits of a shot block by block, in any order, and forms its events.

    Args:
        config: the node's configuration; shots of several models take turns.
    """

    def __init__(self, config: NodeConfig) -> None:
        sizes = config.block_bits
        self._n_bits = sum(sizes)
        self._places: list[slice | NDArray[np.int64]] = list(config.detector_index)
        self._maps: list[tuple[NDArray[np.int64], Bits]] = []
        if config.payload == "measurements":
            edges = np.cumsum([0, *sizes])
            self._places = [slice(a, a + n) for a, n in zip(edges, sizes, strict=False)]
            self._maps = [self._matrix(one) for one in config.detector_maps]

    def _matrix(self, one: DetectorMap) -> tuple[NDArray[np.int64], Bits]:
        """int64 [D, k]: the rows, filled up with a bit that is always 0; uint8 [D]: inverted."""
        width = max(map(len, one.rows))
        terms = np.full((len(one.rows), width), self._n_bits, np.int64)
        for row, members in zip(terms, one.rows, strict=True):
            row[: len(members)] = members
        inverted = np.zeros(len(one.rows), np.uint8)
        inverted[list(one.inverted)] = 1
        return terms, inverted

    def empty(self) -> Bits:
        """uint8 [bits]: one byte per bit of a shot, none has arrived."""
        return np.zeros(self._n_bits, np.uint8)

    def place(self, bits: Bits, block: int, packed: bytes) -> None:
        """Put the bits of a block, LSB first, where they belong."""
        place = self._places[block]
        count = len(bits[place])
        bits[place] = np.unpackbits(np.frombuffer(packed, np.uint8), count=count, bitorder="little")

    def events(self, shot: int, bits: Bits) -> Bits:
        """uint8 [D]: detection events of ``shot``, whose blocks are all placed."""
        if not self._maps:
            return bits
        terms, inverted = self._maps[shot % len(self._maps)]
        padded = np.append(bits, np.uint8(0))
        formed: Bits = np.bitwise_xor.reduce(padded[terms], axis=1)
        return formed ^ inverted
