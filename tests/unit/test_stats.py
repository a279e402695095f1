"""Statistics against the published check values and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hil.errors import UsageError
from hil.verdict import stats

EXACT = 1e-13  # relative; two libraries of special functions agree to the last digits


@pytest.mark.parametrize(
    ("q", "confidence", "n"),
    [
        (0.99, 0.95, 299),
        (0.999, 0.95, 2_995),
        (0.9999, 0.95, 29_956),
        (0.99999, 0.95, 299_572),
        (0.999999, 0.95, 2_995_731),
        (0.99, 0.99, 459),
        (0.999, 0.99, 4_603),
        (0.9999, 0.99, 46_050),
        (0.99999, 0.99, 460_515),
        (0.999999, 0.99, 4_605_168),
    ],
)
def test_minimum_samples(q: float, confidence: float, n: int) -> None:
    assert stats.minimum_samples(q, confidence) == n
    assert stats.upper_rank(n, q, confidence) == n
    assert stats.upper_rank(n - 1, q, confidence) is None


def test_minimum_samples_of_a_coarse_quantile_is_exact() -> None:
    # 1 - 0.5^n >= 0.75 first at n = 2, and exactly there
    assert stats.minimum_samples(0.5, 0.75) == 2
    assert stats.minimum_samples(0.5, 0.5) == 1


@pytest.mark.parametrize(
    ("k", "n", "q", "value"),
    [
        (298, 299, 0.99, 0.9504637433623376),
        (2_994, 2_995, 0.999, 0.9500382966026437),
        (99_995, 100_000, 0.9999, 0.9707529867944201),
        (999_916, 1_000_000, 0.9999, 0.9536873993084309),
    ],
)
def test_achieved_confidence(k: int, n: int, q: float, value: float) -> None:
    assert stats.binomial_cdf(k, n, q) == pytest.approx(value, rel=EXACT)


@pytest.mark.parametrize(
    ("q", "n", "from_top"),
    [
        (0.99, 10**3, 5),
        (0.99, 3 * 10**3, 21),
        (0.99, 10**4, 84),
        (0.99, 3 * 10**4, 272),
        (0.99, 10**5, 949),
        (0.99, 10**6, 9_837),
        (0.99, 10**7, 99_483),
        (0.999, 3 * 10**3, 1),
        (0.999, 10**4, 5),
        (0.999, 10**5, 84),
        (0.999, 10**6, 948),
        (0.999, 10**7, 9_836),
        (0.9999, 3 * 10**4, 1),
        (0.9999, 10**5, 5),
        (0.9999, 10**6, 84),
        (0.9999, 10**7, 948),
        (0.99999, 10**6, 5),
        (0.99999, 10**7, 84),
        (0.999999, 10**7, 5),
    ],
)
def test_upper_rank_table(q: float, n: int, from_top: int) -> None:
    assert stats.upper_rank(n, q, 0.95) == n - from_top + 1


@pytest.mark.parametrize(
    ("q", "n", "from_top"),
    [(0.999, 10**4, 3), (0.999, 10**5, 78), (0.9999, 10**5, 3), (0.9999, 10**6, 77)],
)
def test_upper_rank_at_99_percent(q: float, n: int, from_top: int) -> None:
    assert stats.upper_rank(n, q, 0.99) == n - from_top + 1


def test_ranks_named_in_the_reference() -> None:
    assert stats.upper_rank(100_000, 0.9999, 0.95) == 99_996
    assert stats.upper_rank(1_000_000, 0.9999, 0.95) == 999_917
    assert stats.lower_rank(1_000, 0.99, 0.95) == 985
    assert stats.lower_rank(10_000, 0.999, 0.95) == 9_985
    assert stats.lower_rank(1_000_000, 0.9999, 0.95) == 999_883
    assert stats.lower_rank(100, 0.5, 0.95) == 42
    assert stats.upper_rank(100, 0.5, 0.95) == 59
    assert stats.upper_rank(20_000, 0.9999, 0.95) is None
    for q, rank in ((0.5, 527), (0.9, 916), (0.95, 962), (0.99, 996)):
        assert stats.upper_rank(1_000, q, 0.95) == rank


@pytest.mark.parametrize("n", [1, 2, 5, 17, 60])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.99])
def test_ranks_by_their_definition(n: int, q: float, confidence: float) -> None:
    pmf = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    upper = [r for r in range(1, n + 1) if sum(pmf[:r]) >= confidence]
    lower = [s for s in range(1, n + 1) if sum(pmf[s:]) >= confidence]
    assert stats.upper_rank(n, q, confidence) == (upper[0] if upper else None)
    assert stats.lower_rank(n, q, confidence) == (lower[-1] if lower else None)


@pytest.mark.parametrize(
    ("n", "q", "rank"), [(1, 0.5, 1), (1_000, 0.999, 999), (1_000, 0.9, 900), (10, 0.05, 1)]
)
def test_quantile_rank(n: int, q: float, rank: int) -> None:
    assert stats.quantile_rank(n, q) == rank


@pytest.mark.parametrize(
    ("k", "n", "upper"),
    [
        (0, 10**6, 2.9957277863525433e-06),
        (0, 10**5, 2.9956874019427947e-05),
        (1, 10**6, 4.743855638214234e-06),
        (3, 10**6, 7.75363809884006e-06),
        (10, 10**6, 1.6962160188281603e-05),
        (4_015, 10**6, 0.00412058473321671),
    ],
)
def test_clopper_pearson_upper(k: int, n: int, upper: float) -> None:
    assert stats.clopper_pearson(k, n, 0.95).upper == pytest.approx(upper, rel=EXACT)


def test_clopper_pearson_against_a_target() -> None:
    assert stats.clopper_pearson(0, 200_000, 0.95).upper == pytest.approx(1.4979e-05, rel=1e-4)
    assert stats.clopper_pearson(0, 300_000, 0.95).upper == pytest.approx(9.98572e-06, rel=1e-6)


def test_clopper_pearson_two_sided() -> None:
    bounds = stats.clopper_pearson_two_sided(636, 200_000, 0.95)
    assert bounds.lower == pytest.approx(0.002937976222173637, rel=EXACT)
    assert bounds.upper == pytest.approx(0.0034365954133232083, rel=EXACT)


def test_clopper_pearson_at_the_ends() -> None:
    assert stats.clopper_pearson(0, 10, 0.95).lower == 0.0
    assert stats.clopper_pearson(10, 10, 0.95).upper == 1.0
    assert stats.clopper_pearson(10, 10, 0.95).lower == pytest.approx(0.05**0.1, rel=EXACT)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_clopper_pearson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(UsageError, match="no such count"):
        stats.clopper_pearson(k, n, 0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(UsageError, match="confidence out of range"):
        stats.clopper_pearson(0, 5, confidence)


def test_episode_factor_and_rate() -> None:
    factors = {
        0: 2.9957322735539895,
        1: 4.743864518390577,
        3: 7.753656527932725,
        8: 14.434649715196311,
    }
    for episodes, factor in factors.items():
        assert stats.episode_factor(episodes, 0.95) == pytest.approx(factor, rel=EXACT)
    rate = stats.episode_rate_upper(8, 4_015 / 8, 10**6, 0.95)
    assert rate == pytest.approx(0.007244389825814149, rel=EXACT)
    assert stats.episode_rate_upper(0, 77.0, 10**6, 0.95) == pytest.approx(2.9957e-6, rel=1e-4)
    assert stats.episode_rate_upper(1, 900.0, 1_000, 0.95) == 1.0


@pytest.mark.parametrize(
    ("p", "rounds", "value"),
    [
        (0.00318, 5, 0.0006376241858481735),
        (0.00404, 7, 0.00057915147508808),
        (0.01, 10, 0.001009115679215189),
    ],
)
def test_failure_rate_per_round(p: float, rounds: int, value: float) -> None:
    assert stats.failure_rate_per_round(p, rounds) == pytest.approx(value, rel=1e-12)


def test_failure_rate_per_round_at_the_edges() -> None:
    assert stats.failure_rate_per_round(0.0, 7) == 0.0
    assert stats.failure_rate_per_round(0.5, 7) == 0.5
    assert stats.failure_rate_per_round(0.9, 7) == 0.5
    assert stats.failure_rate_per_round(0.2, 1) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="rounds"):
        stats.failure_rate_per_round(0.1, 0)


def test_clustering_p_value() -> None:
    # 10 events in 10,000 trials, nine of them next to the one before: beyond any chance
    assert stats.clustering_p_value(10, 10_000, 9, 1) < 1e-20
    # one close pair within 50 trials among two events at rate 2e-4: about 50 * 2e-4
    assert stats.clustering_p_value(2, 10_000, 1, 50) == pytest.approx(0.00995, rel=0.01)
    assert stats.clustering_p_value(1, 10_000, 0, 50) == 1.0
    assert stats.clustering_p_value(5, 10_000, 0, 50) == 1.0
    assert stats.clustering_p_value(100, 100, 99, 1) == 0.0


def test_line_through_batches_finds_an_exact_line() -> None:
    x = np.arange(20.0) * 50 + 24.5
    line = stats.line_through_batches(x, 7.0 + 0.25 * x, 0.95)
    assert line is not None
    assert line.value == pytest.approx(0.25)
    assert line.upper - line.lower < 1e-9
    assert line.degrees_of_freedom == 18


def test_line_through_batches_interval() -> None:
    # y = +-1 alternating about a flat line; every number below by hand
    x, y = np.arange(20.0), np.tile([1.0, -1.0], 10)
    line = stats.line_through_batches(x, y, 0.95)
    assert line is not None
    sxx = 665.0  # 20 (400 - 1) / 12
    slope = -10.0 / sxx
    residual = 20.0 - slope**2 * sxx
    error = math.sqrt(residual / 18 / sxx)
    assert line.value == pytest.approx(slope)
    assert line.upper == pytest.approx(slope + 2.10092204024 * error)
    assert line.lower == pytest.approx(slope - 2.10092204024 * error)


def test_line_needs_three_batches_apart() -> None:
    assert stats.line_through_batches(np.arange(2.0), np.arange(2.0), 0.95) is None
    assert stats.line_through_batches(np.zeros(5), np.arange(5.0), 0.95) is None


def test_mean_lower_bound() -> None:
    assert stats.mean_lower_bound(np.full(20, 0.5), 0.95) == 0.5
    assert stats.mean_lower_bound(np.array([0.5]), 0.95) == -math.inf
    one_of_twenty = np.eye(20)[0]
    assert stats.mean_lower_bound(one_of_twenty, 0.95) < 0.0  # one burst proves no rate


def test_shots_to_show_rate_below_without_events() -> None:
    assert stats.shots_to_show_rate_below(0, 100, 1e-5, 0.95) == 299_572
    assert stats.shots_to_show_rate_below(0, 0, 1e-3, 0.95) == 2_995


def test_shots_to_show_a_rate() -> None:
    total = stats.shots_to_show_rate_below(5, 10_000, 1e-3, 0.95)
    assert total is not None
    assert stats.clopper_pearson(math.ceil(5e-4 * total), total, 0.95).upper <= 1e-3
    above = stats.shots_to_show_rate_above(20, 10_000, 1e-3, 0.95)
    assert above == 10_000  # already shown
    late = stats.shots_to_show_rate_above(3, 2_000, 1e-3, 0.95)
    assert late is not None
    assert late > 2_000
    assert stats.clopper_pearson(math.floor(1.5e-3 * late + 1e-9), late, 0.95).lower > 1e-3


def test_no_number_of_shots_decides_at_the_limit() -> None:
    assert stats.shots_to_show_rate_below(10, 10_000, 1e-3, 0.95) is None
    assert stats.shots_to_show_rate_above(10, 10_000, 1e-3, 0.95) is None
    assert stats.shots_to_show_rate_below(0, 10, 1.0, 0.95) is None
