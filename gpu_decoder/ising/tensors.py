"""What stands around the network: detectors -> input tensor; output bits -> residual, frame.

Rules as in the reference implementation (NVIDIA/Ising-Decoding, commit 33acb15), restated. Axes of
all grids are (channel, round, row, col). Network input: X detectors, Z detectors, presence of X
checks, presence of Z checks. Network output: Z-type data flips e_z, X-type data flips e_x,
measurement flips y_x at the cells of X checks, y_z at those of Z checks; a bit is 1 where its
logit reaches the threshold.

Compatible with the reference means that the other basis is masked at round 0 and round T-1: bits
and presence there are 0, so true detectors of that block never reach the residual. ``Layout`` with
``keep_last`` passes that block on to the matcher instead (see docs/predecoder.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.circuit import n_detectors
from gpu_decoder.ising.geometry import Basis, Geometry
from gpu_decoder.protocol import U8Array

F32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Where each detector of a shot lies on the grids of the network.

    Attributes:
        geometry: the code.
        rounds: T, at least 2.
        basis: memory basis.
        keep_last: add the true detectors of the other basis in round T-1 to the residual, which
            the reference drops. Leaves the network's input as it is.
    """

    geometry: Geometry
    rounds: int
    basis: Basis
    keep_last: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"{self.rounds} rounds, allowed: at least 2")

    @property
    def n_detectors(self) -> int:
        """N = 2 T half."""
        return n_detectors(self.geometry, self.rounds)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(4, T, d, d): shape of the input and of the output of the network for one shot."""
        d = self.geometry.distance
        return (4, self.rounds, d, d)

    @cached_property
    def presence(self) -> F32Array:
        """float32 [2, T, d^2]: the two presence channels, masked where the basis is."""
        one = np.stack([self.geometry.x_presence, self.geometry.z_presence])
        presence = np.repeat(one[:, None, :], self.rounds, axis=1)
        other = 1 if self.basis == "X" else 0
        presence[other, [0, self.rounds - 1]] = 0.0
        presence.setflags(write=False)
        return presence

    def per_check(self, detectors: U8Array) -> U8Array:
        """Masked detectors by kind, round and check.

        Args:
            detectors: uint8 [n, N], 0 or 1.

        Returns:
            uint8 [n, 2, T, half]: X checks, Z checks; 0 where masked.
        """
        half, rounds = self.geometry.half, self.rounds
        out = np.zeros((len(detectors), 2, rounds, half), dtype=np.uint8)
        memory = 0 if self.basis == "X" else 1
        out[:, memory, 0] = detectors[:, :half]
        later = detectors[:, half : (2 * rounds - 1) * half].reshape(-1, rounds - 1, 2, half)
        out[:, :, 1:] = later.transpose(0, 2, 1, 3)
        out[:, 1 - memory, rounds - 1] = 0
        return out

    def network_input(self, detectors: U8Array) -> F32Array:
        """Input of the network.

        Args:
            detectors: uint8 [n, N], 0 or 1.

        Returns:
            float32 [n, 4, T, d, d].
        """
        bits = self.per_check(detectors)
        grid = np.zeros((len(detectors), 4, self.rounds, self.geometry.n_data), dtype=np.float32)
        grid[:, 0][:, :, self.geometry.x_cells] = bits[:, 0]
        grid[:, 1][:, :, self.geometry.z_cells] = bits[:, 1]
        grid[:, 2:] = self.presence
        return grid.reshape(-1, *self.shape)

    def residual(self, detectors: U8Array, bits: U8Array) -> U8Array:
        """What the matcher still has to do, and what the network did to the observable.

        Args:
            detectors: uint8 [n, N].
            bits: uint8 [n, 4, T, d, d], output bits of the network.

        Returns:
            uint8 [n, 1 + N]: the flip of the observable, then the residual detectors.
        """
        g, n, rounds, half = self.geometry, len(detectors), self.rounds, self.geometry.half
        flat = bits.reshape(n, 4, rounds, g.n_data)
        seen = self.per_check(detectors)
        parts = []
        for kind, data, cells in ((0, flat[:, 0], g.x_cells), (1, flat[:, 1], g.z_cells)):
            flips = flat[:, 2 + kind][:, :, cells]
            checks = (g.hx, g.hz)[kind]
            part = seen[:, kind] ^ flips ^ _parities(data, checks)
            part[:, 1:] ^= flips[:, :-1]
            parts.append(part)
        memory = 0 if self.basis == "X" else 1
        if self.keep_last:
            last = detectors[:, (2 * rounds - 3) * half : (2 * rounds - 1) * half]
            parts[1 - memory][:, -1] ^= last.reshape(n, 2, half)[:, 1 - memory]
        out = np.empty((n, 1 + self.n_detectors), dtype=np.uint8)
        logical = np.flatnonzero(g.logical(self.basis))
        out[:, 0] = flat[:, memory][:, :, logical].sum(axis=(1, 2)) & 1
        out[:, 1 : 1 + half] = parts[memory][:, 0]
        later = np.stack([parts[0][:, 1:], parts[1][:, 1:]], axis=2)
        out[:, 1 + half : 1 + (2 * rounds - 1) * half] = later.reshape(n, -1)
        out[:, 1 + (2 * rounds - 1) * half :] = detectors[:, (2 * rounds - 1) * half :]
        return out


def _parities(data: U8Array, checks: U8Array) -> U8Array:
    """Parity of each check, uint8 [n, T, half], for data bits uint8 [n, T, d^2]."""
    counts = data.astype(np.float32) @ checks.T.astype(np.float32)
    return counts.astype(np.uint8) & np.uint8(1)


def threshold(logits: F32Array, data: float, syndrome: float) -> U8Array:
    """Output bits: 1 where a logit reaches its threshold.

    Args:
        logits: float32 [n, 4, T, d, d].
        data: threshold of the two data channels.
        syndrome: threshold of the two measurement channels.

    Returns:
        uint8 of the same shape.
    """
    limits = np.array([data, data, syndrome, syndrome], dtype=np.float32)
    return (logits >= limits[:, None, None, None]).astype(np.uint8)
