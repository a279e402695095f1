"""Memory circuits of the Ising family.

Rules as in the reference implementation (NVIDIA/Ising-Decoding, commit 33acb15), restated.
``rounds`` T counts the preparation round and the last, noiseless round: T - 1 rounds are noisy.
X and Z checks share four CNOT layers. Detectors (half = checks of one kind):

    0 .. half-1                       round 0, checks of the memory basis
    half + (t-1) 2 half + i           round t = 1 .. T-1, X check i: m[t] ^ m[t-1]
    half + (t-1) 2 half + half + i    the same, Z check i
    (2T-1) half + i                   data readout against m[T-1], checks of the memory basis

The last block is always 0 here, because the last round and the readout are noiseless. Detectors
have no coordinates: :func:`detector_rounds` tells their round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.geometry import Basis, Geometry
from gpu_decoder.ising.noise import Ising25, IsingNoise

if TYPE_CHECKING:
    import stim


def n_detectors(geometry: Geometry, rounds: int) -> int:
    """N = 2 T half, detectors of one shot."""
    return 2 * rounds * geometry.half


def detector_rounds(geometry: Geometry, rounds: int) -> NDArray[np.int64]:
    """int64 [N]: round of each detector; the readout block counts as round T."""
    half = geometry.half
    return np.repeat(np.arange(rounds + 1), [half, *[2 * half] * (rounds - 1), half])


def memory_circuit(
    geometry: Geometry, rounds: int, basis: Basis, noise: IsingNoise
) -> stim.Circuit:
    """The memory experiment.

    Args:
        geometry: code and orientation.
        rounds: T, at least 2.
        basis: basis of the stored state.
        noise: 25 parameters or one probability; channels of probability 0 are left out.

    Raises:
        ValueError: fewer than 2 rounds.
    """
    import stim

    if rounds < 2:
        raise ValueError(f"{rounds} rounds, allowed: at least 2")
    build = _Builder(geometry, basis, noise)
    text = [*build.first_round()]
    if rounds > 2:
        text += [f"REPEAT {rounds - 2} {{", *build.middle_round(), "}"]
    text += build.last_round()
    return stim.Circuit("\n".join(text))


class _Builder:
    """Lines of stim text, round by round."""

    def __init__(self, geometry: Geometry, basis: Basis, noise: IsingNoise) -> None:
        self.geometry = geometry
        self.basis = basis
        self.flip = "Z_ERROR" if basis == "X" else "X_ERROR"
        self.half = geometry.half
        self.data = range(geometry.n_data)
        self.xa = range(geometry.n_data, geometry.n_data + self.half)
        self.za = range(geometry.n_data + self.half, geometry.n_data + 2 * self.half)
        self.full = noise if isinstance(noise, Ising25) else None
        p = 0.0 if isinstance(noise, Ising25) else noise.p
        self.spam = {
            name: noise[name] if isinstance(noise, Ising25) else 2 * p / 3
            for name in ("p_prep_X", "p_prep_Z", "p_meas_X", "p_meas_Z")
        }
        if isinstance(noise, Ising25):
            self.cnot = ("PAULI_CHANNEL_2", noise.family("p_cnot_"))
            self.idle_cnot = ("PAULI_CHANNEL_1", noise.family("p_idle_cnot_"))
            self.idle_spam = ("PAULI_CHANNEL_1", noise.family("p_idle_spam_"))
        else:
            self.cnot = ("DEPOLARIZE2", (p,))
            self.idle_cnot = self.idle_spam = ("DEPOLARIZE1", (p,))

    def first_round(self) -> list[str]:
        """Preparation of the data and round 0, whose detectors are those of the memory basis."""
        reset = "RX" if self.basis == "X" else "R"
        lines = [f"{reset} {_ids(self.data)}"]
        lines += _channel(self.flip, (self.spam[f"p_prep_{self.basis}"],), self.data)
        lines.append(f"RX {_ids(self.xa)}")
        lines += _channel("Z_ERROR", (self.spam["p_prep_X"],), self.xa)
        lines.append(f"R {_ids(self.za)}")
        lines += _channel("X_ERROR", (self.spam["p_prep_Z"],), self.za)
        lines += ["TICK", *self._layers(noisy=True), "TICK", *self._measure()]
        first = 2 * self.half if self.basis == "X" else self.half
        return lines + [f"DETECTOR rec[{i - first}]" for i in range(self.half)]

    def middle_round(self) -> list[str]:
        """A noisy round between the first and the last."""
        lines = _channel("Z_ERROR", (self.spam["p_prep_X"],), self.xa)
        lines += _channel("X_ERROR", (self.spam["p_prep_Z"],), self.za)
        if self.full is None:
            lines += _channel(*self.idle_spam, self.data)
        lines += ["TICK", *self._layers(noisy=True), "TICK", *self._measure()]
        return lines + self._differences()

    def last_round(self) -> list[str]:
        """The noiseless round and the readout of the data."""
        lines = []
        if self.full is not None:
            lines += _channel(self.flip, (self.spam[f"p_meas_{self.basis}"],), self.data)
        lines += ["TICK", *self._layers(noisy=False), "TICK"]
        lines += [f"MRX {_ids(self.xa)}", f"MR {_ids(self.za)}", *self._differences()]
        lines.append(f"{'MX' if self.basis == 'X' else 'M'} {_ids(self.data)}")
        n_data = self.geometry.n_data
        ancilla = n_data + (2 * self.half if self.basis == "X" else self.half)
        for i, check in enumerate(self.geometry.checks(self.basis)):
            records = [int(q) - n_data for q in np.flatnonzero(check)] + [i - ancilla]
            lines.append("DETECTOR " + " ".join(f"rec[{k}]" for k in records))
        logical = np.flatnonzero(self.geometry.logical(self.basis))
        readout = " ".join(f"rec[{int(q) - n_data}]" for q in logical)
        return [*lines, f"OBSERVABLE_INCLUDE(0) {readout}"]

    def _layers(self, *, noisy: bool) -> list[str]:
        lines = []
        for k in range(4):
            pairs: list[int] = []
            for i in range(self.half):
                x_data, z_data = self.geometry.x_slots[i][k], self.geometry.z_slots[i][k]
                if x_data is not None:
                    pairs += [self.xa[i], x_data]
                if z_data is not None:
                    pairs += [z_data, self.za[i]]
            lines.append(f"CX {_ids(pairs)}")
            if noisy:
                busy = set(pairs)
                idle = [q for q in range(self.za[-1] + 1) if q not in busy]
                lines += _channel(*self.cnot, pairs)
                lines += _channel(*self.idle_cnot, idle)
            lines.append("TICK")
        return lines

    def _measure(self) -> list[str]:
        lines = _channel("Z_ERROR", (self.spam["p_meas_X"],), self.xa)
        lines.append(f"MRX {_ids(self.xa)}")
        lines += _channel("X_ERROR", (self.spam["p_meas_Z"],), self.za)
        lines.append(f"MR {_ids(self.za)}")
        return lines + _channel(*self.idle_spam, self.data)

    def _differences(self) -> list[str]:
        two = 2 * self.half
        return [f"DETECTOR rec[{-k}] rec[{-k - two}]" for k in range(two, 0, -1)]


def _ids(qubits: Iterable[int]) -> str:
    return " ".join(map(str, qubits))


def _channel(name: str, arguments: tuple[float, ...], qubits: Iterable[int]) -> list[str]:
    """One noise instruction; nothing if it does nothing. Ten decimals, as in the reference."""
    if not any(arguments):
        return []
    text = ", ".join(f"{p:.10f}" for p in arguments)
    return [f"{name}({text}) {_ids(qubits)}"]
