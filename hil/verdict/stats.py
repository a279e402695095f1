"""Statistics behind the verdicts: pure functions of counts and arrays.

Nothing here knows shots, traces or scenarios. Bounds are one-sided at confidence ``C`` unless a
name says ``two_sided``. Formulas and check values: ``docs/verdict.md``.
Only ``scipy.special`` is used: ``scipy.stats`` gives the same numbers but takes a second to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hil.errors import UsageError

SLOPE_BATCHES: Final = 20
"""Batches of the backlog slope and of batch means; 18 degrees of freedom for a line."""

MAX_SHOTS_SOUGHT: Final = 10**13
"""Largest sample size that `shots_to_show_rate_below` will name."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A lower and an upper confidence bound."""

    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares slope with the interval of its batch means.

    Attributes:
        value: slope, in units of y per unit of x.
        lower: lower end of the two-sided t interval.
        upper: upper end of the two-sided t interval.
        standard_error: standard error of the slope.
        degrees_of_freedom: batches - 2.
    """

    value: float
    lower: float
    upper: float
    standard_error: float
    degrees_of_freedom: int


def _check(q: float | None = None, confidence: float | None = None) -> None:
    for name, value in (("quantile", q), ("confidence", confidence)):
        if value is not None and not 0.0 < value < 1.0:
            raise UsageError(f"{name} out of range", got=repr(value), allowed="0 < value < 1")


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Bin(n, p) <= k), from the regularised incomplete beta function."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return float(special.betaincc(k + 1, n - k, p))


def minimum_samples(q: float, confidence: float) -> int:
    """Fewest independent samples whose maximum bounds quantile ``q`` from above.

    Smallest n with ``1 - q**n >= confidence``, that is ``ceil(ln(1 - C) / ln(q))``. The same n is
    the fewest trials without an event that show a rate below ``1 - q``.
    """
    _check(q, confidence)
    n = max(1, math.ceil(math.log1p(-confidence) / math.log(q)))
    while n > 1 and -math.expm1((n - 1) * math.log(q)) >= confidence:
        n -= 1
    while -math.expm1(n * math.log(q)) < confidence:
        n += 1
    return n


def upper_rank(n: int, q: float, confidence: float) -> int | None:
    """Rank r (1..n) of the order statistic that bounds quantile ``q`` from above.

    Smallest r with ``P(Bin(n, q) <= r - 1) >= C``: then ``P(X_(r) >= true quantile) >= C`` for n
    independent samples of any distribution. ``None`` if n < `minimum_samples`.
    """
    _check(q, confidence)
    if n < 1 or binomial_cdf(n - 1, n, q) < confidence:
        return None
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if binomial_cdf(middle - 1, n, q) >= confidence:
            high = middle
        else:
            low = middle + 1
    return low


def lower_rank(n: int, q: float, confidence: float) -> int | None:
    """Rank s (1..n) of the order statistic that bounds quantile ``q`` from below.

    Largest s with ``P(Bin(n, q) >= s) >= C``. ``None`` if even the minimum is no bound.
    """
    _check(q, confidence)
    if n < 1 or 1.0 - binomial_cdf(0, n, q) < confidence:
        return None
    low, high = 1, n
    while low < high:
        middle = (low + high + 1) // 2
        if 1.0 - binomial_cdf(middle - 1, n, q) >= confidence:
            low = middle
        else:
            high = middle - 1
    return low


def quantile_rank(n: int, q: float) -> int:
    """Rank of the empirical quantile: smallest r with ``r / n >= q`` (exact for decimal q)."""
    _check(q)
    exact = round(q * 10**9)
    return min(n, max(1, -(-n * exact // 10**9)))


def clopper_pearson(events: int, trials: int, confidence: float) -> Bounds:
    """One-sided bounds on a rate, each at ``confidence``, for independent trials.

    upper = ``beta.ppf(C, k + 1, n - k)``, lower = ``beta.ppf(1 - C, k, n - k + 1)``
    (Clopper and Pearson, Biometrika 26, 1934).

    Raises:
        UsageError: if not ``0 <= events <= trials`` and ``trials >= 1``.
    """
    _check(confidence=confidence)
    if trials < 1 or not 0 <= events <= trials:
        raise UsageError(
            "no such count", got=f"{events} of {trials}", allowed="0 <= k <= n, n >= 1"
        )
    k, n = events, trials
    upper = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, confidence))
    lower = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, 1.0 - confidence))
    return Bounds(lower, upper)


def clopper_pearson_two_sided(events: int, trials: int, confidence: float) -> Bounds:
    """Two-sided interval on a rate: each end at ``(1 + C) / 2``."""
    return clopper_pearson(events, trials, (1.0 + confidence) / 2.0)


def episode_factor(episodes: int, confidence: float) -> float:
    """Upper Poisson bound on the expected number of episodes: ``chi2.ppf(C, 2 K + 2) / 2``."""
    _check(confidence=confidence)
    return float(special.gammaincinv(episodes + 1, confidence))


def episode_rate_upper(episodes: int, mean_length: float, trials: int, confidence: float) -> float:
    """Upper bound on the rate of events that come in episodes.

    ``chi2.ppf(C, 2 K + 2) / 2 * L / n``: episodes are Poisson, their mean length ``L`` (events per
    episode) is taken as observed, 1 if there was none. Never above 1.
    """
    length = mean_length if episodes else 1.0
    return min(1.0, episode_factor(episodes, confidence) * length / trials)


def clustering_p_value(events: int, trials: int, close_pairs: int, gap: int) -> float:
    """How likely independent events would lie at least this close together.

    Of the ``m - 1`` distances between successive events, ``close_pairs`` are at most ``gap``
    trials. For independent trials at rate ``m / n`` each distance is geometric, hence close with
    probability ``1 - (1 - m/n)**gap``; the value is ``P(Bin(m - 1, that) >= close_pairs)``.
    With ``gap = 1`` this is the lag-1 test. 1.0 if fewer than two events.
    """
    if events < 2 or close_pairs <= 0:
        return 1.0
    if events >= trials:
        return 0.0
    close = -math.expm1(gap * math.log1p(-events / trials))
    return 1.0 - binomial_cdf(close_pairs - 1, events - 1, close)


def failure_rate_per_round(per_shot: float, rounds: int) -> float:
    """Error rate per round from the rate per shot: ``e = (1 - (1 - 2 p)**(1/r)) / 2``.

    A shot fails if an odd number of its rounds flipped the observable. 0.5 if ``p >= 0.5``, where
    the shot carries no information on the round.
    """
    if rounds < 1:
        raise UsageError("rounds out of range", got=str(rounds), allowed=">= 1")
    if per_shot >= 0.5:
        return 0.5
    return -math.expm1(math.log1p(-2.0 * per_shot) / rounds) / 2.0


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Quantile of Student's t distribution."""
    return float(special.stdtrit(degrees_of_freedom, probability))


