"""Load of sliding windows: mean, bounds, dependence, and what is not measured."""

from __future__ import annotations

import numpy as np
import pytest

from hil.timebase import MISSING_PS
from hil.verdict.load import WindowServices, measure
from hil.verdict.measured import NotMeasuredError

TIME_PS = 1_000


def _load(service_ps: np.ndarray, confidence: float = 0.95, parts: int = 1) -> object:
    services = WindowServices()
    shots = np.arange(service_ps.shape[0])
    for rows in np.array_split(shots, parts):
        services.update(rows, service_ps[rows])
    return measure([services], TIME_PS, confidence, "clean", "label")


def test_mean_of_full_windows_without_the_last_one() -> None:
    service = np.full((100, 6), 800)
    service[:, -1] = 10**6  # the last window of a shot may be shorter or longer
    service[7, 2] = MISSING_PS
    load = _load(service, parts=3)
    assert load.value == 0.8
    assert load.n == 100 * 5 - 1
    assert (load.lower, load.upper) == pytest.approx((0.8, 0.8))


def test_one_long_shot_is_enough_for_bounds() -> None:
    rng = np.random.default_rng(3)
    load = _load(rng.integers(500, 900, size=(1, 20_001)))
    assert load.lower < 0.6995 < load.upper
    assert load.upper - load.lower < 0.01


def test_few_windows_give_no_bound() -> None:
    load = _load(np.full((10, 11), 800))
    assert load.n == 100
    assert load.lower is None
    assert load.upper is None


def test_groups_are_added() -> None:
    a, b = WindowServices(), WindowServices()
    a.update(np.arange(0, 50), np.full((50, 11), 400))
    b.update(np.arange(50, 100), np.full((50, 11), 800))
    assert measure([a, b], TIME_PS, 0.95, "all", "").value == pytest.approx(0.6)


def test_what_was_not_measured_is_said() -> None:
    with pytest.raises(NotMeasuredError, match="no sliding windows"):
        measure([WindowServices()], None, 0.95, "clean", "")
    with pytest.raises(NotMeasuredError, match="no full window is known"):
        _load(np.full((5, 1), 800))
    with pytest.raises(NotMeasuredError, match="no full window is known"):
        _load(np.full((5, 4), MISSING_PS))


def _dependent(rng: np.random.Generator, n: int) -> np.ndarray:
    """Service times around 700 whose neighbours are alike over some five windows (AR(1), 0.8)."""
    noise = rng.standard_normal(n)
    series = np.empty(n)
    series[0] = noise[0] / 0.6
    for i in range(1, n):
        series[i] = 0.8 * series[i - 1] + noise[i]
    return np.rint(700 + 40 * series).astype(np.int64)


def test_upper_bound_holds_for_dependent_windows() -> None:
    """In at most 5 % of runs the bound lies below the truth; 45 of 400 has probability < 1e-6.

    A bound that takes windows as independent (the broken peer) misses in about 30 %.
    """
    rng = np.random.default_rng(20260816)
    missed = naive = 0
    for _ in range(400):
        series = _dependent(rng, 2_000)
        load = _load(np.append(series, 0)[None, :])
        missed += load.upper < 0.7
        error = series.std(ddof=1) / np.sqrt(series.size)
        naive += (series.mean() + 1.645 * error) / TIME_PS < 0.7
    assert missed < 45
    assert naive > 60
