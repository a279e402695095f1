"""Family ising_memory through device, run, trace and verdict, with a pre-decoder and without."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import stim
import yaml
from rich.console import Console

import hil
from gpu_decoder.build import build_decoder
from gpu_decoder.ising import config
from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.config import PredecoderConfig
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import Ising25, IsingScalar
from gpu_decoder.ising.onnx_model import build_onnx
from gpu_decoder.ising.weights import load_weights
from gpu_decoder.protocol import Backend, DecodedBatch, Precision, Reason
from gpu_decoder.runtime.protocol import EngineError
from gpu_decoder.turns import TurnDecoders, build_turns
from hil.cli.app import run_app
from hil.device.circuits import CodeCircuit
from hil.device.families import build_models
from hil.device.sampler import BlockCutter, ShotBatch, StimSampler, event_counts
from hil.errors import DecoderError, TraceError
from hil.report import terminal
from hil.run.parts import build_circuits, build_decoders, predecoder_configs
from hil.run.primary import try_primary
from hil.run.resume import Earlier
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.scenario.load import load_scenario
from hil.scenario.options import device_from_options
from hil.trace.validate import validate_trace
from hil.verdict.summary import from_trace

WEIGHTS = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
"""Random weights: they decode nothing, but what they do is known bit by bit."""

NOISE_SHA256 = "94753bfb8ff82aaccfb9a4bab40f1c8e1f565d05cb9c78bff8acab3389b27d7a"
"""Of ising25 with p = .003, as the reference states it."""

Z_LIMIT = 6.5
"""|z| of up to 120 detectors in 4 cases: false-alarm rate 480 x 8e-11 < 1e-6."""


def models(
    noise: str = "ising25",
    p: float = 0.003,
    basis: str = "X",
    orientation: str = "XV",
    rounds: int = 4,
) -> CodeCircuit:
    circuit = {"family": "ising_memory", "distance": 3, "rounds": rounds, "basis": basis}
    device = device_from_options(circuit | {"orientation": orientation}, {"model": noise, "p": p})
    (code,) = build_models(device)
    return code


@pytest.fixture
def network(scenarios: Path, tmp_path: Path) -> Path:
    """The shipped scenario, small, with a network of random values, and loud noise."""
    data = yaml.safe_load((scenarios / "ising_d5.yaml").read_text())
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS.read_bytes())
    qpu, decoder = data["system"]["qpu"], data["system"]["decoder"]
    qpu["circuit"] |= {"distance": 3, "rounds": 3, "orientation": "O3"}
    qpu["noise"]["p"] = 0.01
    decoder["predecoder"] = {"weights": "./w.safetensors", "threshold": 1}
    decoder["deadline"], decoder["fallback"]["primary_deadline"] = "20ms", "15ms"
    for profile in data["bind"]["profiles"].values():
        profile["decoder"] |= {"predecoder": "ort_cpu", "precision": "fp32"}
    data["run"] |= {"shots": 600, "warmup": {"shots": 50}}
    data["expect"] = {"backend": {"metric": "decoder.backend_mismatch", "equals": 0}}
    path = tmp_path / "ising.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def run(path: Path, *overrides: str) -> RunResult:
    out = path.parent / f"out-{len(list(path.parent.glob('out-*')))}"
    return run_scenario(path, RunOptions(bind="mil", out=out, overrides=overrides))


@pytest.mark.parametrize("noise", ["ising25", "ising_scalar"])
@pytest.mark.parametrize("basis", ["X", "Z"])
def test_device(noise: str, basis: str) -> None:
    """Detectors lie in the blocks of their rounds and fire as the error model says."""
    code = models(noise, 0.01, basis, "ZH")
    assert code.block_bits.tolist() == [4, 8, 8, 8, 4]
    (coordinates,) = {
        tuple(c) for c in stim.Circuit(code.circuit_text).get_detector_coordinates().values()
    }
    assert coordinates == ()
    cutter = BlockCutter(code)
    batch = next(StimSampler(code, 3).batches(16_000))
    assert np.array_equal(cutter.join(cutter.cut(batch.detectors_b8)), batch.detectors_b8)
    bits = np.unpackbits(batch.detectors_b8, axis=1, count=code.n_detectors, bitorder="little")
    assert not bits[:, -4:].any(), "last round and readout are without noise"
    keep = np.ones(code.n_detectors)
    for error in stim.DetectorErrorModel(code.dem_text).flattened():
        if error.type == "error":
            flipped = {t.val for t in error.targets_copy() if t.is_relative_detector_id()}
            keep[list(flipped)] *= 1 - 2 * error.args_copy()[0]
    p = (1 - keep[:-4]) / 2
    n = batch.n_shots
    assert np.abs((bits[:, :-4].sum(axis=0) - n * p) / np.sqrt(n * p * (1 - p))).max() < Z_LIMIT


def test_circuit_command(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["circuit", "--family", "ising_memory", "--distance", "5", "--rounds", "4"]
    for noise, made in (("ising25", Ising25.from_p(0.003)), ("ising_scalar", IsingScalar(0.003))):
        given = [*base, "--basis", "Z", "--orientation", "O2", "--noise", noise, "--p", "0.003"]
        assert run_app(given) == 0
        want = memory_circuit(geometry(5, "XH"), 4, "Z", made)
        assert stim.Circuit(capsys.readouterr().out) == want
    assert run_app([*given, "--dem"]) == 0
    assert stim.DetectorErrorModel(capsys.readouterr().out).num_detectors == 2 * 4 * 12


WRONG = {
    "even": ("--distance", "4", "odd, 3 to 31"),
    "rounds": ("--rounds", "1", ">= 2"),
    "orientation": ("--orientation", "O5", "XV"),
    "noise": ("--noise", "stim_uniform", "ising25, ising_scalar"),
    "p": ("--p", "0.7", "0.5"),
    "basis": ("--basis", "alternate", "X, Z"),
    "family": ("--family", "user_stim", "ising_memory, stim_generated"),
}


@pytest.mark.parametrize("name", WRONG)
def test_circuit_command_names_the_wrong_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        **{"--family": "ising_memory", "--distance": "3", "--rounds": "2", "--basis": "X"},
        **{"--orientation": "XV", "--noise": "ising25", "--p": "0.003"},
    }
    option, value, allowed = WRONG[name]
    given[option] = value
    assert run_app(["circuit", *(word for pair in given.items() for word in pair)]) == 2
    text = capsys.readouterr().err
    assert option in text
    assert allowed in text


def test_circuit_command_takes_one_circuit(
    scenarios: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(scenarios / "ising_d5.yaml")
    assert run_app(["circuit", file]) == 0
    assert stim.Circuit(capsys.readouterr().out).num_detectors == 120
    for arguments, text in (
        ([file, "--family", "ising_memory"], "two circuits"),
        ([], "neither a scenario nor a family"),
        (["--bind", "mil"], "a scenario is missing"),
        (["--family", "ising_memory"], "option missing"),
    ):
        assert run_app(["circuit", *arguments]) == 2
        assert text in capsys.readouterr().err


def test_the_shipped_scenario_passes(scenarios: Path, tmp_path: Path) -> None:
    options = RunOptions(bind="mil", out=tmp_path / "run", overrides=["run.record.level=shots"])
    result = run_scenario(scenarios / "ising_d5.yaml", options)
    assert result.verdict.name == "PASS"
    ids = [row.id for row in result.document.expectations]
    assert {"ler", "density", "backend"} <= set(ids)
    screen = StringIO()
    terminal.show(result.document, Console(file=screen, width=80))
    assert "decoded by: hil-32x6, onnxruntime" in screen.getvalue()


def test_trace_of_a_network(network: Path) -> None:
    result = run(network, "system.qpu.noise.p=0.003")
    assert result.verdict.name == "PASS"
    assert validate_trace(result.trace).ok
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
        decoder = build_decoder(
            "pymatching",
            trace.epoch(0)["dem"],
            predecoder=PredecoderConfig(
                *(3, 3, "X", "ZV"), weights=str(WEIGHTS), threshold_data=1, threshold_syndrome=1
            ),
        )
        names = {
            part: trace.enum_names("decodes", f"{part}_executed")
            for part in ("backend", "precision")
        }
        again = from_trace(trace)
        fingerprint = trace.meta["fingerprint"]
        epoch = trace.stream("epochs")
    want = decoder.decode_batch(shots["detectors_b8"])
    assert want.predecoded is not None
    with Earlier(result.trace) as earlier:  # a resumed run needs the events left, not the answers
        batch = ShotBatch(0, 0, 0, shots["detectors_b8"], shots["obs_true_b8"])
        resumed = earlier.primary(batch, TurnDecoders((decoder,), predecoded=True))
        assert (earlier.reused, resumed.predecoded is None) == (0, False)
        with pytest.raises(TraceError, match="other syndromes"):
            earlier.primary(replace(batch, detectors_b8=~batch.detectors_b8), decoder)  # type: ignore[arg-type]
    assert np.array_equal(shots["obs_pred_b8"], want.predictions_b8)
    assert np.array_equal(decodes["events_out"], want.predecoded.residual_events)
    assert np.array_equal(decodes["events_in"], event_counts(shots["detectors_b8"]))
    for part, name in (("backend", "ort_cpu"), ("precision", "fp32")):
        for side in ("requested", "executed"):
            assert {names[part][code] for code in decodes[f"{part}_{side}"]} == {name}
    pre = decodes["t_pre_end_ps"] - decodes["t_pre_start_ps"]
    assert pre.min() >= 430_000_000, "the time that the profile charges"
    assert np.array_equal(decodes["t_pre_end_ps"], decodes["t_glob_start_ps"])
    assert fingerprint["primary"]["weights_sha256"] == load_weights(WEIGHTS).sha256
    assert fingerprint["primary"]["runtime"] == "onnxruntime"
    assert len(fingerprint["primary"]["model_sha256"]) == 64
    assert epoch["predecoder_sha256"][0].decode() == load_weights(WEIGHTS).sha256
    assert epoch["noise_sha256"][0].decode() == NOISE_SHA256
    ratio = again.measure("predecoder.density_reduction")
    clean = slice(50, None)
    left = want.predecoded.residual_events[clean].sum()
    assert ratio.value == pytest.approx(event_counts(shots["detectors_b8"][clean]).sum() / left)
    row = next(r for r in result.document.rates if r.name == "predecoder.density_reduction")
    assert row.value.value == ratio.value
    executed = {row.part: row for row in result.document.facts.executed}
    assert "ort_cpu fp32" in executed["pre-decoder"].requested
    assert "onnxruntime" in executed["pre-decoder"].executed


def test_late_shots_are_answered_by_plain_matching(network: Path) -> None:
    """The fallback decodes the raw syndrome; its rows name no pre-decoder and no mismatch."""
    slow = "{by_events: {0: 1ms, 3: 16ms}, evidence: assumed}"
    result = run(network, f"bind.profiles.mil.decoder.predecoder_service={slow}")
    assert result.verdict.name == "PASS"
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
        plain = build_decoder("pymatching", trace.epoch(0)["dem"])
    late = shots["fallback"] == Reason.DEADLINE
    assert 20 < late.sum() < late.size - 20
    want = plain.decode_batch(np.ascontiguousarray(shots["detectors_b8"][late])).predictions_b8
    assert np.array_equal(shots["obs_pred_b8"][late], want)
    of_fallback = decodes["fallback"] == Reason.DEADLINE
    for column in ("backend_requested", "backend_executed"):
        assert not decodes[column][of_fallback].any()
        assert (decodes[column][~of_fallback] == Backend.ORT_CPU).all()
    assert np.array_equal(decodes["events_in"][of_fallback], decodes["events_out"][of_fallback])
    assert (decodes["t_pre_end_ps"][of_fallback] == np.iinfo(np.int64).min).all()


def test_two_bases_in_turn_share_the_weights(network: Path) -> None:
    result = run(network, "system.qpu.circuit.basis=alternate")
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
        dems = [trace.epoch(0)["dem"], trace.meta["more_models"][0]["dem"]]
    for k, basis in enumerate(("Z", "X")):
        own = PredecoderConfig(
            *(3, 3, basis, "ZV"), weights=str(WEIGHTS), threshold_data=1, threshold_syndrome=1
        )
        decoder = build_decoder("pymatching", dems[k], predecoder=own)
        want = decoder.decode_batch(np.ascontiguousarray(shots["detectors_b8"][k::2]))
        assert np.array_equal(shots["obs_pred_b8"][k::2], want.predictions_b8)
        assert want.predecoded is not None
        assert np.array_equal(decodes["events_out"][k::2], want.predecoded.residual_events)


class Substitute:
    """A broken peer: a runtime that says what it is, which is not what was asked for."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.backend, self.precision = Backend.OPENVINO, Precision.BF16

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_a_substituted_runtime_fails_the_run(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = config.build_runtime
    monkeypatch.setattr(config, "build_runtime", lambda *a, **k: Substitute(build(*a, **k)))
    result = run(network, "run.shots=100", "run.warmup.shots=0", "expect={}")
    assert result.verdict.name == "FAIL", "though the scenario expects nothing"
    (row,) = result.document.expectations
    assert (row.metric, row.measured.value) == ("decoder.backend_mismatch", 100)


@pytest.mark.parametrize("bind", ["mil", "sil"])
def test_a_missing_runtime_ends_before_the_first_shot(
    network: Path, bind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as on a machine without the package
    out = network.parent / "out"
    where = f"bind.profiles.{bind}.decoder"
    asked = ("--set", f"{where}.predecoder=tensorrt", "--set", f"{where}.precision=fp16")
    assert run_app(["run", str(network), "--bind", bind, "--out", str(out), *asked]) == 3
    text = capsys.readouterr().err
    assert "tensorrt is not available on this machine" in text
    assert "extra gpu" in text
    assert not out.exists()


def test_a_threshold_that_is_no_number_is_told_both_forms(
    network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["check", str(network), "--set", "system.decoder.predecoder.threshold=x"]) == 2
    text = capsys.readouterr().err
    assert "E203" in text
    assert "allowed: a number, or {data: number, syndrome: number}" in text


def test_bad_weights_end_before_the_first_shot(
    network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (network.parent / "w.safetensors").write_bytes(WEIGHTS.read_bytes()[:-100])
    out = network.parent / "out"
    assert run_app(["run", str(network), "--bind", "mil", "--out", str(out)]) == 3
    assert "system.decoder.predecoder" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_of_another_circuit_is_refused_and_its_own_answers(network: Path) -> None:
    """Exported for basis X: as good as the weights there; basis Z names both sides."""
    own = PredecoderConfig(*(3, 3, "X", "ZV"), weights=str(WEIGHTS))
    model = build_onnx(load_weights(WEIGHTS), own.layout, 1.0, 1.0, "fp32")
    (network.parent / "m.onnx").write_bytes(model)
    exported = "system.decoder.predecoder={model: ./m.onnx}"

    def primary(*overrides: str) -> TurnDecoders:
        scenario = load_scenario(network, bind="mil", overrides=overrides).scenario
        return build_decoders(scenario, build_circuits(scenario)).primary

    batch = next(StimSampler(models(p=0.01, orientation="ZV", rounds=3), 1).batches(300))
    first, second = (
        turns.decode_batch(batch.detectors_b8, batch.shots)
        for turns in (primary(), primary(exported))
    )
    assert np.array_equal(first.predictions_b8, second.predictions_b8)
    with pytest.raises(DecoderError) as caught:
        primary(exported, "system.qpu.circuit.basis=Z")
    assert "basis" in caught.value.got
    assert "X" in caught.value.got
    assert "Z" in caught.value.got


def test_a_file_that_changes_after_the_check_is_refused(network: Path) -> None:
    scenario = load_scenario(network, bind="mil").scenario
    (network.parent / "w.safetensors").write_bytes(b"another")
    with pytest.raises(DecoderError, match="changed after it was checked"):
        predecoder_configs(scenario)


def test_rules_across_sections(scenarios: Path) -> None:
    file = scenarios / "ising_d5.yaml"
    loaded = load_scenario(file, overrides=["system.qpu.circuit.orientation=O4"])
    assert loaded.resolved["system"]["qpu"]["circuit"]["orientation"] == "ZH"
    plain = (
        "system.decoder.primary=pymatching",
        "system.decoder.fallback={to: pymatching, policy: never}",
    )
    sliding = "system.decoder.window={mode: sliding, commit: 2, buffer: 2}"
    for changes, code in (
        (("system.decoder.predecoder={model: m.onnx}",), "E403"),
        ((*plain, sliding), "E513"),
    ):
        with pytest.raises(hil.errors.UsageError) as caught:
            load_scenario(file, overrides=changes)
        assert f"error[{code}]" in caught.value.message


class Failing:
    """A broken peer: its pre-decoder fails on some shots, and so on every batch that has one."""

    def __init__(self, turns: object, bad: dict[int, Reason]) -> None:
        self._turns, self._bad, self.calls = turns, bad, 0

    def __call__(self, batch: ShotBatch) -> DecodedBatch:
        self.calls += 1
        for shot in batch.shots.tolist():
            if shot in self._bad:
                raise EngineError("on purpose", self._bad[shot])
        return self._turns.decode_batch(batch.detectors_b8, batch.shots)  # type: ignore[attr-defined]


@pytest.fixture
def peer() -> tuple[object, ShotBatch]:
    code = models(p=0.01, basis="Z")
    own = PredecoderConfig(3, 4, "Z", "XV", weights=str(WEIGHTS))
    turns = build_turns("pymatching", [code.dem_text], predecoders=[own])
    return turns, next(StimSampler(code, 5).batches(300))


def test_single_shots_are_given_up_for_their_reason(peer: tuple[object, ShotBatch]) -> None:
    turns, batch = peer
    bad = {17: Reason.PREDECODER_ERROR, 18: Reason.OUTPUT_INVALID, 299: Reason.ENGINE_MISMATCH}
    sound = try_primary(turns, batch, Failing(turns, {}))  # type: ignore[arg-type]
    assert sound.failed is None
    tried = try_primary(turns, batch, Failing(turns, bad))  # type: ignore[arg-type]
    assert tried.failed is not None
    assert {int(i): Reason(tried.failed[i]) for i in np.flatnonzero(tried.failed)} == bad
    good = tried.failed == 0
    want, got = sound.decoded, tried.decoded
    assert np.array_equal(got.predictions_b8[good], want.predictions_b8[good])
    assert not got.predictions_b8[~good].any()
    assert want.predecoded is not None
    assert got.predecoded is not None
    left, raw = got.predecoded.residual_events, event_counts(batch.detectors_b8)
    assert np.array_equal(left[good], want.predecoded.residual_events[good])
    assert np.array_equal(left[~good], raw[~good])
    assert got.predecoded.backend_executed is Backend.ORT_CPU


def test_a_pre_decoder_that_always_fails_gives_every_shot_up(
    peer: tuple[object, ShotBatch],
) -> None:
    turns, batch = peer
    bad = dict.fromkeys(range(300), Reason.PREDECODER_ERROR)
    failing = Failing(turns, bad)
    tried = try_primary(turns, batch, failing)  # type: ignore[arg-type]
    assert tried.failed is not None
    assert (tried.failed == Reason.PREDECODER_ERROR).all()
    assert tried.decoded.predecoded is None
    assert failing.calls < 2 * 300
