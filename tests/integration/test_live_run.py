"""Live runs: real frames, a node process, the same syndromes and answers as the virtual run."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import hil
from gpu_decoder.protocol import GlobalDecoder, Reason
from gpu_decoder.turns import build_turns
from hil.rack.timeline import Status
from hil.run import runner
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.scenario.model import BREAKS
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]


def _options(out: Path, loopback: tuple[str, str], *overrides: str) -> RunOptions:
    network = "bind.profiles.sil.network"
    here = (
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
    )
    return RunOptions(bind="sil", out=out, overrides=[*here, *overrides])


@pytest.mark.parametrize("basis", ["Z", "alternate"])
def test_sil_equals_mil(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str], basis: str
) -> None:
    path = scenarios / "surface_d5.yaml"
    what = ("run.shots=1200", f"system.qpu.circuit.basis={basis}")
    live = run_scenario(path, _options(tmp_path / "sil", loopback, *what))
    model = run_scenario(path, RunOptions(bind="mil", out=tmp_path / "mil", overrides=what))
    assert live.verdict is Verdict.PASS
    assert model.verdict is Verdict.PASS
    with hil.open_trace(live.trace) as a, hil.open_trace(model.trace) as b:
        left, right = a.stream("shots"), b.stream("shots")
        columns = ("detectors_b8", "obs_true_b8", "obs_pred_b8", "failed", "fallback")
        for column in ("shot", "basis", *columns):
            assert np.array_equal(left[column], right[column]), column
        for column in ("n_bits", "detectors_b8"):
            assert np.array_equal(a.stream("syndromes")[column], b.stream("syndromes")[column])
        assert np.array_equal(
            a.stream("decodes")["global_executed"], b.stream("decodes")["global_executed"]
        )
        assert a.pace == 5
    assert validate_trace(live.trace).ok


def _kill_node_after(shots: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill -9 the node as soon as ``shots`` shots are recorded; returns the pids killed."""
    killed: list[int] = []
    original = runner._drive

    def drive(rig, batches, writer, meta, progress):
        def watching(done: int, total: int) -> None:
            progress(done, total)
            if done >= shots and not killed:
                pid = _node_of(os.getpid())
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        original(rig, batches, writer, meta, watching)

    monkeypatch.setattr(runner, "_drive", drive)
    return killed


def _node_of(parent: int) -> int:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rsplit(")", 1)[1].split()
        command = (stat.parent / "cmdline").read_text()
        if fields[1] == str(parent) and "node\0serve" in command:
            return int(stat.parent.name)
    raise AssertionError("no node process found")


def _run_killed(
    scenarios: Path, out: Path, loopback: tuple[str, str], then: str, *overrides: str
) -> RunResult:
    common = ("run.shots=1500", f"system.decoder.on_node_lost={then}")
    return run_scenario(scenarios / "surface_d5.yaml", _options(out, loopback, *common, *overrides))


