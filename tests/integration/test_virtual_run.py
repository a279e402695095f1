from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hil
from gpu_decoder.build import build_decoder
from gpu_decoder.protocol import GlobalDecoder, Reason
from hil.rack.timeline import Status
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.timebase import MISSING_PS
from hil.verdict.judge import Verdict


def _run(path: Path, out: Path, *overrides: str, bind: str = "mil") -> RunResult:
    return run_scenario(path, RunOptions(bind=bind, out=out, overrides=overrides))


def test_files_and_verdict(scenarios: Path, tmp_path: Path) -> None:
    result = _run(scenarios / "surface_d5.yaml", tmp_path / "run", "run.shots=2000")
    assert result.verdict is Verdict.PASS
    assert {p.name for p in result.directory.iterdir()} >= {
        "trace.h5", "report.json", "junit.xml", "report.html"
    }  # fmt: skip
    assert not list(result.directory.glob("*.part.h5"))


def test_same_seed_same_content_another_seed_another(scenarios: Path, tmp_path: Path) -> None:
    path = scenarios / "surface_d5.yaml"
    first = _run(path, tmp_path / "a", "run.shots=1500")
    again = _run(path, tmp_path / "b", "run.shots=1500")
    other = _run(path, tmp_path / "c", "run.shots=1500", "run.seed=5")
    assert first.content_id == again.content_id
    assert first.content_id != other.content_id
    with hil.open_trace(first.trace) as trace:
        assert trace.content_id == first.content_id


@pytest.mark.parametrize("level", ["rounds", "shots"])
def test_executor_and_level_do_not_change_what_happened(
    scenarios: Path, tmp_path: Path, level: str
) -> None:
    path = scenarios / "surface_d5.yaml"
    common = ("run.shots=700", "run.warmup.shots=10", f"run.record.level={level}")
    bulk = _run(path, tmp_path / "bulk", *common, "bind.profiles.mil.rack.executor=bulk")
    events = _run(path, tmp_path / "events", *common, "bind.profiles.mil.rack.executor=events")
    assert bulk.document.facts.executed != events.document.facts.executed
    with hil.open_trace(bulk.trace) as a, hil.open_trace(events.trace) as b:
        for stream in ("shots", "rounds", "syndromes", "decodes"):
            left, right = a.stream(stream), b.stream(stream)
            for column in left:
                assert left[column].tobytes() == right[column].tobytes(), f"{stream}/{column}"


def test_hops_add_up_exactly_and_answers_are_the_decoders(scenarios: Path, tmp_path: Path) -> None:
    result = _run(scenarios / "surface_d5.yaml", tmp_path / "run", "run.shots=3000")
    with hil.open_trace(result.trace) as trace:
        rounds, shots = trace.stream("rounds"), trace.stream("shots")
        dem = trace.epoch(0)["dem"]
    last = rounds["round"] == 5
    stamps = [
        rounds[f"t_{name}_ps"][last].astype(np.int64)
        for name in (
            "intended", "syndrome", "tx", "rx", "visible", "decode_start", "decode_end",
            "reply_tx", "reply_rx", "applied",
        )
    ]  # fmt: skip
    hops = np.diff(np.stack(stamps), axis=0)
    assert (hops >= 0).all()
    assert np.array_equal(hops.sum(axis=0), rounds["latency_ps"][last])
    assert np.array_equal(shots["latency_ps"], rounds["latency_ps"][last])
    assert (rounds["latency_ps"][~last] == MISSING_PS).all()
    decoder = build_decoder("pymatching_corr", dem)
    predictions = decoder.decode_batch(shots["detectors_b8"]).predictions_b8
    assert np.array_equal(predictions, shots["obs_pred_b8"])
    assert np.array_equal(
        shots["failed"], (shots["obs_pred_b8"] != shots["obs_true_b8"]).any(axis=1)
    )


HEAVY = "bind.profiles.mil.decoder.service.by_events={'0': 5us, '9': 6us, '10': 50us}"


