"""Scenario to the files of NVIDIA's decoding server, and back through our own strict readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.edges import edge_matrices
from gpu_decoder.matching import MatchingDecoder
from hil.device.measurements import measurement_layout
from hil.device.sampler import StimSampler
from hil.errors import ScenarioError, TraceError
from hil.run.export_cudaq import CONFIG, FRAMES, SYNDROMES, export_cudaq, server_matching
from hil.run.parts import build_circuits
from hil.scenario.load import load_scenario
from hil.trace.exchange.cudaq_yaml import read_config, read_matcher
from hil.trace.exchange.syndromes_text import read_syndromes
from hil.wire.rpc import EnqueueSyndromes, GetCorrections, parse_request

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "surface_d5.yaml"
SHOTS = 400
CHANGES = (
    f"run.shots={SHOTS}", "run.warmup.shots=0", "expect={}",
    "system.qpu.circuit={family: stim_generated, distance: 3, rounds: 3, basis: Z}",
    "system.qpu.noise={model: stim_uniform, p: 0.01}",
)  # fmt: skip


@pytest.fixture(scope="module")
def code():
    return build_circuits(load_scenario(SCENARIO, overrides=CHANGES).scenario)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cudaq") / "set"
    export_cudaq(SCENARIO, out, overrides=CHANGES)
    return out


def unpacked(rows: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(rows, axis=1, count=count, bitorder="little")


def test_matrices_come_back_as_those_of_the_error_model(folder: Path, code) -> None:
    found, wanted = read_matcher(folder / CONFIG), edge_matrices(code.dem_text)
    assert (found.edges.checks != wanted.checks).nnz == 0
    assert (found.edges.observables != wanted.observables).nnz == 0
    assert np.array_equal(found.edges.priors, wanted.priors)  # to the last bit
    assert found.rows == measurement_layout(code).rows


def test_d_of_the_file_applied_to_its_measurements_gives_the_detectors(folder: Path, code) -> None:
    layout, rows = measurement_layout(code), read_matcher(folder / CONFIG).rows
    read = read_syndromes(folder / SYNDROMES, layout.block_bits.tolist())
    bits = unpacked(read.measurements_b8, layout.n_measurements)
    formed = np.stack([bits[:, list(row)].sum(axis=1) & 1 for row in rows], axis=1)
    seed = load_scenario(SCENARIO, overrides=CHANGES).scenario.run.seed
    batch = next(StimSampler(code, seed).batches(SHOTS))
    assert np.array_equal(formed, unpacked(batch.detectors_b8, code.n_detectors))
    assert formed.any()


def test_corrections_are_those_of_the_files_own_matrices_and_correct(folder: Path, code) -> None:
    """As the server computes them; as good as matching on the model itself."""
    layout = measurement_layout(code)
    read = read_syndromes(folder / SYNDROMES, layout.block_bits.tolist())
    seed = load_scenario(SCENARIO, overrides=CHANGES).scenario.run.seed
    batch = next(StimSampler(code, seed).batches(SHOTS))
    events = unpacked(batch.detectors_b8, code.n_detectors)
    matching = server_matching(read_matcher(folder / CONFIG).edges)
    assert np.array_equal(matching.decode_batch(events)[:, 0], read.corrections)
    ours = MatchingDecoder(code.dem_text, correlated=False).decode_batch(batch.detectors_b8)
    truth = batch.observables_b8[:, 0] & 1
    wrong, wrong_ours = (
        (read.corrections != truth).sum(),
        (ours.predictions_b8[:, 0] != truth).sum(),
    )
    assert truth.sum() > 0
    assert abs(int(wrong) - int(wrong_ours)) <= 5  # equal seeds: exact, and close but for ties


def test_frames_are_rounds_and_requests_of_the_same_shots(folder: Path, code) -> None:
    told = json.loads((folder / "playback.json").read_text())
    layout = measurement_layout(code)
    shape = (told["shots"], told["frames_per_shot"], told["frame_bytes"])
    frames = np.fromfile(folder / FRAMES, np.uint8).reshape(shape)
    assert shape[:2] == (SHOTS, code.n_blocks + 1)
    assert told["frame_bytes"] % 64 == 0
    read = read_syndromes(folder / SYNDROMES, layout.block_bits.tolist())
    bits = unpacked(read.measurements_b8, layout.n_measurements)
    for shot in (0, 1, SHOTS - 1):
        seen = []
        for k, frame in enumerate(frames[shot]):
            request = parse_request(frame.tobytes(), "nvidia")
            assert request.request_id == shot * shape[1] + k
            if k < code.n_blocks:
                assert isinstance(request, EnqueueSyndromes)
                assert request.counter == request.request_id
                packed = np.frombuffer(request.bits, np.uint8)
                count = request.num_syndromes
                seen.append(np.unpackbits(packed, count=count, bitorder="little"))
            else:
                assert isinstance(request, GetCorrections)
                assert (request.return_size, request.reset) == (1, 1)
        assert np.array_equal(np.concatenate(seen), bits[shot])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:7], "x", *lines[8:]], "0 or 1"),
        (lambda lines: [*lines[:7], *lines[8:]], "0 or 1"),  # a short round
        (lambda lines: [*lines[:7], "1", *lines[7:]], "ROUND_START 1"),  # a long round
        (lambda lines: [*lines[:-2], "CORRECTIONS_END"], "0 or 1"),  # a correction is missing
        (lambda lines: [*lines[:-1], "1", "CORRECTIONS_END"], "CORRECTIONS_END"),
        (lambda lines: [li for li in lines if li != "ROUND_START 2"], "ROUND_START 2"),
        (lambda lines: lines[:-1], "CORRECTIONS_END"),
        (lambda lines: ["NUM_DATA 10", *lines[1:]], "NUM_DATA 9"),
        (lambda lines: [*lines[:2], "SHOT_START 1", *lines[3:]], "SHOT_START 0"),
    ],
)
def test_sloppy_syndromes_are_refused_by_line(
    folder: Path, code, tmp_path: Path, change, message: str
) -> None:
    lines = (folder / SYNDROMES).read_text().splitlines()
    assert change(lines) != lines
    bad = tmp_path / "bad.txt"
    bad.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(TraceError, match=message) as found:
        read_syndromes(bad, measurement_layout(code).block_bits.tolist())
    assert found.value.where.startswith(f"{bad}:")


def test_rounds_without_marks_are_read_too(folder: Path, code, tmp_path: Path) -> None:
    lines = (folder / SYNDROMES).read_text().splitlines()
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(li for li in lines if not li.startswith("ROUND")) + "\n")
    sizes = measurement_layout(code).block_bits.tolist()
    left, right = read_syndromes(plain, sizes), read_syndromes(folder / SYNDROMES, sizes)
    assert np.array_equal(left.measurements_b8, right.measurements_b8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    type: pymatching\n", "    type: pymatching\n    kind: x\n", "unknown key"),
        ("    block_size:", "    block_sizes:", "unknown key"),
        ("      merge_strategy: disallow", "      lut_error_depth: 1", "unknown key"),
        ("      merge_strategy: disallow", "      merge_strategy: any", "no such strategy"),
        ("    type: pymatching\n", "", "missing key"),
        ("    syndrome_size: 24", "    syndrome_size: 23", "rows do not fit"),
        ("    syndrome_size: 24", "    syndrome_size: many", "value does not fit"),
        ("    id: 0", "    id: 0\n    dispatch: gpu", "no such dispatch"),
        ("decoders:", "decoders: []\nothers:", "unknown key"),
        ("decoders:", "decoders: value does not fit\n  nothing: [", "not a readable YAML file"),
    ],
)
def test_what_the_server_would_refuse_is_refused(
    folder: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (folder / CONFIG).read_text().replace("  - id: 0\n", "  -\n    id: 0\n")
    assert old in text
    bad = tmp_path / "bad.yml"
    bad.write_text(text.replace(old, new))
    with pytest.raises(TraceError, match=message):
        read_matcher(bad)


def test_other_decoder_types_are_checked_by_their_own_arguments(tmp_path: Path) -> None:
    body = (
        "H_sparse: [0, -1], O_sparse: [0, -1], D_sparse: [0, -1], block_size: 1, syndrome_size: 1"
    )
    file = tmp_path / "c.yml"
    good = "decoder_custom_args: {lut_error_depth: 2}"
    file.write_text(f"decoders: [{{id: 0, type: multi_error_lut, {body}, {good}}}]\n")
    assert read_config(file)[0]["decoder_custom_args"] == {"lut_error_depth": 2}
    file.write_text(f"decoders: [{{id: 0, type: single_error_lut, {body}, {good}}}]\n")
    with pytest.raises(TraceError, match="unknown key"):
        read_config(file)
    file.write_text("decoders: [{id: 0, type: pymatching, stim_dem_path: x}]\n")
    with pytest.raises(TraceError, match="no error model"):
        read_config(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("system.qpu.circuit.basis=alternate", "bases that alternate"),
        ("system.qpu.circuit={family: stim_generated, distance: 3, rounds: 3, basis: Z}", ""),
    ],
)
def test_what_the_server_cannot_express_is_refused(
    tmp_path: Path, change: str, message: str
) -> None:
    if not message:
        export_cudaq(SCENARIO, tmp_path / "set", overrides=[*CHANGES, change, "run.shots=3"])
        return
    with pytest.raises(ScenarioError, match=message):
        export_cudaq(SCENARIO, tmp_path / "set", overrides=[*CHANGES, change])
    assert not (tmp_path / "set").exists()
