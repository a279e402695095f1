"""From the device of a scenario to its circuits: one model, or two whose shots take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_decoder.ising.circuit import detector_rounds, memory_circuit
from gpu_decoder.ising.geometry import geometry
from hil.device.circuits import CodeCircuit, from_stim, generated_memory
from hil.device.error_model import (
    Analysis,
    disjoint_error_model,
    error_model,
    limited_error_model,
)
from hil.device.noise import si1000
from hil.errors import ScenarioError
from hil.scenario.model import (
    Basis,
    FourNoise,
    GeneratedCircuit,
    Ising25Noise,
    IsingCircuit,
    IsingScalarNoise,
    NoiseSpec,
    QpuSpec,
    Si1000Noise,
    UniformNoise,
    UserCircuit,
)

if TYPE_CHECKING:
    import stim

Models: TypeAlias = tuple[CodeCircuit, ...]
"""Shot ``s`` of a run is one of model ``s % len(models)``; all have the same blocks."""


def build_models(qpu: QpuSpec) -> Models:
    """The models of a device, in the order in which their shots take turns.

    Raises:
        ScenarioError: stim refuses the parameters, an error is not graphlike, a detector is not
            deterministic, the noise does not fit, two models differ in shape, or the model of a
            user's circuit is beyond all bounds.
    """
    circuit = qpu.circuit
    if isinstance(circuit, UserCircuit):
        made = _user_circuit(circuit, qpu.noise)
        return (_checked(made, circuit.basis, circuit.rounds, limited_error_model),)
    if isinstance(circuit, IsingCircuit):
        models = tuple(ising_memory(circuit, basis, qpu.noise) for basis in circuit.bases)
    else:
        models = tuple(
            _checked(_generated(circuit, basis, qpu.noise), basis, circuit.rounds)
            for basis in circuit.bases
        )
    _check_alike(models)
    return models


def ising_memory(circuit: IsingCircuit, basis: Basis, noise: NoiseSpec) -> CodeCircuit:
    """The memory experiment of the Ising family in one basis.

    Its detectors have no coordinates, as in the reference: their rounds follow from their order.
    """
    if not isinstance(noise, Ising25Noise | IsingScalarNoise):
        raise TypeError(f"noise is {type(noise).__name__}, allowed: ising25 or ising_scalar")
    code = geometry(circuit.distance, circuit.orientation)
    made = memory_circuit(code, circuit.rounds, basis, noise.parameters)
    blocks = detector_rounds(code, circuit.rounds)
    dem_text = disjoint_error_model(made)
    return CodeCircuit(
        str(made), dem_text, basis, circuit.rounds, 1, blocks[:, None].astype(np.float64)
    )


def _generated(circuit: GeneratedCircuit, basis: str, noise: NoiseSpec) -> stim.Circuit:
    task = circuit.task_of(basis)
    made = generated_memory(task, circuit.distance, circuit.rounds, _four_arguments(noise))
    if isinstance(noise, Si1000Noise):
        return si1000(_with_readout_layer(made), noise.p)
    return made


def _four_arguments(noise: NoiseSpec) -> tuple[float, float, float, float]:
    """Noise arguments of stim's generator, in the order of ``generated_memory``."""
    if isinstance(noise, UniformNoise):
        return (noise.p, noise.p, noise.p, noise.p)
    if isinstance(noise, FourNoise):
        return (
            noise.after_clifford_depolarization,
            noise.before_round_data_depolarization,
            noise.before_measure_flip_probability,
            noise.after_reset_flip_probability,
        )
    return (0.0, 0.0, 0.0, 0.0)


def _with_readout_layer(circuit: stim.Circuit) -> stim.Circuit:
    """Give the final readout a layer of its own.

    Stim writes it behind the last ancilla readout without a TICK, and of three rounds or more
    behind a REPEAT block: whether the data qubits idle in between would depend on the rounds.
    """
    import stim

    last = max(i for i, step in enumerate(circuit) if step.name in {"M", "MX"})
    out = circuit.copy()
    out.insert(last, stim.CircuitInstruction("TICK"))
    return out


def _user_circuit(circuit: UserCircuit, noise: NoiseSpec) -> stim.Circuit:
    import stim

    if circuit.text is None:
        raise ScenarioError(
            "the circuit has no text",
            where="system.qpu.circuit.file",
            got=circuit.file,
            allowed="a scenario that was read from a file",
            fix="load the scenario with hil.scenario.load.load_scenario",
        )
    made = stim.Circuit(circuit.text)
    return si1000(made, noise.p) if isinstance(noise, Si1000Noise) else made


def _checked(
    circuit: stim.Circuit, basis: str, rounds: int, analysis: Analysis = error_model
) -> CodeCircuit:
    """Wrap a circuit; what stim says of one that matching cannot decode becomes one clear error."""
    try:
        return from_stim(circuit, basis=basis, rounds=rounds, analysis=analysis)
    except ValueError as error:
        lines = [line for line in str(error).splitlines() if line]
        raise ScenarioError(
            "the circuit has no graphlike detector error model",
            where="system.qpu.circuit",
            got=" ".join(lines[:2]),
            allowed="deterministic detectors, each error a set of parts with one or two of them",
            fix="matching decoders need this: change the circuit, or declare other detectors",
        ) from error


def _check_alike(models: Models) -> None:
    """Shots that take turns travel in the same frames: their blocks must be the same."""
    first = models[0]
    for other in models[1:]:
        same = np.array_equal(first.detector_block, other.detector_block)
        if not same or first.n_observables != other.n_observables:
            raise ScenarioError(
                "shots that take turns differ in shape",
                where="system.qpu.circuit.basis",
                got=f"{first.block_bits.tolist()} and {other.block_bits.tolist()} detectors",
                allowed="the same detectors in every round",
                fix="write basis: Z or basis: X",
            )
