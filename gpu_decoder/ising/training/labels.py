"""Labelled shots of an Ising memory circuit: what was detected and which Paulis did it.

The noise of one shot is followed as Pauli frames (stim's ``FlipSimulator``) through the circuit,
cut behind each round's ancilla readout. With F[t] the frame of the data qubits there and m[t] the
flips of the ancilla readouts, the labels of round t are the change e[t] = F[t] ^ F[t-1] of the
frame and the measurement flips y[t] = m[t] ^ H F[t]; they explain the detectors completely.
Definitions as in the reference implementation (NVIDIA/Ising-Decoding, commit 33acb15), restated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.noise import IsingNoise
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.protocol import U8Array

if TYPE_CHECKING:
    import stim


@dataclass(frozen=True)
class Labelled:
    """Shots with their cause.

    Attributes:
        detectors: uint8 [n, N].
        observable: uint8 [n], flip of the logical.
        data: uint8 [n, 2, T, d^2]: Z-type, then X-type change of the data frame per round.
        checks: uint8 [n, 2, T, half]: measurement flips of X checks, then of Z checks.
    """

    detectors: U8Array
    observable: U8Array
    data: U8Array
    checks: U8Array


class LabelSampler:
    """Labelled shots of one circuit.

    Args:
        layout: code, rounds and basis.
        noise: noise of the circuit.
    """

    def __init__(self, layout: Layout, noise: IsingNoise) -> None:
        self.layout = layout
        self.noise = noise

    @cached_property
    def _pieces(self) -> list[stim.Circuit]:
        """The circuit without repeats, cut behind each round's ancilla readout."""
        import stim

        layout = self.layout
        flat = memory_circuit(layout.geometry, layout.rounds, layout.basis, self.noise).flattened()
        pieces = [stim.Circuit()]
        for step in flat:
            if step.name in ("DETECTOR", "OBSERVABLE_INCLUDE", "MX", "M"):
                continue
            pieces[-1].append(step)
            if step.name == "MR":
                pieces.append(stim.Circuit())
        return pieces[: layout.rounds]

    def sample(self, n: int, seed: int) -> Labelled:
        """Draw n shots.

        Args:
            n: number of shots.
            seed: of this call alone.
        """
        frames, flips = self._frames(n, seed)
        g, rounds = self.layout.geometry, self.layout.rounds
        changes = frames.copy()
        changes[:, :, 1:] ^= frames[:, :, :-1]
        syndromes = np.stack([_parity(frames[:, 0], g.hx), _parity(frames[:, 1], g.hz)], axis=1)
        memory = 0 if self.layout.basis == "X" else 1
        logical = np.flatnonzero(g.logical(self.layout.basis))
        events = flips.copy()
        events[:, :, 1:] ^= flips[:, :, :-1]
        detectors = np.concatenate(
            [
                events[:, memory, 0],
                events[:, :, 1:].transpose(0, 2, 1, 3).reshape(n, -1),
                flips[:, memory, -1] ^ syndromes[:, memory, rounds - 1],
            ],
            axis=1,
        )
        observable = frames[:, memory, -1][:, logical].sum(axis=1) & 1
        return Labelled(
            np.ascontiguousarray(detectors),
            observable.astype(np.uint8),
            changes,
            flips ^ syndromes,
        )

    def _frames(self, n: int, seed: int) -> tuple[U8Array, U8Array]:
        """Data frames (Z type, X type) and readout flips (X, Z checks) per round."""
        import stim

        g, half = self.layout.geometry, self.layout.geometry.half
        n_qubits = g.n_data + 2 * half
        simulator = stim.FlipSimulator(
            batch_size=n,
            num_qubits=n_qubits,
            disable_stabilizer_randomization=True,
            seed=seed,
        )
        frames = np.empty((n, 2, self.layout.rounds, g.n_data), dtype=np.uint8)
        for t, piece in enumerate(self._pieces):
            simulator.do(piece)
            xs, zs, *_ = simulator.to_numpy(output_xs=True, output_zs=True)
            frames[:, 0, t] = zs[: g.n_data].T
            frames[:, 1, t] = xs[: g.n_data].T
            # What is left on a reset ancilla is trivial, but would spread in the next round.
            for pauli, mask in (("X", xs), ("Z", zs)):
                on_ancillas = mask.copy()
                on_ancillas[: g.n_data] = False
                simulator.broadcast_pauli_errors(pauli=pauli, mask=on_ancillas)
        flips = simulator.to_numpy(output_measure_flips=True)[2]
        by_round = flips.reshape(self.layout.rounds, 2, half, n).transpose(3, 1, 0, 2)
        return frames, np.ascontiguousarray(by_round, dtype=np.uint8)


def _parity(frames: U8Array, checks: U8Array) -> U8Array:
    counts = frames.astype(np.float32) @ checks.T.astype(np.float32)
    return counts.astype(np.uint8) & np.uint8(1)


def label_grid(layout: Layout, shots: Labelled) -> NDArray[np.uint8]:
    """Labels on the grids of the network's output, uint8 [n, 4, T, d, d]."""
    g = layout.geometry
    grid = np.zeros((len(shots.data), 4, layout.rounds, g.n_data), dtype=np.uint8)
    grid[:, :2] = shots.data
    grid[:, 2][:, :, g.x_cells] = shots.checks[:, 0]
    grid[:, 3][:, :, g.z_cells] = shots.checks[:, 1]
    return grid.reshape(-1, *layout.shape)
