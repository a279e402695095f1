"""Whole runs with faults of links: the same frames suffer at both levels, and everybody says so."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from link_fault_cases import SCENARIO
from rich.console import Console

import hil
from gpu_decoder.protocol import Reason
from hil.rack.timeline import Status
from hil.report.terminal import show
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.trace.schema import Dq
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

ONLY = "expect={order: {metric: rounds.out_of_order_commits, equals: 0}}"
SHOTS = 60


def one(kind: str, shot: int, more: str, caught_by: str, rounds: int = 1) -> str:
    """A fault of the frames of so many rounds, from round 1 of the shot on."""
    when = f"at: {{round: {6 * shot + 1}}}, for: {1100 * rounds - 100}ns"
    return f"{{kind: {kind}, target: links.up, {when}, {more}, caught_by: {caught_by}}}"


MIXED = {
    "gone": one("loss", 10, "p: 1.0", "seq_gap", rounds=2),
    "twice": one("duplicate", 20, "p: 1.0, after: 2", "seq_dup"),
    "late": one("reorder", 25, "p: 1.0, window: 1", "seq_inversion"),
    "flipped": one("bit_flip", 30, "p: 1.0", "e2e_crc"),
    "spoiled": one("icrc", 35, "p: 1.0", "nic_icrc"),
    "short": one("truncate", 40, "p: 1.0, value: 8B", "frame_len"),
    "astray": one("wrong_qp", 45, "p: 1.0", "stream_id"),
    "paused": "{kind: pause, target: links.up, at: {shot: 50}, value: 2ms, caught_by: pause_time}",
}
"""Frames of rounds only: a lost request would keep the rack waiting for its answer."""

ALARMS = {
    **dict.fromkeys(("seq_dup", "seq_inversion", "e2e_crc", "nic_icrc", "frame_len"), 1),
    **{"seq_gap": 6, "stream_id": 1, "pause_time": 1},
}
LOST = [10, 30, 35, 40, 45]


def run(out: Path, bind: str, faults: dict[str, str], *more: str) -> RunResult:
    text = ", ".join(f"{name}: {body}" for name, body in faults.items())
    sizes = (f"run.shots={SHOTS}", "run.warmup.shots=0", ONLY, f"faults={{{text}}}")
    return run_scenario(SCENARIO, RunOptions(bind=bind, out=out, overrides=(*sizes, *more)))


def alarms(result: RunResult) -> dict[str, int]:
    return {row.name: row.alarms for row in result.document.facts.alarms if row.alarms}


def columns(result: RunResult, *names: str) -> list[np.ndarray]:
    assert validate_trace(result.trace).ok
    with hil.open_trace(result.trace) as trace:
        shots = trace.stream("shots")
        return [np.asarray(shots[name]) for name in names]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A virtual run with one fault of every kind."""
    return run(tmp_path_factory.mktemp("faults") / "mil", "mil", MIXED)


def test_a_virtual_run_catches_and_records_its_faults(mixed: RunResult) -> None:
    assert mixed.verdict is Verdict.PASS
    assert alarms(mixed) == ALARMS
    assert {row.verdict for row in mixed.document.expectations} == {"PASS"}
    status, fallback, dq = columns(mixed, "status", "fallback", "dq_mask")
    assert np.flatnonzero(status == Status.DROPPED).tolist() == LOST
    assert np.flatnonzero(fallback == Reason.TRANSPORT_LOSS).tolist() == LOST
    window = np.flatnonzero(dq & Dq.FAULT_WINDOW.mask)
    assert set(window) >= {*LOST, 20, 25, 50, 51}
    assert window.size < SHOTS // 2
    with hil.open_trace(mixed.trace) as trace:
        rows = {name: np.asarray(column) for name, column in trace.stream("faults").items()}
    one_frame, ends = rows["phase"] == 2, rows["phase"] == 1
    pairs = zip(rows["id"][one_frame], rows["frame"][one_frame], strict=True)
    hit = {(name.decode(), int(frame)) for name, frame in pairs}
    assert {pair for pair in hit if pair[0] != "paused"} == {
        *(("gone", 71), ("gone", 72), ("twice", 141), ("late", 176), ("flipped", 211)),
        *(("spoiled", 246), ("short", 281), ("astray", 316)),
    }
    assert b"" not in rows["caught_by"][ends]
    assert ends.sum() == len(MIXED)


