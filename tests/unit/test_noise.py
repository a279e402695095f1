"""SI1000: channels counted from the structure of the circuit, refusals, and what a decoder sees."""

from __future__ import annotations

from collections import Counter

import pytest
import stim

from gpu_decoder.build import build_decoder
from hil.device.circuits import from_stim, generated_memory
from hil.device.families import build_models
from hil.device.noise import si1000
from hil.device.sampler import StimSampler
from hil.errors import ScenarioError
from hil.scenario.model import QpuSpec

P = 1.0e-3


def qpu(**circuit: object) -> QpuSpec:
    noise = circuit.pop("noise", {"model": "si1000", "p": P})
    values = {"family": "stim_generated", "rounds": 3, **circuit}
    return QpuSpec.model_validate(
        {"circuit": values, "noise": noise, "round_period_ps": 10**6, "shot_period_ps": 10**9}
    )


def channels(circuit: stim.Circuit) -> Counter[tuple[str, float]]:
    """Qubits (pairs for DEPOLARIZE2) under each channel and strength, blocks unrolled."""
    found: Counter[tuple[str, float]] = Counter()
    for step in circuit.flattened():
        if step.gate_args_copy() and step.name not in {"DETECTOR", "QUBIT_COORDS"}:
            if step.name in {"OBSERVABLE_INCLUDE", "SHIFT_COORDS"}:
                continue
            width = 2 if step.name == "DEPOLARIZE2" else 1
            found[step.name, round(step.gate_args_copy()[0] / P, 6)] += (
                len(step.targets_copy()) // width
            )
    return found


@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
def test_channels_of_the_repetition_code(rounds: int) -> None:
    """d = 4: 4 data, 3 ancillas. Per round two layers of 3 CX (1 idle each) and one of 3 MR."""
    (code,) = build_models(qpu(task="repetition_code:memory", distance=4, rounds=rounds, basis="Z"))
    assert channels(stim.Circuit(code.circuit_text)) == {
        ("DEPOLARIZE2", 1): 6 * rounds,
        ("DEPOLARIZE1", 0.1): 2 * rounds,  # the data qubit without a partner
        ("MR", 5): 3 * rounds,
        ("X_ERROR", 2): 7 + 3 * rounds,  # first resets, and those of MR
        ("M", 5): 4,
        ("DEPOLARIZE1", 2): 4 * rounds + 3,  # data beside MR, ancillas beside the final M
    }


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_channels_of_the_rotated_surface_code(basis: str) -> None:
    """d = 3: 9 data, 4 X and 4 Z ancillas; 24 CX of a round in 4 layers of 6, 5 qubits idle."""
    rounds = 4
    (code,) = build_models(qpu(distance=3, rounds=rounds, basis=basis))
    data_flip, data_readout = ("Z_ERROR", "MX") if basis == "X" else ("X_ERROR", "M")
    want: Counter[tuple[str, float]] = Counter(
        {
            ("DEPOLARIZE2", 1.0): 24 * rounds,
            # two layers with 4 H, where 13 idle, and four layers of CX
            ("DEPOLARIZE1", 0.1): (2 * (4 + 13) + 4 * 5) * rounds,
            ("MR", 5.0): 8 * rounds,
            ("X_ERROR", 2.0): 8 + 8 * rounds,
            (data_readout, 5.0): 9,
            ("DEPOLARIZE1", 2.0): 9 * rounds + 8,
        }
    )
    want[data_flip, 2.0] += 9
    assert channels(stim.Circuit(code.circuit_text)) == want


def test_blocks_stay_blocks_and_unroll_to_the_same() -> None:
    silent = generated_memory("repetition_code:memory", 3, 50, (0.0,) * 4)
    silent.insert(len(silent) - 4, stim.CircuitInstruction("TICK"))
    noisy = si1000(silent, P)
    assert len(str(noisy).splitlines()) < 60
    assert noisy.flattened() == si1000(silent.flattened(), P)
    assert noisy.without_noise() == silent


def test_bookkeeping_is_free_and_gates_on_one_qubit_follow_one_another() -> None:
    text = "R 0 1\nTICK\nM 0\nTICK\nCX rec[-1] 1\nTICK\nH 0 0\nTICK\nMPAD 1\nMRX 0"
    got = si1000(stim.Circuit(text), P)
    assert got == stim.Circuit(
        """
        R 0 1
        X_ERROR(0.002) 0 1
        TICK
        M(0.005) 0
        DEPOLARIZE1(0.002) 1
        TICK
        CX rec[-1] 1
        TICK
        H 0
        DEPOLARIZE1(0.0001) 0
        H 0
        DEPOLARIZE1(0.0001) 0 1
        TICK
        MPAD 1
        MRX(0.005) 0
        Z_ERROR(0.002) 0
        DEPOLARIZE1(0.002) 1
        """
    )


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("H 0\nX_ERROR(0.1) 0", "X_ERROR(0.1) 0"),
        ("REPEAT 3 {\n    M(0.01) 0\n}", "M(0.01) 0"),
        ("HERALDED_ERASE(0.1) 0", "HERALDED_ERASE(0.1) 0"),
        ("MPAD(0.1) 0", "MPAD(0.1) 0"),
        ("MPP X0*X1", "MPP X0*X1"),
        ("MXX 0 1", "MXX 0 1"),
        ("SPP X0*Y1", "SPP X0*Y1"),
    ],
)
def test_what_si1000_does_not_know_is_refused(text: str, got: str) -> None:
    with pytest.raises(ScenarioError) as info:
        si1000(stim.Circuit(text), P)
    assert info.value.got == got


def test_the_logical_error_rate_falls_with_distance() -> None:
    """p = 2e-3 is below the threshold: d = 5 must beat d = 3 by far more than 5 sigma."""
    shots, failures = 40_000, {}
    for distance in (3, 5):
        spec = qpu(distance=distance, rounds=5, basis="Z", noise={"model": "si1000", "p": 2.0e-3})
        (code,) = build_models(spec)
        dem = stim.DetectorErrorModel(code.dem_text)
        assert max(_parts(dem)) <= 2
        decoder = build_decoder("pymatching", code.dem_text)
        failures[distance] = 0
        for batch in StimSampler(code, 7).batches(shots):
            predicted = decoder.decode_batch(batch.detectors_b8).predictions_b8
            failures[distance] += int((predicted != batch.observables_b8).any(axis=1).sum())
    assert failures[5] + 5 * (failures[3] + failures[5]) ** 0.5 < failures[3]
    assert failures[5] > 0


def _parts(dem: stim.DetectorErrorModel) -> list[int]:
    """Detectors in each part of each error."""
    sizes = []
    for error in dem.flattened():
        if error.type == "error":
            part = 0
            for target in error.targets_copy():
                if target.is_separator():
                    sizes.append(part)
                    part = 0
                else:
                    part += target.is_relative_detector_id()
            sizes.append(part)
    return sizes


def test_a_circuit_without_ticks_is_one_layer() -> None:
    circuit = stim.Circuit("R 0\nM 0 1\nDETECTOR(0) rec[-1]\nDETECTOR(1) rec[-2]")
    code = from_stim(si1000(circuit, P), basis="Z", rounds=1)
    assert code.n_detectors == 2
    assert channels(stim.Circuit(code.circuit_text)) == {("X_ERROR", 2): 1, ("M", 5): 2}
