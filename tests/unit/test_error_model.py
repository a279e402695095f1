"""The analysis of a user's circuit ends within its limits, whatever the circuit asks for."""

from __future__ import annotations

import resource

import pytest
import stim

from hil.device import error_model as module
from hil.device.circuits import generated_memory
from hil.device.error_model import error_model, limited_error_model
from hil.device.noise import si1000
from hil.errors import ScenarioError


def spread(qubits: int, detectors: int) -> stim.Circuit:
    """Each of ``qubits`` flips each of ``detectors``: the analysis holds their product."""
    targets = " ".join(f"{i} 0" for i in range(1, qubits))
    return stim.Circuit(
        f"R 0 1\nX_ERROR(0.01) 1\nCX {targets}\nM 0\n"
        f"REPEAT {detectors} {{\nDETECTOR(0) rec[-1]\n}}\nOBSERVABLE_INCLUDE(0) rec[-1]"
    )


def children_kib() -> int:
    """Largest resident size of a child so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_the_model_is_the_same_in_a_process_of_its_own() -> None:
    circuit = generated_memory("surface_code:rotated_memory_z", 3, 5, (0.01, 0.01, 0.01, 0.01))
    assert limited_error_model(circuit) == error_model(circuit)


def test_what_stim_says_against_a_circuit_comes_back() -> None:
    with pytest.raises(ValueError, match="non-deterministic"):
        limited_error_model(stim.Circuit("H 0\nM 0\nDETECTOR(0) rec[-1]"))


def test_a_few_lines_that_ask_for_gigabytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limits of a file (65,536 qubits, 1,048,576 detectors) it would be 512 GiB."""
    monkeypatch.setattr(module, "MODEL_BYTES", 256 << 20)
    with pytest.raises(ScenarioError, match="too large") as info:
        limited_error_model(spread(8192, 16384))  # 1 GiB
    assert info.value.got == "the analysis ran out of memory"
    assert children_kib() < 2 << 20


def test_an_analysis_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODEL_CPU_S", 1)
    pairs = " ".join(f"{i} {i + 1}" for i in range(999))
    circuit = stim.Circuit(f"REPEAT 90000 {{\nCX {pairs}\n}}\n")
    circuit.append("M", range(1000))
    circuit += stim.Circuit("REPEAT 16384 {\nDETECTOR(0) rec[-1]\n}")
    with pytest.raises(ScenarioError) as info:
        limited_error_model(circuit)
    assert info.value.got == "the analysis was ended by SIGXCPU"


def test_noise_of_many_layers_on_many_qubits_is_refused() -> None:
    layers = "TICK\nH 0\n" * 20_000
    with pytest.raises(ScenarioError, match="SI1000 adds too much noise"):
        si1000(stim.Circuit("R 0 1\nX " + " ".join(map(str, range(2000))) + "\n" + layers), 0.001)