def test_reports_show_faults_and_detectors(mixed: RunResult) -> None:
    assert "must fire for astray" in (mixed.directory / "report.html").read_text()
    console = Console(width=200, record=True, file=io.StringIO())
    show(mixed.document, console)
    shown = " ".join(console.export_text().split())
    assert "fault gone: loss of 100 % of the frames on links.up, to be caught by seq_gap" in shown
    assert "pause_time 1 (must fire for paused);" in shown
    assert "the other 4 silent" in shown


def test_truth_reaches_neither_decoder_nor_policy(mixed: RunResult, tmp_path: Path) -> None:
    """Answers and stamps of shots that no fault touches are those of the run without faults."""
    clean = run(tmp_path / "clean", "mil", {})
    names = ("obs_pred_b8", "detectors_b8", "latency_ps", "status")
    untouched = ~np.isin(np.arange(SHOTS), [*LOST, 50, 51, 52, 53])
    for left, right in zip(columns(clean, *names), columns(mixed, *names), strict=True):
        assert np.array_equal(left[untouched], right[untouched])


def test_executors_agree_under_faults_of_links(tmp_path: Path) -> None:
    heavy = {
        "a": "{kind: loss, target: links.up, p: 0.1, burst: {frames: 5}}",
        "b": "{kind: reorder, target: links.up, p: 0.1, window: 9}",
        "c": "{kind: loss, target: links.down, p: 0.1}",
        "d": "{kind: pause, target: links.down, value: 40us, every: 2ms}",
    }
    both = [
        run(tmp_path / name, "mil", heavy, f"bind.profiles.mil.rack.executor={name}")
        for name in ("bulk", "events")
    ]
    names = ("status", "fallback", "latency_ps", "dq_mask", "obs_pred_b8")
    for left, right in zip(*(columns(result, *names) for result in both), strict=True):
        assert np.array_equal(left, right)


@pytest.mark.live
@pytest.mark.usefixtures("no_orphans")
def test_the_same_frames_suffer_in_a_live_run(tmp_path: Path, loopback: tuple[str, str]) -> None:
    result = run(tmp_path / "sil", "sil", MIXED, *_live(loopback))
    assert alarms(result) == ALARMS
    assert result.verdict is Verdict.PASS
    status, fallback = columns(result, "status", "fallback")
    assert np.flatnonzero(fallback == Reason.TRANSPORT_LOSS).tolist() == LOST
    assert np.flatnonzero(status == Status.DROPPED).tolist() == LOST


@pytest.mark.live
@pytest.mark.usefixtures("no_orphans")
def test_a_reliable_connection_repairs_a_loss_and_shows_it(
    tmp_path: Path, loopback: tuple[str, str]
) -> None:
    reliable = (
        "system.links.up.profile=rocev2-rc-write-imm",
        "system.links.down.profile=rocev2-rc-send",
    )
    gone = {
        "up": one("loss", 10, "p: 1.0", "retx_cluster", rounds=2),
        "down": "{kind: loss, target: links.down, p: 1.0, at: {shot: 30}, for: 7us}",
    }
    result = run(tmp_path / "sil", "sil", gone, *reliable, *_live(loopback))
    fired = alarms(result)
    assert fired["retx_cluster"] >= 3
    assert set(fired) <= {"retx_cluster", "seq_dup", "rnr_count"}
    assert result.verdict is Verdict.PASS
    (fallback,) = columns(result, "fallback")
    assert not fallback.any()


def _live(loopback: tuple[str, str]) -> tuple[str, ...]:
    network = "bind.profiles.sil.network"
    return (
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
        "bind.profiles.sil.rack.pace=20",
    )
