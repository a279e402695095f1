"""One representative of equivalent labels, so that the network is not asked to guess between them.

Multiplying the data errors of a round by a stabilizer (spacelike), or moving a data error to the
next round with the measurement flips that this costs (timelike), changes neither a detector nor the
observable. Rules as in the reference implementation (NVIDIA/Ising-Decoding, commit 33acb15),
restated; ``he_spacelike_XV.npz`` in ``tests/data/ising`` is its recorded answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.geometry import Geometry, geometry
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.training.kernels import reduce_spacelike, reduce_timelike
from gpu_decoder.ising.training.labels import Labelled
from gpu_decoder.protocol import U8Array


@dataclass(frozen=True)
class _Tables:
    """Index tables of one type of data error; -1 where there is no qubit or check.

    Attributes:
        corners: int64 [half, 4]: qubits of each check of the same type, TL TR BL BR; checks of
            weight 2 fill the first two.
        weights: int64 [half].
        canonical: int64 [half]: qubit that a single error on a weight-2 check moves to.
        seen_by: int64 [d^2, 4]: checks of the opposite type that see a qubit.
    """

    corners: NDArray[np.int64]
    weights: NDArray[np.int64]
    canonical: NDArray[np.int64]
    seen_by: NDArray[np.int64]


@lru_cache(maxsize=64)
def _tables(distance: int, orientation: str, pauli: str) -> _Tables:
    g = geometry(distance, orientation)
    own, other = (g.hx, g.hz) if pauli == "X" else (g.hz, g.hx)
    corners = np.full((g.half, 4), -1, dtype=np.int64)
    canonical = np.full(g.half, -1, dtype=np.int64)
    for i, check in enumerate(own):
        qubits = np.flatnonzero(check)  # row-major: TL TR BL BR
        corners[i, : len(qubits)] = qubits
        if len(qubits) == 2:
            canonical[i] = _canonical(g, int(qubits[0]), int(qubits[1]))
    seen_by = np.full((g.n_data, 4), -1, dtype=np.int64)
    for q in range(g.n_data):
        checks = np.flatnonzero(other[:, q])
        seen_by[q, : len(checks)] = checks
    return _Tables(corners, own.sum(axis=1).astype(np.int64), canonical, seen_by)


def _canonical(g: Geometry, first: int, second: int) -> int:
    """Top edge: right qubit; bottom: left; left edge: top; right: bottom."""
    d = g.distance
    if second == first + 1:
        return second if first < d else first
    return first if first % d == 0 else second


def spacelike(g: Geometry, pauli: str, errors: U8Array, *, boundary: bool = False) -> U8Array:
    """Reduce data errors by the stabilizers of their own type.

    Args:
        g: the code.
        pauli: "X" or "Z", type of the errors.
        errors: uint8 [..., d^2].
        boundary: also move a single error on a weight-2 check to its canonical qubit (as the
            training path of the reference does).

    Returns:
        uint8 of the same shape, newly allocated.
    """
    t = _tables(g.distance, g.orientation, pauli)
    out = np.ascontiguousarray(errors, dtype=np.uint8).reshape(-1, g.n_data).copy()
    reduce_spacelike(out, t.corners, t.weights, t.canonical, x_type=pauli == "X", boundary=boundary)
    return out.reshape(errors.shape)


def equivalent(layout: Layout, shots: Labelled) -> Labelled:
    """The representative of labelled shots: spacelike, timelike, spacelike; detectors unchanged."""
    g, memory = layout.geometry, layout.basis
    data, checks = shots.data.copy(), shots.checks.copy()
    events = layout.per_check(shots.detectors)
    for kind, pauli in enumerate("ZX"):
        t = _tables(g.distance, g.orientation, pauli)
        errors = np.ascontiguousarray(data[:, kind])
        flips = np.ascontiguousarray(checks[:, kind])
        flat = errors.reshape(-1, g.n_data)
        tables = (t.corners, t.weights, t.canonical)
        reduce_spacelike(flat, *tables, x_type=pauli == "X", boundary=True)
        first = 1 if pauli == memory else 0
        reduce_timelike(errors, flips, np.ascontiguousarray(events[:, kind]), t.seen_by, first)
        reduce_spacelike(flat, *tables, x_type=pauli == "X", boundary=True)
        data[:, kind], checks[:, kind] = errors, flips
    return replace(shots, data=data, checks=checks)
