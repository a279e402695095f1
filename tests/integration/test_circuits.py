"""Circuits of every family through device, run and trace; shots of two bases in turn."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import stim

import hil
from gpu_decoder.build import build_decoder
from gpu_decoder.turns import build_turns
from hil.cli.app import run_app
from hil.device.circuits import CodeCircuit
from hil.device.families import build_models
from hil.device.sampler import BlockCutter, StimSampler, SyndromeFormer
from hil.errors import ScenarioError
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.scenario.load import load_scenario
from hil.scenario.model import QpuSpec
from hil.trace.validate import validate_trace

UNIFORM = {"model": "stim_uniform", "p": 0.01}
FOUR = {
    "model": "stim4",
    "after_clifford_depolarization": 0.004,
    "before_round_data_depolarization": 0.02,
    "before_measure_flip_probability": 0.01,
    "after_reset_flip_probability": 0.003,
}
SI1000 = {"model": "si1000", "p": 0.004}
CASES = [
    (task, distance, basis, noise)
    for task, distance, basis in (
        ("surface_code:rotated_memory", 3, "X"),
        ("surface_code:unrotated_memory", 3, "Z"),
        ("surface_code:unrotated_memory", 4, "X"),
        ("repetition_code:memory", 5, "Z"),
        ("repetition_code:memory", 6, "Z"),
    )
    for noise in (UNIFORM, FOUR, SI1000)
]


def models(noise: dict[str, object] = UNIFORM, **circuit: object) -> tuple[CodeCircuit, ...]:
    values = {"family": "stim_generated", "rounds": 4, **circuit}
    return build_models(
        QpuSpec.model_validate(
            {"circuit": values, "noise": noise, "round_period_ps": 10**6, "shot_period_ps": 10**9}
        )
    )


def shipped_user_circuit(scenarios: Path) -> CodeCircuit:
    (code,) = build_models(load_scenario(scenarios / "user_circuit.yaml").scenario.system.qpu)
    return code


def agrees_with_stim(code: CodeCircuit, shots: int) -> None:
    """Events from raw measurements, and the rates of the sampler, against the model itself."""
    circuit = stim.Circuit(code.circuit_text)
    measured = circuit.compile_sampler(seed=5).sample(shots, bit_packed=True)
    want, want_flips = circuit.compile_m2d_converter().convert(
        measurements=measured, separate_observables=True, bit_packed=True
    )
    got, got_flips = SyndromeFormer(code).form(measured)
    assert np.array_equal(got, want)
    assert np.array_equal(got_flips, want_flips)
    cutter = BlockCutter(code)
    assert np.array_equal(cutter.join(cutter.cut(want)), want)
    events = np.zeros(code.n_detectors)
    n = 0
    for batch in StimSampler(code, 3).batches(shots):
        bits = np.unpackbits(batch.detectors_b8, axis=1, count=code.n_detectors, bitorder="little")
        events += bits.sum(axis=0)
        n += batch.n_shots
    p = event_rates(stim.DetectorErrorModel(code.dem_text))
    z = (events - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(z).max() < Z_LIMIT
    assert p.min() > 0


Z_LIMIT = 6.5
"""|z| of up to 100 detectors in each of 16 cases: false-alarm rate 1600 x 8e-11 < 1e-6."""


def event_rates(dem: stim.DetectorErrorModel) -> np.ndarray:
    """Probability of each detector: (1 - prod(1 - 2 p)) / 2 over the errors that flip it."""
    keep = np.ones(dem.num_detectors)
    for error in dem.flattened():
        if error.type == "error":
            flipped = [t.val for t in error.targets_copy() if t.is_relative_detector_id()]
            for detector, times in zip(*np.unique(flipped, return_counts=True), strict=True):
                if times % 2:
                    keep[detector] *= 1 - 2 * error.args_copy()[0]
    return (1 - keep) / 2


@pytest.mark.parametrize(
    ("task", "distance", "basis", "noise"), CASES,
    ids=[f"{t.split(':')[0][:7]}{t[-9:-7]}-d{d}{b}-{n['model']}" for t, d, b, n in CASES],
)  # fmt: skip
def test_events_of_generated_circuits(
    task: str, distance: int, basis: str, noise: dict[str, object]
) -> None:
    (code,) = models(noise, task=task, distance=distance, basis=basis)
    assert code.basis == basis
    agrees_with_stim(code, 20_000)


def test_events_of_a_users_circuit(scenarios: Path) -> None:
    code = shipped_user_circuit(scenarios)
    assert code.block_bits.tolist() == [4] * 7
    agrees_with_stim(code, 20_000)


@pytest.mark.parametrize("code", ["rotated", "unrotated"])
def test_two_bases_take_turns(code: str) -> None:
    """Each basis has the rates of its own model, and its own decoder answers it best."""
    pair = models(task=f"surface_code:{code}_memory", distance=3, basis="alternate")
    assert [model.basis for model in pair] == ["Z", "X"]
    shots = 20_000
    batches = list(StimSampler(pair, 3).batches(shots))
    events = np.concatenate([b.detectors_b8 for b in batches])
    truth = np.concatenate([b.observables_b8 for b in batches])
    assert len(events) == shots
    assert [b.first_shot % 2 for b in batches] == [0] * len(batches)
    numbers = np.concatenate([b.shots for b in batches])
    turns = build_turns("pymatching", [model.dem_text for model in pair])
    answers = turns.decode_batch(events, numbers).predictions_b8
    for k, model in enumerate(pair):
        mine = events[k::2]
        bits = np.unpackbits(mine, axis=1, count=model.n_detectors, bitorder="little")
        p = event_rates(stim.DetectorErrorModel(model.dem_text))
        z = (bits.sum(axis=0) - len(mine) * p) / np.sqrt(len(mine) * p * (1 - p))
        assert np.abs(z).max() < Z_LIMIT
        own = build_decoder("pymatching", model.dem_text).decode_batch(mine).predictions_b8
        wrong = build_decoder("pymatching", pair[1 - k].dem_text).decode_batch(mine).predictions_b8
        assert np.array_equal(answers[k::2], own)
        assert np.array_equal(turns.of(k).decode_one(mine[0]), own[0])
        assert (wrong != truth[k::2]).sum() > 2 * (own != truth[k::2]).sum()
    assert not np.array_equal(batches[0].detectors_b8[0::2], batches[0].detectors_b8[1::2])


def test_a_shot_of_two_bases_does_not_depend_on_the_length_of_the_run() -> None:
    pair = models(distance=3, basis="alternate")
    short = next(StimSampler(pair, 1).batches(301))
    long = next(StimSampler(pair, 1).batches(5000))
    assert np.array_equal(short.detectors_b8, long.detectors_b8[:301])


def test_models_in_turn_must_have_one_shape() -> None:
    (small,) = models(distance=3, basis="Z")
    (large,) = models(distance=5, basis="X")
    with pytest.raises(ValueError, match="all alike"):
        build_turns("pymatching", [small.dem_text, large.dem_text])


def _run(path: Path, out: Path, *overrides: str) -> RunResult:
    return run_scenario(path, RunOptions(bind="mil", out=out, overrides=overrides))


def test_trace_of_two_bases(scenarios: Path, tmp_path: Path) -> None:
    path = scenarios / "surface_d5.yaml"
    common = ("run.shots=800", "system.qpu.circuit.distance=3")
    both = _run(path, tmp_path / "both", *common, "system.qpu.circuit.basis=alternate")
    one = _run(path, tmp_path / "one", *common)
    assert validate_trace(both.trace).ok
    with hil.open_trace(both.trace) as trace, hil.open_trace(one.trace) as single:
        shots = trace.stream("shots")
        names = trace.enum_names("shots", "basis")
        assert [names[code] for code in shots["basis"]] == ["Z", "X"] * 400
        dems = [trace.epoch(0)["dem"], trace.meta["more_models"][0]["dem"]]
        turns = build_turns("pymatching_corr", dems)
        answers = turns.decode_batch(shots["detectors_b8"], shots["shot"].astype(np.int64))
        assert np.array_equal(answers.predictions_b8, shots["obs_pred_b8"])
        assert dems[0] == single.epoch(0)["dem"]
        assert single.meta["more_models"] == []
        assert trace.problem_id != single.problem_id
        failed = [int(shots["failed"][k::2].sum()) for k in (0, 1)]
        label = f"by basis, warm-up included: X {failed[1]} of 400, Z {failed[0]} of 400"
        assert any(label in line for line in both.document.facts.labels)
        assert not any("by basis" in line for line in one.document.facts.labels)
        assert "RX" in trace.meta["more_models"][0]["circuit_stim"]
    with h5py.File(both.trace, "r+") as file:
        del file["meta/model_1/dem"]
        file["meta/model_1/dem"] = dems[0]
    findings = validate_trace(both.trace).refused
    assert any("/meta/model_1/dem" in str(finding) for finding in findings)


@pytest.mark.parametrize(
    "overrides",
    [
        ("circuit.task=repetition_code:memory", "circuit.distance=4"),
        ("circuit.task=surface_code:unrotated_memory", "circuit.basis=alternate"),
        ("noise={model: si1000, p: 0.001}",),
    ],
    ids=["repetition", "unrotated-alternate", "si1000"],
)
def test_families_run_on_an_unchanged_rack(
    scenarios: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    changes = [f"system.qpu.{change}" for change in overrides]
    result = _run(scenarios / "surface_d5.yaml", tmp_path / "run", "run.shots=600", *changes)
    assert result.verdict.name in {"PASS", "INCONCLUSIVE"}
    assert validate_trace(result.trace).ok


def test_the_shipped_user_circuit_passes_and_keeps_its_layout(
    scenarios: Path, tmp_path: Path
) -> None:
    result = _run(scenarios / "user_circuit.yaml", tmp_path / "run", "run.shots=3000")
    assert result.verdict.name == "PASS"
    with hil.open_trace(result.trace) as trace:
        layout = trace.meta["layout"]
        coordinates = trace.meta["detector_coords"]
        resolved = trace.meta["resolved"]["system"]["qpu"]["circuit"]
    assert layout["board"] == ["ro0" if x < 4 else "ro1" for x in coordinates[:, 0]]
    assert layout["channel"] == [f"ancilla {x:g}" for x in coordinates[:, 0]]
    assert {len(resolved["sha256"]), len(resolved["layout_sha256"])} == {64}
    assert set(resolved) == {
        "family", "file", "sha256", "rounds", "basis", "layout", "layout_sha256"
    }  # fmt: skip


UNDECODABLE = {
    "four-parts": "R 0\nX_ERROR(0.1) 0\nM 0 0 0 0\n"
    + "".join(f"DETECTOR({i % 2}) rec[-{i + 1}]\n" for i in range(4)),
    "not-deterministic": "R 0\nH 0\nM 0\nDETECTOR(0) rec[-1]\nDETECTOR(1) rec[-1]\n",
    "before-time": "DETECTOR(0) rec[-1]\nDETECTOR(1) rec[-1]\nM 0\n",
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_a_circuit_that_cannot_be_matched_is_refused_before_the_run(
    scenarios: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (scenarios / "user_circuit.yaml").read_text()
    circuit = "{family: user_stim, file: c.stim, rounds: 1}"
    noise = "{model: from_circuit}"
    (tmp_path / "c.stim").write_text(UNDECODABLE[name] + "OBSERVABLE_INCLUDE(0) rec[-1]\n")
    path = tmp_path / "s.yaml"
    path.write_text(text)
    change = ["--set", f"system.qpu.circuit={circuit}", "--set", f"system.qpu.noise={noise}"]
    code = run_app(["run", str(path), "--out", str(tmp_path / "out"), "--quiet", *change])
    assert code == ScenarioError.exit_code
    assert "no graphlike detector error model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_circuit_command(scenarios: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(scenarios / "surface_d5.yaml")
    both = ["--set", "system.qpu.circuit.basis=alternate"]
    (code,) = models({"model": "stim_uniform", "p": 0.003}, distance=5, rounds=5, basis="X")
    assert run_app(["circuit", file, *both, "--basis", "X"]) == 0
    assert stim.Circuit(capsys.readouterr().out) == stim.Circuit(code.circuit_text)
    assert run_app(["circuit", file, *both, "--basis", "X", "--dem"]) == 0
    assert stim.DetectorErrorModel(capsys.readouterr().out) == stim.DetectorErrorModel(
        code.dem_text
    )
    assert run_app(["circuit", file, *both]) == 2
    assert "write --basis Z" in capsys.readouterr().err
    assert run_app(["circuit", file, "--basis", "X"]) == 2
    assert "allowed: Z" in capsys.readouterr().err
