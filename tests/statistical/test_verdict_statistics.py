"""How often the bounds and verdicts are wrong, by simulation with fixed seeds.

Every test states in FALSE_ALARM_RATE how often it would fail if the code were right and the seed
another one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from hil.scenario.expect import Expectation
from hil.verdict import stats
from hil.verdict.accumulate import BatchTable, Episodes
from hil.verdict.histogram import Histogram
from hil.verdict.judge import Verdict, judge, limits_of
from hil.verdict.metrics import Metrics

FALSE_ALARM_RATE = 1e-6
RUNS = 2_000


def rng(name: int) -> np.random.Generator:
    return np.random.default_rng((20261122, name))


def least_hits(runs: int, rate: float) -> int:
    """Hits that a rate of at least ``rate`` reaches but for FALSE_ALARM_RATE."""
    return int(binom.ppf(FALSE_ALARM_RATE, runs, rate))


def most_hits(runs: int, rate: float) -> int:
    """Hits that a rate of at most ``rate`` stays below but for FALSE_ALARM_RATE."""
    return int(binom.isf(FALSE_ALARM_RATE, runs, rate)) + 1


@pytest.mark.parametrize(("n", "q"), [(5_000, 0.999), (10_000, 0.999), (1_000, 0.99), (100, 0.5)])
def test_coverage_of_the_upper_bound(n: int, q: float) -> None:
    # order statistics of exponential samples need no sorting: X_(r) has a Beta-distributed rank
    rank = stats.upper_rank(n, q, 0.95)
    assert rank is not None
    covered = rng(n).beta(rank, n - rank + 1, RUNS) >= q
    exact = stats.binomial_cdf(rank - 1, n, q)
    assert exact >= 0.95
    assert least_hits(RUNS, exact) <= covered.sum() <= most_hits(RUNS, exact)


@pytest.mark.parametrize(("n", "q"), [(5_000, 0.999), (1_000, 0.99), (100, 0.5)])
def test_coverage_of_the_lower_bound(n: int, q: float) -> None:
    rank = stats.lower_rank(n, q, 0.95)
    assert rank is not None
    covered = rng(n + 1).beta(rank, n - rank + 1, RUNS) <= q
    assert covered.sum() >= least_hits(RUNS, 0.95)


def test_coverage_through_the_histogram() -> None:
    """Samples of ps through the buckets: the bound may only become safer."""
    n, q, runs = 5_000, 0.999, 1_000
    true_ps = -math.log(1 - q) * 10_000_000
    rank = stats.upper_rank(n, q, 0.95)
    assert rank is not None
    covered = 0
    source = rng(3)
    for _ in range(runs):
        histogram = Histogram()
        histogram.update((source.standard_exponential(n) * 10_000_000).astype(np.int64))
        covered += histogram.order_statistic(rank)[1] >= true_ps
    exact = stats.binomial_cdf(rank - 1, n, q)  # 95.96 %
    assert covered >= least_hits(runs, exact)
    assert covered >= 935  # of 1,000: the demand of the reference


@pytest.mark.parametrize(
    ("n", "p"), [(300, 0.01), (3_000, 1e-3), (10_000, 1e-3), (1_000, 0.05), (500, 0.3)]
)
def test_coverage_of_clopper_pearson(n: int, p: float) -> None:
    events = rng(n).binomial(n, p, RUNS)
    bounds = {int(k): stats.clopper_pearson(int(k), n, 0.95) for k in np.unique(events)}
    above = sum(bounds[int(k)].upper >= p for k in events)
    below = sum(bounds[int(k)].lower <= p for k in events)
    assert min(above, below) >= least_hits(RUNS, 0.95)


@pytest.mark.parametrize(("n", "limit"), [(3_000, 1e-3), (5_000, 1e-3), (20_000, 1e-3), (700, 0.1)])
def test_false_pass_at_the_limit_exactly(n: int, limit: float) -> None:
    """No simulation: the probability of a PASS at the limit, summed over the binomial."""
    passing = [
        k for k in range(int(n * limit) + 1) if stats.clopper_pearson(k, n, 0.95).upper <= limit
    ]
    assert binom.pmf(passing, n, limit).sum() <= 0.05
    failing = [
        k
        for k in range(int(n * limit), int(n * limit + 12 * math.sqrt(n * limit) + 40))
        if stats.clopper_pearson(k, n, 0.95).lower > limit
    ]
    assert binom.pmf(failing, n, limit).sum() <= 0.05


def shots_of(late: NDArray[np.bool_], deadline: int) -> dict[str, NDArray[np.generic]]:
    n = late.shape[0]
    latency = np.where(late, deadline + 1, 1_000).astype(np.int64)
    zeros = np.zeros(n, np.uint8)
    return {
        "shot": np.arange(n, dtype=np.uint32),
        "dq_mask": np.zeros(n, np.uint32),
        "failed": late,
        "latency_ps": latency,
        "slack_ps": deadline - latency,
        "fallback": zeros,
        "status": zeros,
    }


def test_false_pass_of_whole_judgements_at_the_limit() -> None:
    """2,000 runs of a system exactly at its limits, through metrics and judge.

    n and limits are chosen such that a PASS has probability 4.6 % (rate) and is the same event for
    the quantile; allowed are 5 % of 2,000 and what chance adds to it.
    """
    n, limit, deadline = 6_400, 1e-3, 50_000_000
    expect = {
        "rate": Expectation(metric="ler.per_shot", max=limit, confidence=0.95),
        "misses": Expectation(metric="deadline.miss_rate", max=limit, confidence=0.95),
        "quantile": Expectation(
            metric="latency.end_to_end", stat="p99.9", max=deadline, confidence=0.95
        ),
    }
    source = rng(9)
    passes = dict.fromkeys(expect, 0)
    fails = dict.fromkeys(expect, 0)
    for _ in range(RUNS):
        late = np.zeros(n, np.bool_)
        late[np.flatnonzero(source.random(n) < limit)] = True
        metrics = Metrics(1, 1, 1, 0, deadline, "modelled", watch=limits_of(expect))
        metrics.update(shots_of(late, deadline), {})
        for judgement in judge(expect, metrics):
            passes[judgement.id] += judgement.verdict is Verdict.PASS
            fails[judgement.id] += judgement.verdict is Verdict.FAIL
    for name in expect:
        assert passes[name] <= most_hits(RUNS, 0.05)
        assert fails[name] <= most_hits(RUNS, 0.05)
        assert passes[name] <= 0.05 * RUNS  # with this seed even without an allowance
    assert min(passes.values()) > 0  # the rule can pass at all


def test_power_away_from_the_limit() -> None:
    """At half and at twice the limit most runs decide, and rightly."""
    n, limit = 20_000, 1e-3
    source = rng(12)
    for factor, wanted in ((0.5, "pass"), (2.0, "fail")):
        events = source.binomial(n, factor * limit, RUNS)
        bounds = [stats.clopper_pearson(int(k), n, 0.95) for k in events]
        passed = sum(b.upper <= limit for b in bounds)
        failed = sum(b.lower > limit for b in bounds)
        right, wrong = (passed, failed) if wanted == "pass" else (failed, passed)
        assert right > 0.5 * RUNS
        assert wrong == 0


# the stall of the reference, in integers


def lindley(service: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """Latencies L_i = W_i + s_i with W_0 = 0, W_{i+1} = max(0, W_i + s_i - T)."""
    steps = np.cumsum(service - period)
    waits = np.zeros_like(service)
    waits[1:] = (steps - np.minimum.accumulate(np.minimum(steps, 0)))[:-1]
    return waits + service


def test_stall_demo_in_integers() -> None:
    service = np.full(1_000, 6, np.int64)
    service[100] += 2_000
    latency = lindley(service, 10)
    assert [latency[i] for i in (100, 101, 595, 596, 600)] == [2_006, 2_002, 26, 22, 6]
    misses = np.flatnonzero(latency > 25)
    assert misses.shape[0] == 496
    formula = (2_000 + 6 - 25) / (10 * (1 - 0.6))
    assert formula == pytest.approx(495.25)
    assert int(np.flatnonzero(latency > 6)[-1]) - 100 + 1 == 500  # recovery
    episodes = Episodes(50)
    episodes.update(misses)
    assert (episodes.wide.count, episodes.wide.longest) == (1, 496)
    histogram = Histogram()
    histogram.update(latency)
    for q, rank, bound in (
        (0.5, 527, 114),
        (0.9, 916, 1_670),
        (0.95, 962, 1_854),
        (0.99, 996, 1_990),
    ):
        assert stats.upper_rank(1_000, q, 0.95) == rank
        assert histogram.order_statistic(rank) == (bound, bound)
    assert np.count_nonzero(service > 25) == 1  # what a closed loop would have seen


def test_episode_bound_covers_where_independence_does_not() -> None:
    """Stalls of 2 ms on a 10 us cadence: the naive bound covers half as often as it says."""
    runs, n, p_stall = 400, 200_000, 1e-5
    source = rng(21)
    missed_per_stall = 496  # of the stall above
    truth = p_stall * missed_per_stall
    naive = episode = 0
    for _ in range(runs):
        starts = np.flatnonzero(source.random(n) < p_stall)
        late = np.unique((starts[:, None] + np.arange(missed_per_stall)).ravel())
        late = late[late < n]
        tracker = Episodes(50)
        tracker.update(late)
        k, m = tracker.wide.count, tracker.events
        naive += stats.clopper_pearson(m, n, 0.95).upper >= truth
        length = tracker.wide.mean_length if k else missed_per_stall
        rate = stats.episode_factor(k, 0.95) * length / n
        episode += rate >= truth
        if m:
            assert tracker.p_value(n) < 0.025
    assert naive < most_hits(runs, 0.7)
    assert episode >= least_hits(runs, 0.95)


def test_independent_events_are_rarely_called_dependent() -> None:
    n, runs = 20_000, 1_000
    source = rng(22)
    for rate in (1e-3, 1e-2, 0.1):
        called = 0
        for _ in range(runs):
            tracker = Episodes(50)
            tracker.update(np.flatnonzero(source.random(n) < rate))
            called += tracker.p_value(n) < 0.025
        assert called <= most_hits(runs, 0.06)


def slope_interval(latency: NDArray[np.int64]) -> stats.Slope:
    table = BatchTable(("answered", "position", "latency"))
    position = np.arange(latency.shape[0])
    table.update(position, {"answered": position >= 0, "position": position, "latency": latency})
    sums = table.batches()
    line = stats.line_through_batches(
        sums["position"] / sums["answered"], sums["latency"] / sums["answered"], 0.95
    )
    assert line is not None
    return line


def test_backlog_slope_tells_stable_from_overloaded_queues() -> None:
    """Exponential-ish services in ps at a cadence of 10 us, 20,000 shots as in the reference."""
    period, n = 10_000_000, 20_000
    source = rng(31)

    def alarms(load: float, runs: int) -> int:
        found = 0
        for _ in range(runs):
            service = source.lognormal(0.0, 0.12, n) * load * period / math.exp(0.0072)
            found += slope_interval(lindley(service.astype(np.int64), period)).lower > 0
        return found

    # reference: 1 to 5.5 % false overload at rho .6 to .99, 100 % at rho 1.01
    assert alarms(0.6, 150) <= most_hits(150, 0.055)
    assert alarms(0.9, 150) <= most_hits(150, 0.055)
    assert alarms(1.01, 60) == 60


def test_slope_of_an_overloaded_queue() -> None:
    service = np.full(20_000, 10_100_000, np.int64)
    line = slope_interval(lindley(service, 10_000_000))
    assert line.value == pytest.approx(100_000)  # s - T per shot
    assert line.lower > 99_999
