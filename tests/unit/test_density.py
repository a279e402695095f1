"""How much a pre-decoder thins out: the ratio of sums, its bounds, what does not count."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_run import Shots
from test_metrics import metrics

from hil.scenario.expect import Expectation
from hil.verdict.density import METRIC, EventCounts, ratio_bounds
from hil.verdict.judge import Verdict, judge
from hil.verdict.measured import NotMeasuredError
from hil.verdict.metrics import Metrics

SEED = 7


def run(left_mean: float, n: int = 4_000, warmup: int = 0, silent: int = 0) -> Metrics:
    """Shots with 12 events before and ``left_mean`` behind; ``silent`` shots without an answer."""
    rng = np.random.default_rng(SEED)
    shots, out = Shots(n, warmup=warmup), metrics(warmup)
    left = rng.poisson(left_mean, n)
    left[n - silent :] = -1
    columns = shots.columns()
    half = n // 2
    for part in (slice(0, half), slice(half, n)):
        out.update(
            *({name: column[part] for name, column in table.items()} for table in columns),
            None,
            EventCounts(np.full(n, 12)[part], left[part]),
        )
    return out


def test_ratio_of_sums_with_bounds_around_it() -> None:
    found = run(4.0).measure(METRIC, "", 0.95)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < found.value < found.upper
    assert found.lower < 3.0 < found.upper
    assert found.upper / found.lower < 1.05
    assert (found.n, found.unit) == (4_000, "1")


def test_shots_that_it_did_not_answer_do_not_count() -> None:
    whole, part = run(4.0), run(4.0, silent=1_000)
    assert part.measure(METRIC).n == 3_000
    assert part.measure(METRIC).value == pytest.approx(whole.measure(METRIC).value, rel=0.02)


def test_warm_up_is_left_out_of_the_clean_scope() -> None:
    m = run(4.0, warmup=500)
    assert m.measure(METRIC).n == 3_500
    assert m.measure(METRIC, scope="all").n == 4_000


def test_nothing_to_measure() -> None:
    with pytest.raises(NotMeasuredError, match="no pre-decoder answered"):
        run(4.0, silent=4_000).measure(METRIC)
    with pytest.raises(NotMeasuredError, match="no event is left"):
        run(0.0).measure(METRIC)
    few = run(0.01)
    assert few.measure(METRIC).lower is None, "too few events for a bound"


@pytest.mark.parametrize(
    ("least", "verdict"),
    [(2.5, Verdict.PASS), (3.5, Verdict.FAIL), (3.0, Verdict.INCONCLUSIVE)],
)
def test_verdict(least: float, verdict: Verdict) -> None:
    spec = Expectation.model_validate({"metric": METRIC, "min": least, "confidence": 0.95})
    (row,) = judge({"density": spec}, run(4.0))
    assert row.verdict is verdict


@pytest.mark.parametrize("mean_left", [12, 400])
def test_bounds_keep_their_promise_in_small_runs(mean_left: int) -> None:
    """At the limit itself 5 % of runs may pass, and 5 % fail; of few events up to 6.5 % do.

    4,000 runs: 9 % of them lie 6.4 standard deviations above that (false alarm < 1e-9).
    """
    rng, ratio, beyond = np.random.default_rng(SEED), 5, np.zeros(2)
    for _ in range(4_000):
        left = rng.poisson(mean_left, 20)
        before = left + rng.poisson((ratio - 1) * mean_left, 20)
        lower, upper = ratio_bounds(before, left, 0.95)
        beyond += (lower > ratio, upper < ratio)
    assert (beyond < 0.09 * 4_000).all(), beyond
