"""The Ising family against recorded outputs of the reference (``tests/data/ising*``)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pymatching
import pytest
import stim

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import ORIENTATIONS, Basis, geometry
from gpu_decoder.ising.network import forward
from gpu_decoder.ising.noise import Ising25
from gpu_decoder.ising.onnx_model import build_network_onnx, build_onnx
from gpu_decoder.ising.tensors import Layout, threshold
from gpu_decoder.ising.weights import load_weights
from gpu_decoder.protocol import U8Array
from gpu_decoder.runtime.ort import OrtRuntime

DATA = Path(__file__).parents[1] / "data"
MANIFEST = {
    entry["case"]: entry
    for entry in json.loads((DATA / "ising" / "manifest.json").read_text())
    if "case" in entry
}
WEIGHTS = DATA / "ising_e2e" / "custom16_random_fp16.safetensors"


class Case:
    """One recorded case and the layout that its name tells."""

    def __init__(self, name: str) -> None:
        d, rounds, basis, orientation = name.split("_")
        self.arrays = np.load(DATA / "ising" / f"{name}.npz")
        self.text = (DATA / "ising" / f"{name}.stim").read_text()
        self.basis: Basis = "X" if basis == "X" else "Z"
        self.geometry = geometry(int(d[1:]), orientation)
        self.layout = Layout(self.geometry, int(rounds[1:]), self.basis)


@pytest.fixture(params=sorted(MANIFEST))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def dem_of(circuit: stim.Circuit) -> stim.DetectorErrorModel:
    return circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)


def test_files_are_those_of_the_manifest() -> None:
    for name, entry in MANIFEST.items():
        case = Case(name)
        assert hashlib.sha256(case.text.encode()).hexdigest() == entry["circuit_sha256"]
        dets = case.arrays["dets"].tobytes()
        assert hashlib.sha256(dets).hexdigest() == entry["dets_sha256"]


def test_circuit_has_the_recorded_error_model(case: Case) -> None:
    ours = memory_circuit(case.geometry, case.layout.rounds, case.basis, Ising25.from_p(0.01))
    theirs = stim.Circuit(case.text)
    assert dem_of(ours).approx_equals(dem_of(theirs), atol=1e-7)
    d, rounds = case.geometry.distance, case.layout.rounds
    assert ours.num_detectors == case.layout.n_detectors
    assert ours.num_measurements == rounds * (d * d - 1) + d * d


def test_geometry(case: Case) -> None:
    g, recorded = case.geometry, case.arrays
    for name, ours in (
        ("hx", g.hx), ("hz", g.hz), ("lx", g.lx[None]), ("lz", g.lz[None]),
        ("stabx_idx", g.x_cells), ("stabz_idx", g.z_cells),
        ("wx", g.x_presence), ("wz", g.z_presence),
    ):  # fmt: skip
        np.testing.assert_array_equal(ours, recorded[name], name)


def test_input_and_residual(case: Case) -> None:
    recorded, layout = case.arrays, case.layout
    np.testing.assert_array_equal(layout.network_input(recorded["dets"]), recorded["trainX"])
    per_check = layout.per_check(recorded["dets"]).transpose(1, 0, 3, 2)
    np.testing.assert_array_equal(per_check[0], recorded["x_syn"])
    np.testing.assert_array_equal(per_check[1], recorded["z_syn"])
    residual = layout.residual(recorded["dets"], threshold(recorded["logits"], 0.0, 0.0))
    np.testing.assert_array_equal(residual, recorded["L_and_residual"])


def test_matching_of_raw_and_residual_detectors(case: Case) -> None:
    circuit = memory_circuit(case.geometry, case.layout.rounds, case.basis, Ising25.from_p(0.01))
    matching = pymatching.Matching.from_detector_error_model(dem_of(circuit))
    recorded = case.arrays
    np.testing.assert_array_equal(matching.decode_batch(recorded["dets"]), recorded["pm_raw"])
    np.testing.assert_array_equal(
        matching.decode_batch(recorded["L_and_residual"][:, 1:]), recorded["pm_res"]
    )


@pytest.mark.parametrize(("p", "start"), [(0.003, "94753bfb"), (0.006, "6c87e174")])
def test_noise_fingerprint(p: float, start: str) -> None:
    assert Ising25.from_p(p).fingerprint().startswith(start)
    if p == 0.003:
        (last,) = (
            entry
            for entry in json.loads((DATA / "ising" / "manifest.json").read_text())
            if "noise_model_p" in entry
        )
        assert Ising25.from_p(p).fingerprint() == last["sha256"]


@pytest.fixture(scope="module")
def recorded() -> Any:
    return np.load(DATA / "ising_e2e" / "d5_T5_Z_XV.npz")


def test_weights_to_logits_in_numpy(recorded: Any) -> None:
    layout = Layout(geometry(5, "XV"), 5, "Z")
    logits = forward(load_weights(WEIGHTS).layers, layout.network_input(recorded["dets"]))
    assert np.abs(logits - recorded["logits"]).max() < 1e-4
    residual = layout.residual(recorded["dets"], threshold(logits, 0.0, 0.0))
    np.testing.assert_array_equal(residual, recorded["L_and_residual"])


def test_onnx_logits_and_bits(recorded: Any) -> None:
    import onnxruntime

    layout, weights = Layout(geometry(5, "XV"), 5, "Z"), load_weights(WEIGHTS)
    runtime = OrtRuntime(build_onnx(weights, layout))
    np.testing.assert_array_equal(runtime.run(recorded["dets"]), recorded["L_and_residual"])
    bare = onnxruntime.InferenceSession(
        build_network_onnx(weights, layout), providers=["CPUExecutionProvider"]
    )
    (logits,) = bare.run(None, {"grid": layout.network_input(recorded["dets"])})
    assert np.abs(logits - recorded["logits"]).max() < 1e-4


def test_weights_file_is_the_recorded_one() -> None:
    manifest = json.loads((DATA / "ising_e2e" / "manifest.json").read_text())
    weights = load_weights(WEIGHTS)
    assert weights.sha256 == manifest["weights_sha256"]
    assert weights.metadata == manifest["weights_metadata"]
    assert weights.architecture.parameters == manifest["parameters"]


def true_labels(circuit: stim.Circuit, layout: Layout, shots: int) -> tuple[U8Array, ...]:
    """Detectors, observables and the bits that a perfect network would output.

    F[t] is the data's Pauli frame after round t's measurements and m[t] their flips: the data bits
    are F[t] ^ F[t-1], the measurement bits m[t] ^ H F[t]. Frames of measured ancillas are cleared.
    """
    g, rounds, half = layout.geometry, layout.rounds, layout.geometry.half
    simulator = stim.FlipSimulator(batch_size=shots, disable_stabilizer_randomization=True, seed=11)
    ancillas = np.arange(2 * g.n_data - 1) >= g.n_data
    bits = np.zeros((shots, 4, rounds, g.n_data), dtype=np.uint8)
    before = np.zeros((2, shots, g.n_data), dtype=np.uint8)
    t = 0
    for instruction in circuit.flattened():
        simulator.do(instruction)
        if instruction.name != "MR":
            continue
        x, z, m, _, _ = simulator.to_numpy(
            output_xs=True, output_zs=True, output_measure_flips=True
        )
        frames = np.stack([z[: g.n_data].T, x[: g.n_data].T]).astype(np.uint8)
        flips = m[-2 * half :].T.astype(np.uint8).reshape(shots, 2, half)
        for kind, (checks, cells) in enumerate(((g.hx, g.x_cells), (g.hz, g.z_cells))):
            bits[:, kind, t] = frames[kind] ^ before[kind]
            bits[:, 2 + kind, t, cells] = flips[:, kind] ^ (frames[kind] @ checks.T & 1)
        simulator.broadcast_pauli_errors(pauli="X", mask=x & ancillas[:, None])
        simulator.broadcast_pauli_errors(pauli="Z", mask=z & ancillas[:, None])
        before = frames
        t += 1
    detectors = simulator.get_detector_flips().T.astype(np.uint8)
    observables = simulator.get_observable_flips().T.astype(np.uint8)
    return detectors, observables, bits.reshape(shots, *layout.shape)


@pytest.mark.parametrize("basis", ["X", "Z"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("keep_last", [False, True])
def test_true_labels_leave_nothing(orientation: str, basis: Basis, keep_last: bool) -> None:
    """All that may stay is the other basis in the last round, and only where it is masked."""
    layout = Layout(geometry(5, orientation), 6, basis, keep_last)
    circuit = memory_circuit(layout.geometry, 6, basis, Ising25.from_p(0.02))
    detectors, observables, bits = true_labels(circuit, layout, 64)
    assert detectors.mean() > 0.05
    assert 0 < observables.sum() < 64
    out = layout.residual(detectors, bits)
    np.testing.assert_array_equal(out[:, :1], observables)
    half, n = layout.geometry.half, layout.n_detectors
    may_stay = np.zeros(n, dtype=bool)
    if not keep_last:
        start = n - 3 * half + (half if basis == "X" else 0)
        may_stay[start : start + half] = True
    assert not out[:, 1:][:, ~may_stay].any()
    np.testing.assert_array_equal(out[:, 1:][:, may_stay], detectors[:, may_stay])
    broken = bits.copy()
    broken[0, 0 if basis == "X" else 1, 2, 2, 2] ^= 1  # one wrong data bit in the bulk must show
    assert layout.residual(detectors, broken)[:, 1:][0, ~may_stay].sum() == 2