def line_through_batches(
    x: NDArray[np.float64], y: NDArray[np.float64], confidence: float
) -> Slope | None:
    """Ordinary least squares through batch means with a two-sided t interval.

    Args:
        x: mean position of each batch, float64 [k].
        y: mean value of each batch, float64 [k].
        confidence: two-sided confidence of the interval.

    Returns:
        The slope, or ``None`` for fewer than three batches.
    """
    _check(confidence=confidence)
    k = int(x.shape[0])
    if k < 3:
        return None
    dx = x - x.mean()
    dy = y - y.mean()
    sxx = float(dx @ dx)
    if sxx <= 0.0:
        return None
    slope = float(dx @ dy) / sxx
    residual = dy - slope * dx
    error = math.sqrt(float(residual @ residual) / (k - 2) / sxx)
    half = t_quantile((1.0 + confidence) / 2.0, k - 2) * error
    return Slope(slope, slope - half, slope + half, error, k - 2)


def mean_lower_bound(batch_means: NDArray[np.float64], confidence: float) -> float:
    """One-sided lower t bound on a mean from means of equal batches (dependent samples).

    For rates with positive skew it is on the safe side: low means come with low spread.
    ``-inf`` for fewer than two batches.
    """
    k = int(batch_means.shape[0])
    if k < 2:
        return -math.inf
    error = float(batch_means.std(ddof=1)) / math.sqrt(k)
    return float(batch_means.mean()) - t_quantile(confidence, k - 1) * error


def shots_to_show_rate_below(
    events: int, trials: int, limit: float, confidence: float
) -> int | None:
    """Total trials after which the observed rate would prove ``rate <= limit``.

    Events are extrapolated at the observed rate. ``None`` if that rate is at or above the limit or
    would need more than `MAX_SHOTS_SOUGHT` trials.
    """
    if not 0.0 < limit < 1.0:
        return None
    rate = events / trials if trials else 0.0
    if rate >= limit:
        return None
    return first_total(
        trials,
        lambda n: clopper_pearson(math.ceil(rate * n - 1e-9), n, confidence).upper <= limit,
    )


def shots_to_show_rate_above(
    events: int, trials: int, limit: float, confidence: float
) -> int | None:
    """Total trials after which the observed rate would prove ``rate > limit``; else ``None``."""
    rate = events / trials if trials else 0.0
    if rate <= limit:
        return None
    return first_total(
        trials, lambda n: clopper_pearson(math.floor(rate * n + 1e-9), n, confidence).lower > limit
    )


def first_total(start: int, enough: Callable[[int], bool]) -> int | None:
    """Smallest total n >= start with ``enough(n)``: doubling, then bisection.

    The predicate is monotone but for single steps of the rounded event count. ``None`` beyond
    `MAX_SHOTS_SOUGHT`.
    """
    low, high = max(start, 1), max(start, 1)
    while not enough(high):
        low, high = high, high * 2
        if high > MAX_SHOTS_SOUGHT:
            return None
    while low + 1 < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