def test_fallback_unanswered_and_refused_shots_are_told_apart(
    scenarios: Path, tmp_path: Path
) -> None:
    base = (
        "run.shots=4000", "run.warmup.shots=0", "system.decoder.fallback.policy=on_deadline",
        "system.decoder.fallback.primary_deadline=45us", "system.decoder.deadline=60us",
        "system.decoder.ring.slots=64", "system.qpu.shot_period=20us", HEAVY,
    )  # fmt: skip
    result = _run(scenarios / "surface_d5.yaml", tmp_path / "fallback", *base)
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
    fell_back = shots["fallback"] == Reason.DEADLINE
    answered = shots["status"] == Status.OK
    assert (fell_back & answered).sum() > 100
    by_shot = {int(s): g for s, g in zip(decodes["shot"], decodes["global_executed"], strict=True)}
    for shot in np.flatnonzero(answered):
        wanted = GlobalDecoder.PYMATCHING if fell_back[shot] else GlobalDecoder.PYMATCHING_CORR
        assert by_shot[int(shot)] == wanted
    unanswered = shots["status"] != Status.OK
    assert (shots["obs_pred_b8"][unanswered] == 0).all()
    assert (shots["slack_ps"][answered] >= 0).all()

    full = _run(
        scenarios / "surface_d5.yaml", tmp_path / "full", *base, "system.decoder.ring.slots=6",
        "bind.profiles.mil.decoder.dispatch=25us",
    )  # fmt: skip
    with hil.open_trace(full.trace) as trace:
        shots = trace.stream("shots")
    refused = shots["fallback"] == Reason.QUEUE_FULL
    assert refused.any()
    assert (shots["status"][refused] == Status.DROPPED).all()


def _recovers(path: np.ndarray, stalled: int, limit: int) -> bool:
    """Whether the primary is back for good within ``limit`` shots behind the stalled one."""
    away = np.flatnonzero(path[stalled:] != 0)
    return bool(away.size == 0 or away[-1] < limit)


def test_stall_primary_is_back_and_misses_stop(scenarios: Path, tmp_path: Path) -> None:
    """decisions, Deadline and fallback: 2 ms stall at load .8; 165 us, 224 us, one per 208 us."""
    stalled, period_us, primary_us, stall_us = 1000, 208, 165, 2000
    result = _run(
        scenarios / "surface_d5.yaml",
        tmp_path / "stall",
        "run.shots=3000",
        "run.warmup.shots=0",
        f"system.qpu.shot_period={period_us}us",
        "system.decoder.fallback.policy=on_deadline",
        "system.decoder.deadline=800us",
        "system.decoder.fallback.primary_deadline=400us",
        "bind.profiles.mil.decoder.service.by_events={'0': 165us}",
        "bind.profiles.mil.decoder.fallback_service.by_events={'0': 224us}",
        f"faults={{stall: {{kind: decoder_stall, at: {{shot: {stalled}}}, value: {stall_us}us}}}}",
    )
    with hil.open_trace(result.trace) as trace:
        shots = trace.stream("shots")
    rho = primary_us / period_us
    limit = int(2 * stall_us / (period_us * (1 - rho)))
    away = (shots["fallback"] != Reason.NONE).astype(int)
    missed = shots["status"] != Status.OK
    assert away[stalled]
    assert away[:stalled].sum() == 0
    assert _recovers(away, stalled, limit)
    assert not missed[stalled + limit :].any()
    assert not _recovers(_naive(3000, stalled), stalled, limit), "the naive policy must be caught"


def _naive(n: int, stalled: int) -> np.ndarray:
    """One worker for both, back to the primary after 1000 clean shots; times in us."""
    free, clean, away = 0.0, 1000, np.zeros(n, dtype=int)
    for i in range(n):
        arrive = 208.0 * i
        start = max(arrive, free)
        primary = clean >= 1000
        done = start + (165 if primary else 224) + (2000 if i == stalled else 0)
        if primary and done > arrive + 400:
            away[i], clean, done = 1, 0, done + 224
        elif not primary:
            away[i] = 1
            clean = clean + 1 if done <= arrive + 800 else 0
        free = done
    return away


def test_long_run_at_level_shots_keeps_rows_of_exceptions_and_one_in_n(
    scenarios: Path, tmp_path: Path
) -> None:
    result = _run(
        scenarios / "surface_d5.yaml", tmp_path / "run", "run.shots=20000",
        "run.record.level=shots", "run.record.every=500", "run.warmup.shots=0",
    )  # fmt: skip
    with hil.open_trace(result.trace) as trace:
        assert trace.rows("shots") == 20000
        shots, rounds = trace.stream("shots"), trace.stream("rounds")
    kept = np.unique(rounds["shot"])
    assert {0, 500, 19500} <= set(kept.tolist())
    first = shots["first_round_row"]
    assert (first[kept] != 2**64 - 1).all()
    assert np.array_equal(rounds["shot"][first[kept].astype(np.int64)], kept)
    assert (np.delete(first, kept) == 2**64 - 1).all()
