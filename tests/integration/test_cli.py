"""The command line in process: exit codes, outputs, laziness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hil.cli import main
from hil.run import rig

HEAVY = (
    "numpy", "scipy", "numba", "stim", "pymatching", "h5py", "simpy", "pydantic", "matplotlib",
    "onnx", "onnxruntime", "openvino", "safetensors", "torch",
)  # fmt: skip


def _run(path: Path, out: Path, *more: str) -> int:
    return main(["run", str(path), "--bind", "mil", "--out", str(out), "--quiet", *more])


def test_help_is_light() -> None:
    """Nothing heavy is imported for the help text (goal: 0.4 s; measured on imports, not time)."""
    code = (
        "import sys; from hil.cli import main; main(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(word in done.stdout for word in ("run", "check", "trace", "node", "bench"))


def test_pass_is_0_and_json_is_the_report(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "a" / "report.json").read_text())
    assert printed["verdict"] == "PASS"


def test_fail_is_1(scenarios: Path, tmp_path: Path) -> None:
    limit = "expect={tail: {metric: latency.end_to_end, stat: p99, max: 1us, confidence: 0.95}}"
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a", "--set", limit) == 1


def test_scenario_error_is_2_and_writes_nothing(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    code = _run(scenarios / "surface_d5.yaml", out, "--set", "system.qpu.circuit.distance=4")
    assert code == 2
    assert not out.exists()
    assert "E501" in capsys.readouterr().err


def test_usage_error_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--no-such-option"]) == 2
    assert main(["run", str(tmp_path / "absent.yaml")]) == 2
    assert main(["no-such-command"]) == 2
    assert capsys.readouterr().err


def test_inconclusive_is_4(scenarios: Path, tmp_path: Path) -> None:
    limit = "expect={ler: {metric: ler.per_shot, max: 2.9e-3, confidence: 0.95}}"
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a", "--set", limit) == 4


def test_nothing_expected_is_4(scenarios: Path, tmp_path: Path) -> None:
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a", "--set", "expect={}") == 4


def test_unforeseen_error_is_3_not_1(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig, "build_circuits", broken)
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a") == 3
    assert "unforeseen" in capsys.readouterr().err


def test_a_run_beyond_its_wall_time_is_3_and_keeps_its_trace(
    scenarios: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    assert _run(scenarios / "surface_d5.yaml", out, "--set", "run.wall=1ms") == 3
    assert main(["trace", "validate", str(out / "trace.h5")]) == 0


def test_lost_rounds_are_not_reported_as_none(scenarios: Path, tmp_path: Path) -> None:
    """Rounds that find the first buffer full are lost, counted, and fail `packets.lost`."""
    out = tmp_path / "a"
    code = _run(
        scenarios / "surface_d5.yaml",
        out,
        "--set",
        "system.rack.stages={demod: {latency: 2us, servers: 1, buffer: 1, evidence: assumed}}",
        "--set",
        "expect={lost: {metric: packets.lost, equals: 0}}",
    )
    assert code == 1
    assert main(["trace", "validate", str(out / "trace.h5")]) == 0


def test_an_old_trace_is_never_overwritten(scenarios: Path, tmp_path: Path) -> None:
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a") == 0
    before = (tmp_path / "a" / "trace.h5").read_bytes()
    assert _run(scenarios / "surface_d5.yaml", tmp_path / "a") == 2
    assert (tmp_path / "a" / "trace.h5").read_bytes() == before


def test_seed_option_is_the_scenarios_seed(scenarios: Path, tmp_path: Path) -> None:
    _run(scenarios / "surface_d5.yaml", tmp_path / "a", "--seed", "5")
    _run(scenarios / "surface_d5.yaml", tmp_path / "b", "--set", "run.seed=5")
    first, second = (
        dict(json.loads((tmp_path / name / "report.json").read_text())["facts"]["provenance"])
        for name in "ab"
    )
    assert first["content_id"] == second["content_id"]
