"""Paired statistics against published check values and direct maximisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hil.errors import UsageError
from hil.seeds import generator
from hil.verdict.paired import holm, mcnemar_exact, not_inferior_p, score, tango

FALSE_ALARM = 1e-6


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [
        (325, 173, 9.171123766587015e-12),
        (239, 101, 4.887764197068339e-14),
        (312, 110, 1.7813767584870017e-23),
        (12, 8, 0.5034446716308594),
        (10, 0, 0.001953125),
        (1, 9, 0.021484375),
        (5, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_exact_mcnemar(worse: int, better: int, p: float) -> None:
    assert mcnemar_exact(worse, better) == pytest.approx(p, rel=1e-11)
    assert mcnemar_exact(better, worse) == pytest.approx(p, rel=1e-11)


@pytest.mark.parametrize(
    ("worse", "better", "shots", "lower", "upper"),
    [
        (325, 173, 200_000, 0.000543442947001214, 0.0009823362563537554),
        (12, 8, 1_000, -0.005213591744011415, 0.01381537845582138),
        (10, 0, 100, 0.05522913706060794, 0.17436566150491345),
        (0, 0, 1_000, -0.0038267584856329687, 0.003826758485632969),
    ],
)
def test_tango_interval(worse: int, better: int, shots: int, lower: float, upper: float) -> None:
    bounds = tango(worse, better, shots, 0.975)
    assert bounds.lower == pytest.approx(lower, abs=1e-11)
    assert bounds.upper == pytest.approx(upper, abs=1e-11)
    mirrored = tango(better, worse, shots, 0.975)
    assert mirrored.lower == pytest.approx(-upper, abs=1e-11)


def test_non_inferiority() -> None:
    assert tango(8, 12, 1_000, 0.95).upper == pytest.approx(0.00358023928521360, abs=1e-10)
    assert not_inferior_p(8, 12, 1_000, 0.005) < 0.05 < not_inferior_p(8, 12, 1_000, 0.002)
    assert tango(325, 173, 200_000, 0.95).lower > 0.000318  # inferior beyond doubt
    assert tango(325, 173, 200_000, 0.95).lower == pytest.approx(0.000578, abs=5e-7)


@pytest.mark.parametrize("difference", [-0.3, -0.01, 0.0, 0.004, 0.2])
def test_the_variance_is_that_of_the_constrained_maximum(difference: float) -> None:
    worse, better, n = 12, 8, 1_000
    only_old = np.linspace(max(0.0, -difference), min(1.0, (1 - difference) / 2), 2_000_001)[1:-1]
    likelihood = (
        worse * np.log(only_old + difference)
        + better * np.log(only_old)
        + (n - worse - better) * np.log1p(-2 * only_old - difference)
    )
    best = only_old[np.argmax(likelihood)]
    expected = (worse - better - n * difference) / math.sqrt(
        n * (2 * best + difference * (1 - difference))
    )
    assert score(worse, better, n, difference) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_extreme_counts() -> None:
    assert tango(0, 5, 5, 0.95).lower == pytest.approx(-1.0)
    assert tango(5, 0, 5, 0.95).upper == pytest.approx(1.0)
    for counts in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(UsageError, match="no such counts"):
            tango(*counts, 0.95)
    with pytest.raises(UsageError, match="confidence"):
        tango(1, 1, 5, 0.5)


def test_holm() -> None:
    assert holm([0.2, 0.001, 0.03, 0.012]) == pytest.approx([0.2, 0.004, 0.06, 0.036])
    assert holm([]) == []


def test_the_upper_bound_covers() -> None:
    """Coverage of the one-sided 95 % bound; false alarm of this test: see FALSE_ALARM."""
    trials, n, worse, better = 2_000, 20_000, 0.0011, 0.0009
    counts = generator(5, "paired").multinomial(n, [worse, better, 1 - worse - better], trials)
    covered = sum(tango(int(b), int(c), n, 0.95).upper >= worse - better for b, c, _ in counts)
    # The bound is asymptotic: 94 % is what is claimed.
    assert covered >= stats.binom.ppf(FALSE_ALARM, trials, 0.94)