def test_node_killed_run_fails_and_trace_is_valid(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _kill_node_after(300, monkeypatch)
    result = _run_killed(scenarios, tmp_path / "run", loopback, "fail")
    assert killed
    assert result.verdict is Verdict.RIG_ERROR
    assert result.exit_code == 3
    assert validate_trace(result.trace).ok
    with hil.open_trace(result.trace) as trace:
        assert trace.exit_status == "rig_error"
        shots = trace.stream("shots")
    n = shots["shot"].size
    assert 300 <= n < 1500
    assert np.array_equal(shots["shot"], np.arange(n)), "every shot once"
    open_end = shots["status"] == Status.VOID
    assert (shots["fallback"][open_end] == Reason.DEVICE_LOST).all()
    answered = np.isin(shots["status"], (Status.OK, Status.LATE))
    assert (answered == (shots["fallback"] == Reason.NONE)).all(), "answered or declared"


def test_node_killed_run_goes_on_in_process(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _kill_node_after(300, monkeypatch)
    alternate = "system.qpu.circuit.basis=alternate"
    result = _run_killed(scenarios, tmp_path / "run", loopback, "in_process", alternate)
    assert killed
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
        dems = [trace.epoch(0)["dem"], trace.meta["more_models"][0]["dem"]]
    turns = build_turns("pymatching_corr", dems)
    answers = turns.decode_batch(shots["detectors_b8"], shots["shot"].astype(np.int64))
    assert np.array_equal(shots["obs_pred_b8"], answers.predictions_b8), "each by its own model"
    assert np.array_equal(shots["shot"], np.arange(1500)), "every shot once"
    lost = shots["fallback"] == Reason.DEVICE_LOST
    assert lost.sum() > 500
    assert (shots["status"][lost] == Status.CONCEALED).all()
    assert set(shots["status"]) <= {Status.OK, Status.LATE, Status.CONCEALED}, "none left out"
    assert set(np.flatnonzero(lost)) <= set(decodes["shot"].tolist())
    assert validate_trace(result.trace).ok
    assert any("decoded in process" in label for label in result.document.labels)


def test_a_live_run_listens_on_loopback_only(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str]
) -> None:
    """While it runs, every UDP socket that our processes opened is bound to 127.x.y.z."""
    before = _udp_sockets()
    seen: set[tuple[str, str]] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(_udp_sockets() - before)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_scenario(
            scenarios / "surface_d5.yaml", _options(tmp_path / "run", loopback, "run.shots=800")
        )
    finally:
        stop.set()
        watcher.join()
    addresses = {address for address, _inode in seen}
    assert len(addresses) >= 2
    assert all(address.startswith("127.") for address in addresses), addresses


def _udp_sockets() -> set[tuple[str, str]]:
    """(bound IPv4 address, inode) of every UDP socket of this machine."""
    found = set()
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        raw = bytes.fromhex(fields[1].split(":")[0])[::-1]
        found.add((".".join(map(str, raw)), fields[9]))
    return found


def test_broken_primaries_are_answered_by_the_fallback(
    pair_rule_scenario: Path, tmp_path: Path, loopback: tuple[str, str]
) -> None:
    """At this pace failures are samples, as durations are, and the executor decides."""
    broken = ", ".join(
        f"{kind}: {{kind: {kind}, at: {{shot: {20 + 15 * i}}}}}" for i, kind in enumerate(BREAKS)
    )
    what = (
        "run.shots=120",
        "run.warmup.shots=0",
        "system.decoder.predecoder.global=pymatching_corr",
        "system.decoder.deadline=2s",
        "system.decoder.fallback.primary_deadline=1s",
        f"faults={{{broken}}}",
        "expect={backend: {metric: decoder.backend_mismatch, equals: 0}}",
    )
    path = pair_rule_scenario
    live = run_scenario(path, _options(tmp_path / "sil", loopback, *what))
    options = RunOptions(bind="mil", out=tmp_path / "mil", overrides=what)
    model = run_scenario(path, options)
    with hil.open_trace(live.trace) as a, hil.open_trace(model.trace) as b:
        shots, decodes = a.stream("shots"), a.stream("decodes")
        for column in ("obs_pred_b8", "fallback", "status"):
            assert np.array_equal(shots[column], b.stream("shots")[column]), column
        for column in ("events_out", "backend_executed", "global_executed"):
            assert np.array_equal(decodes[column], b.stream("decodes")[column]), column
    reasons = {20 + 15 * i: int(reason) for i, reason in enumerate(BREAKS.values())}
    assert {k: int(shots["fallback"][k]) for k in reasons} == reasons
    assert np.array_equal(decodes["shot"], np.arange(120)), "each is answered, and once"
    assert (decodes["global_executed"][list(reasons)] == GlobalDecoder.PYMATCHING).all()
    assert live.verdict is Verdict.PASS, "what was asked for is what ran, fallback included"
