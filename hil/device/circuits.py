"""Memory experiments as stim circuits, and the map from detectors to blocks on the wire.

A shot has ``rounds`` rounds of stabiliser measurement and a final data readout: ``rounds + 1``
*blocks*. A detector belongs to the block named by its last coordinate; its *slot* is its place
among the detectors of that block, in stim's order. For the rotated surface code with d = 5 and 5
rounds the blocks hold 12, 24, 24, 24, 24 and 12 detectors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hil.device.coordinates import detector_coordinates
from hil.device.error_model import Analysis, error_model
from hil.errors import ScenarioError

if TYPE_CHECKING:
    import stim


@dataclass(frozen=True)
class CodeCircuit:
    """A memory experiment with its detector error model and its wire layout.

    Attributes:
        circuit_text: the stim circuit, with noise.
        dem_text: detector error model, decomposed into graphlike parts.
        basis: ``"X"`` or ``"Z"``, the basis of the stored logical state.
        n_rounds: rounds of stabiliser measurement (blocks minus one).
        n_observables: O.
        coords: float32 or float64 [D, k], detector coordinates; the last one is the block. Of a
            circuit without coordinates [D, 1], the blocks alone.
    """

    circuit_text: str
    dem_text: str
    basis: str
    n_rounds: int
    n_observables: int
    coords: NDArray[np.floating[Any]]

    @property
    def n_detectors(self) -> int:
        """D."""
        return int(self.coords.shape[0])

    @property
    def n_blocks(self) -> int:
        """Blocks of a shot: rounds and the final readout."""
        return self.n_rounds + 1

    @cached_property
    def detector_block(self) -> NDArray[np.uint32]:
        """uint32 [D]: block of each detector (its last coordinate)."""
        return self.coords[:, -1].astype(np.uint32)

    @cached_property
    def detector_slot(self) -> NDArray[np.uint16]:
        """uint16 [D]: place of each detector inside its block."""
        order, sizes = self.wire_order, self.block_bits
        slot = np.empty(self.n_detectors, dtype=np.uint16)
        slot[order] = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return slot

    @cached_property
    def block_bits(self) -> NDArray[np.int64]:
        """int64 [n_blocks]: detectors per block."""
        return np.bincount(self.detector_block, minlength=self.n_blocks).astype(np.int64)

    @property
    def wire_order(self) -> NDArray[np.int64]:
        """int64 [D]: detector indices sorted by block, then slot."""
        block = self.detector_block
        if bool((block[1:] >= block[:-1]).all()):
            return np.arange(self.n_detectors, dtype=np.int64)
        return np.argsort(block, kind="stable").astype(np.int64)

    @property
    def circuit_sha256(self) -> str:
        """SHA-256 of the circuit text."""
        return hashlib.sha256(self.circuit_text.encode()).hexdigest()

    @property
    def dem_sha256(self) -> str:
        """SHA-256 of the model text."""
        return hashlib.sha256(self.dem_text.encode()).hexdigest()


def surface_memory(*, distance: int, rounds: int, basis: str, p: float) -> CodeCircuit:
    """Rotated surface code memory of ``stim.Circuit.generated`` with uniform noise.

    Uniform: all four noise arguments of stim's generator equal ``p`` (``uniform4(p)``). Errors
    are decomposed with approximations off: the generator makes independent channels only.

    Raises:
        ScenarioError: stim refuses the parameters, or a detector lies outside the rounds.
    """
    task = f"surface_code:rotated_memory_{basis.lower()}"
    circuit = generated_memory(task, distance, rounds, (p, p, p, p))
    return from_stim(circuit, basis=basis, rounds=rounds)


def generated_memory(
    task: str, distance: int, rounds: int, noise: tuple[float, float, float, float]
) -> stim.Circuit:
    """The circuit of ``stim.Circuit.generated``.

    Args:
        task: name of the experiment in stim.
        distance: code distance.
        rounds: rounds of stabiliser measurement.
        noise: after_clifford_depolarization, before_round_data_depolarization,
            before_measure_flip_probability, after_reset_flip_probability.

    Raises:
        ScenarioError: stim refuses the parameters.
    """
    import stim

    try:
        return stim.Circuit.generated(
            task,
            distance=distance,
            rounds=rounds,
            after_clifford_depolarization=noise[0],
            before_round_data_depolarization=noise[1],
            before_measure_flip_probability=noise[2],
            after_reset_flip_probability=noise[3],
        )
    except ValueError as error:
        raise ScenarioError(
            "stim cannot generate this circuit",
            where="system.qpu.circuit",
            got=f"{task}, distance {distance}, rounds {rounds}",
            allowed="what stim.Circuit.generated accepts",
            fix=str(error),
        ) from error


def from_stim(
    circuit: object, *, basis: str, rounds: int, analysis: Analysis = error_model
) -> CodeCircuit:
    """Wrap a ``stim.Circuit`` whose detectors carry their block as last coordinate, 0..rounds.

    Raises:
        ScenarioError: a detector has no coordinates or lies outside 0..rounds.
        ValueError: stim finds no model that is graphlike.
    """
    import stim

    if not isinstance(circuit, stim.Circuit):
        raise TypeError(f"circuit is {type(circuit).__name__}, allowed: stim.Circuit")
    coords, lengths = detector_coordinates(circuit)
    block = coords[:, -1]
    bad = np.flatnonzero((lengths == 0) | ~((block >= 0) & (block <= rounds)))
    if bad.size:
        first = int(bad[0])
        raise ScenarioError(
            f"detector D{first} lies in no round",
            where="system.qpu.circuit",
            got=f"coordinates {coords[first, coords.shape[1] - lengths[first] :].tolist()}",
            allowed=f"last coordinate 0..{rounds}",
            fix="give every DETECTOR its round as last coordinate",
        )
    dem_text = analysis(circuit)
    return CodeCircuit(str(circuit), dem_text, basis, rounds, int(circuit.num_observables), coords)
