"""The isolated-pair rule: the pre-decoder that a network has to beat.

Two fired detectors that are each other's only fired neighbour in the matching graph are taken for
the ends of one error: both are removed and the observable flip of their edge goes into the frame.
A lone detector beside the boundary stays: what is isolated there may be one end of a longer chain.
No training, no threshold; it knows the matching graph and nothing else.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gpu_decoder.edges import errors
from gpu_decoder.ising.predecoder import Predecoded
from gpu_decoder.protocol import Backend, I64Array, Precision, U8Array, check_rows

_ONE = 1 << 32
"""Added per fired neighbour; below it the indices of the edges add up."""


class PairRule:
    """The rule on one detector error model, as a ``Predecoder``.

    Parallel edges (equal detectors, other observables): the most probable one counts.

    Args:
        dem_text: stim detector error model, decomposed into graphlike parts, one observable.

    Raises:
        ValueError: the model is not graphlike or has more than one observable.
    """

    backend = Backend.NONE
    precision = Precision.NA

    def __init__(self, dem_text: str) -> None:
        import stim
        from scipy.sparse import csr_array

        dem = stim.DetectorErrorModel(dem_text)
        if dem.num_observables > 1:
            raise ValueError(f"the model has {dem.num_observables} observables, allowed: 1")
        self.n_detectors = int(dem.num_detectors)
        self._sha256 = hashlib.sha256(dem_text.encode()).hexdigest()
        self.ends, self.flips = _pairs(dem_text)
        first, second = self.ends.T
        value = _ONE + np.arange(len(first), dtype=np.int64)
        self._neighbours = csr_array(
            (np.tile(value, 2), (np.r_[first, second], np.r_[second, first])),
            shape=(self.n_detectors, self.n_detectors),
        )

    def predecode(self, detectors_b8: U8Array) -> Predecoded:
        """Remove all isolated pairs.

        Args:
            detectors_b8: uint8 [n, ceil(N/8)], LSB first, unchanged.

        Returns:
            Flip of the observable uint8 [n], residual uint8 [n, ceil(N/8)].

        Raises:
            ValueError: the rows are not ceil(N/8) bytes long.
        """
        check_rows(detectors_b8, self.n_detectors)
        bits = np.unpackbits(detectors_b8, axis=1, count=self.n_detectors, bitorder="little")
        shot, edge = self.isolated(bits)
        bits[shot, self.ends[edge, 0]] = 0
        bits[shot, self.ends[edge, 1]] = 0
        flips = np.bincount(shot, self.flips[edge], minlength=len(bits)).astype(np.int64) & 1
        return Predecoded(flips.astype(np.uint8), np.packbits(bits, axis=1, bitorder="little"))

    def isolated(self, detectors: U8Array) -> tuple[I64Array, I64Array]:
        """Isolated pairs of each shot.

        Args:
            detectors: uint8 [n, N], 0 or 1.

        Returns:
            Shot int64 [k] and index into ``ends`` int64 [k] of each pair.
        """
        from scipy.sparse import csr_array

        fired = csr_array(detectors, dtype=np.int64)
        sums: Any = fired @ self._neighbours
        found = sums.multiply(fired).tocoo()  # at fired detectors only
        lonely = found.data >> 32 == 1
        shot, edge = found.coords[0][lonely].astype(np.int64), found.data[lonely] & (_ONE - 1)
        claimed, claims = np.unique(shot * len(self.ends) + edge, return_counts=True)
        both = claimed[claims == 2]
        return both // max(1, len(self.ends)), both % max(1, len(self.ends))

    def fingerprint(self) -> dict[str, str]:
        """What answers: the rule and the SHA-256 of the model text."""
        return {"predecoder": "isolated_pair", "predecoder_dem_sha256": self._sha256}


def _pairs(dem_text: str) -> tuple[I64Array, U8Array]:
    """Edges between two detectors: int64 [E, 2], and whether each flips the observable, uint8 [E].

    An edge's probability is that of an odd number of the errors that hold it.
    """
    known: dict[tuple[int, int], list[float]] = {}
    for p, parts in errors(dem_text):
        for detectors, observables in parts:
            if len(detectors) == 2:
                low, high = sorted(detectors)
                q = known.setdefault((low, high), [0.0, 0.0])
                flip = len(observables) & 1
                q[flip] = q[flip] * (1 - p) + p * (1 - q[flip])
    ends = np.array(sorted(known), dtype=np.int64).reshape(-1, 2)
    flips = [known[low, high] for low, high in ends.tolist()]
    return ends, np.array([with_flip > without for without, with_flip in flips], dtype=np.uint8)
