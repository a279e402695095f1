"""Verdicts: the rule, counts, what was not measured, clusters, exit codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_run import DEADLINE_PS, HOP_PS, LATENCY_PS, SHOT_PERIOD_PS, Shots

from hil.scenario.expect import Expectation
from hil.verdict import stats
from hil.verdict.judge import (
    Judgement,
    Verdict,
    exit_code,
    judge,
    limits_of,
    run_verdict,
    skipped,
)
from hil.verdict.metrics import COUNT_METRICS, Metrics


def expectation(metric: str, **limits: object) -> Expectation:
    known = {"confidence": 0.95} if "equals" not in limits else {}
    return Expectation.model_validate({"metric": metric, **known, **limits})


def judged(shots: Shots, expect: Expectation, *, watch: bool = True, **counts: int) -> Judgement:
    metrics = Metrics(
        *(1, 1_100_000, SHOT_PERIOD_PS, shots.warmup, DEADLINE_PS, "modelled"),
        watch=limits_of({"x": expect}) if watch else None,
    )
    metrics.update(*shots.columns())
    metrics.add_counts({name.replace("__", "."): value for name, value in counts.items()})
    (only,) = judge({"x": expect}, metrics)
    return only


def failing(n: int, events: int) -> Shots:
    shots = Shots(n)
    shots.failed[np.random.default_rng(3).choice(n, events, replace=False)] = True
    return shots


def slow(n: int, events: int, extra_ps: int) -> Shots:
    shots = Shots(n)
    where = np.random.default_rng(3).choice(n, events, replace=False)
    shots.hops["decode"][where] += extra_ps
    return shots


@pytest.mark.parametrize(
    ("n", "events", "limit", "verdict"),
    [
        (3_000, 0, 1e-3, Verdict.PASS),
        (2_995, 0, 1e-3, Verdict.PASS),
        (2_994, 0, 1e-3, Verdict.INCONCLUSIVE),
        (10_000, 10, 1e-3, Verdict.INCONCLUSIVE),
        (10_000, 15, 1e-3, Verdict.INCONCLUSIVE),
        (10_000, 16, 1e-3, Verdict.FAIL),
        (10_000, 4, 1e-3, Verdict.PASS),
        (10_000, 5, 1e-3, Verdict.INCONCLUSIVE),
    ],
)
def test_rate_against_max(n: int, events: int, limit: float, verdict: Verdict) -> None:
    found = judged(failing(n, events), expectation("ler.per_shot", max=limit))
    assert found.verdict is verdict
    bounds = stats.clopper_pearson(events, n, 0.95)
    assert (found.lower, found.upper) == (bounds.lower, bounds.upper)
    assert (found.measured, found.n, found.events) == (events / n, n, events)
    assert found.limit == found.limit_max == limit


def test_rate_against_min_is_the_same_reversed() -> None:
    at_least = expectation("decoder.fallback_rate", min=0.1)
    shots = Shots(1_000)
    assert judged(shots, at_least).verdict is Verdict.FAIL
    shots.fallback[::5] = 1
    assert judged(shots, at_least).verdict is Verdict.PASS
    shots.fallback[:] = 0
    shots.fallback[::10] = 1
    assert judged(shots, at_least).verdict is Verdict.INCONCLUSIVE


def test_both_limits_and_the_worse_decides() -> None:
    both = expectation("decoder.fallback_rate", min=0.1, max=0.3)
    shots = Shots(1_000)
    shots.fallback[::5] = 1
    assert judged(shots, both).verdict is Verdict.PASS
    shots.fallback[:] = 0
    found = judged(shots, both)
    assert found.verdict is Verdict.FAIL
    assert "min" in found.reason


def test_latency_needs_its_least_number_of_samples() -> None:
    p999 = expectation("latency.end_to_end", stat="p99.9", max=60_000_000)
    short = judged(Shots(2_994), p999)
    assert short.verdict is Verdict.INCONCLUSIVE
    assert short.shots_needed == 1
    assert "2,995" in short.reason
    assert judged(Shots(2_995), p999).verdict is Verdict.PASS
    far = judged(Shots(100), expectation("latency.end_to_end", stat="p99.99", max=60_000_000))
    assert far.shots_needed == 29_956 - 100


@pytest.mark.parametrize(
    ("late", "verdict"),
    [
        (0, Verdict.PASS),
        (4, Verdict.PASS),
        (5, Verdict.INCONCLUSIVE),
        (15, Verdict.INCONCLUSIVE),
        (16, Verdict.FAIL),
    ],
)
def test_latency_quantile_is_a_rate_of_late_shots(late: int, verdict: Verdict) -> None:
    limit = 2 * LATENCY_PS
    found = judged(
        slow(10_000, late, 3 * LATENCY_PS),
        expectation("latency.end_to_end", stat="p99.9", max=limit),
    )
    assert found.verdict is verdict


def test_the_limit_itself_passes_and_one_resolution_step_does_not() -> None:
    exact = expectation("latency.acquire", stat="p99", max=HOP_PS["acquire"])
    assert judged(Shots(300), exact).verdict is Verdict.PASS
    below = expectation("latency.acquire", stat="p99", max=HOP_PS["acquire"] - 1)
    assert judged(Shots(300), below).verdict is Verdict.FAIL
    # two values in one bucket: what the histogram cannot tell apart is never a PASS
    shots = Shots(300)
    shots.hops["decode"][0] += 1
    inside = expectation("latency.decode", stat="p99.9", max=HOP_PS["decode"], confidence=0.51)
    assert judged(shots, inside).verdict is not Verdict.PASS


def test_unanswered_shots_fail_a_latency_limit() -> None:
    shots = Shots(10_000)
    shots.unanswered(np.random.default_rng(1).choice(10_000, 60, replace=False))
    found = judged(shots, expectation("latency.end_to_end", stat="p99.9", max=60_000_000))
    assert found.verdict is Verdict.FAIL
    assert found.measured == math.inf


def test_late_shots_in_a_burst_do_not_pass_as_if_independent() -> None:
    shots = Shots(100_000)
    shots.hops["decode"][50_000:50_040] += DEADLINE_PS  # 4e-4, once
    p999 = expectation("latency.end_to_end", stat="p99.9", max=50_000_000)
    blind = judged(shots, p999, watch=False)
    assert blind.verdict is Verdict.PASS  # order statistics alone are fooled, and say so
    assert "independent" in blind.reason
    found = judged(shots, p999)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "1 episodes" in found.reason
    assert found.shots_needed is not None
    assert found.shots_needed > 0


def test_late_shots_in_a_burst_do_not_fail_as_if_independent() -> None:
    shots = Shots(100_000)
    shots.hops["decode"][50_000:50_300] += DEADLINE_PS
    found = judged(shots, expectation("latency.end_to_end", stat="p99.9", max=50_000_000))
    assert found.verdict is Verdict.INCONCLUSIVE
    always = Shots(10_000)
    always.hops["decode"] += DEADLINE_PS
    found = judged(always, expectation("latency.end_to_end", stat="p99.9", max=50_000_000))
    assert found.verdict is Verdict.FAIL


def test_backlog() -> None:
    limit = expectation("backlog.slope", max=1_000)
    assert judged(Shots(2_000), limit).verdict is Verdict.PASS
    growing = Shots(2_000)
    growing.hops["queue"] = np.arange(2_000, dtype=np.int64) * 1_100
    assert judged(growing, limit).verdict is Verdict.FAIL
    noisy = Shots(2_000)
    noise = np.random.default_rng(7).integers(0, 10**7, 2_000)
    noisy.hops["queue"] = np.arange(2_000, dtype=np.int64) * 900 + noise
    open_end = judged(noisy, limit)
    assert open_end.verdict is Verdict.INCONCLUSIVE
    assert open_end.shots_needed is not None
    few = judged(Shots(10), limit)
    assert (few.verdict, few.shots_needed) == (Verdict.INCONCLUSIVE, 10)


@pytest.mark.parametrize("metric", COUNT_METRICS)
def test_counts_fail_at_the_first_event(metric: str) -> None:
    none = expectation(metric, equals=0)
    name = metric.replace(".", "__")
    passed = judged(Shots(3_000), none, **{name: 0})
    assert passed.verdict is Verdict.PASS
    assert "0.001" in passed.reason  # the bound 3/n is printed
    assert judged(Shots(3_000), none, **{name: 1}).verdict is Verdict.FAIL
    assert judged(Shots(3_000), expectation(metric, equals=2), **{name: 2}).verdict is Verdict.PASS
    assert judged(Shots(3_000), expectation(metric, equals=2), **{name: 0}).verdict is Verdict.FAIL


def test_a_count_over_no_shot_at_all_is_a_rig_error() -> None:
    """A run whose node never started counts nothing and must not read as PASS."""
    metrics = Metrics(1, 1_100_000, SHOT_PERIOD_PS, 0, DEADLINE_PS, "modelled")
    metrics.add_counts({"answers.missing": 0})
    (found,) = judge({"x": expectation("answers.missing", equals=0)}, metrics)
    assert (found.verdict, found.reason) == (Verdict.RIG_ERROR, "not measured: no shot to judge")


@pytest.mark.parametrize("metric", COUNT_METRICS)
def test_a_count_that_nobody_took_is_a_rig_error(metric: str) -> None:
    found = judged(Shots(100), expectation(metric, equals=0))
    assert found.verdict is Verdict.RIG_ERROR
    assert "not measured" in found.reason


@pytest.mark.parametrize(
    "spec",
    [
        expectation("latency.decode", stat="p50", max=10**12),
        expectation("latency.end_to_end", stat="p50", max=10**12),
        expectation("deadline.miss_rate", max=1.0),
        expectation("decoder.fallback_rate", max=1.0),
        expectation("decoder.unanswered_rate", max=1.0),
        expectation("ler.per_shot", max=1.0),
        expectation("backlog.slope", max=10**12),
    ],
    ids=lambda spec: spec.metric,
)
def test_nothing_measured_is_never_a_pass(spec: Expectation) -> None:
    empty = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    (found,) = judge({"x": spec}, empty)
    assert found.verdict is Verdict.RIG_ERROR
    only_warmup = judged(Shots(50, warmup=50), spec)
    assert only_warmup.verdict is Verdict.RIG_ERROR


def test_each_hop_without_stamps_is_a_rig_error() -> None:
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    metrics.update(Shots(5_000).columns()[0], {})
    expect = {h: expectation(f"latency.{h}", stat="p50", max=10**12) for h in HOP_PS}
    assert {j.verdict for j in judge(expect, metrics)} == {Verdict.RIG_ERROR}


def test_marginal_flags_a_pass_without_changing_it() -> None:
    spec = {"stat": "p50", "max": 2 * LATENCY_PS}
    near = expectation("latency.end_to_end", marginal=LATENCY_PS - 1, **spec)
    far = expectation("latency.end_to_end", marginal=LATENCY_PS + 1, **spec)
    assert judged(Shots(100), near).marginal_hit
    assert judged(Shots(100), near).verdict is Verdict.PASS
    assert not judged(Shots(100), far).marginal_hit
    low = expectation("ler.per_shot", min=0.1, marginal=0.9)
    assert judged(failing(1_000, 500), low).marginal_hit


def test_forecast_of_shots_decides_when_followed() -> None:
    limit = expectation("ler.per_shot", max=1e-2)
    first = judged(failing(2_000, 16), limit)
    assert first.verdict is Verdict.INCONCLUSIVE
    assert first.shots_needed is not None
    n = 2_000 + first.shots_needed
    assert judged(failing(n, math.ceil(0.008 * n)), limit).verdict is Verdict.PASS
    worse = judged(failing(2_000, 24), limit)
    assert worse.shots_needed is not None
    n = 2_000 + worse.shots_needed
    assert judged(failing(n, math.floor(0.012 * n)), limit).verdict is Verdict.FAIL
    assert judged(failing(2_000, 20), limit).shots_needed is None


def test_substitutes_fail_a_run_that_does_not_ask_for_them() -> None:
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    metrics.update(*Shots(100).columns())
    metrics.add_counts({"decoder.backend_mismatch": 0})
    assert judge({}, metrics) == [], "nothing to say"
    metrics.add_counts({"decoder.backend_mismatch": 3})
    (row,) = judge({}, metrics)
    assert (row.id, row.verdict, row.measured) == ("no-substitute", Verdict.FAIL, 3)
    asked = {"backend": expectation("decoder.backend_mismatch", equals=0)}
    (row,) = judge(asked, metrics)
    assert (row.id, row.verdict) == ("backend", Verdict.FAIL), "once"


def test_alarms_and_rig_errors() -> None:
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    metrics.update(*Shots(100).columns())
    assert judge({}, metrics) == []
    (quiet,) = judge({}, metrics, alarms={"icrc": 0, "seq_gap": 0})
    assert quiet.verdict is Verdict.PASS
    (loud,) = judge({}, metrics, alarms={"icrc": 0, "seq_gap": 2})
    assert loud.verdict is Verdict.FAIL
    assert "seq_gap 2" in loud.reason
    rig = judge({}, metrics, alarms={}, rig_errors=["node died", "disk full"])
    assert [j.verdict for j in rig] == [Verdict.PASS, Verdict.RIG_ERROR, Verdict.RIG_ERROR]
    assert run_verdict(rig) is Verdict.RIG_ERROR


def of(*verdicts: Verdict) -> list[Judgement]:
    return [Judgement(str(i), "m", "", "all", v, "") for i, v in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("verdicts", "worst", "code"),
    [
        ((Verdict.PASS, Verdict.PASS), Verdict.PASS, 0),
        ((Verdict.PASS, Verdict.SKIP), Verdict.PASS, 0),
        ((Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE), Verdict.FAIL, 1),
        ((Verdict.FAIL, Verdict.RIG_ERROR), Verdict.RIG_ERROR, 3),
        ((Verdict.PASS, Verdict.INCONCLUSIVE), Verdict.INCONCLUSIVE, 4),
        ((Verdict.SKIP, Verdict.SKIP), Verdict.SKIP, 4),
        ((), Verdict.SKIP, 4),
    ],
)
def test_run_verdict_and_exit_code(
    verdicts: tuple[Verdict, ...], worst: Verdict, code: int
) -> None:
    assert run_verdict(of(*verdicts)) is worst
    assert exit_code(worst) == code


def test_skipped_keeps_the_limits() -> None:
    (found,) = skipped({"lost": expectation("packets.lost", equals=0)}, "needs gpu")
    assert (found.verdict, found.reason, found.equals) == (Verdict.SKIP, "needs gpu", 0)


def test_limits_of_latencies_only() -> None:
    found = limits_of(
        {
            "a": expectation("latency.decode", stat="p50", max=5),
            "b": expectation("latency.decode", stat="p99", max=9),
            "c": expectation("latency.queue", stat="p99", min=1),
            "d": expectation("ler.per_shot", max=0.1),
        }
    )
    assert found == {"latency.decode": (5, 9)}
