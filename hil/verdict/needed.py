"""How many shots would decide an expectation that is still open: a forecast, not a promise.

The observed rate (or slope) is taken as the truth and extrapolated.
"""

from __future__ import annotations

import math

from hil.scenario.expect import Expectation
from hil.verdict import stats
from hil.verdict.measured import Measured
from hil.verdict.metrics import Metrics


def total_shots(
    spec: Expectation, measured: Measured, metrics: Metrics, limit: float, *, above: bool
) -> int | None:
    """Samples in total after which the expectation would be decided, either way.

    Args:
        spec: the expectation.
        measured: its figure.
        metrics: the run.
        limit: the limit that is open.
        above: whether it is a maximum.

    Returns:
        The number, or ``None`` where the observed value lies on the limit or too close to it.
    """
    if spec.kind == "slope":
        return _slope(measured, limit)
    if spec.kind in ("load", "ratio"):
        return None
    if spec.kind == "latency":
        rate = metrics.exceedance(spec.metric, int(limit), measured.confidence, measured.scope)
        share = float(1 - spec.quantile)
        least = stats.minimum_samples(float(spec.quantile), measured.confidence) if above else 1
        total = _rate(rate, share)
        if total is None:
            return least if least > measured.n else None
        return max(total, least)
    return _rate(measured, limit)


def _rate(measured: Measured, limit: float) -> int | None:
    events, n, confidence = measured.events or 0, measured.n, measured.confidence
    clusters = measured.clusters
    if clusters is not None and clusters.dependent:
        return _episodes(measured, limit)
    below = stats.shots_to_show_rate_below(events, n, limit, confidence)
    return below or stats.shots_to_show_rate_above(events, n, limit, confidence)


def _episodes(measured: Measured, limit: float) -> int | None:
    clusters = measured.clusters
    if clusters is None or (measured.events or 0) >= limit * measured.n:
        return None
    per_trial, length = clusters.episodes / measured.n, clusters.mean_length

    def enough(n: int) -> bool:
        episodes = math.ceil(per_trial * n - 1e-9)
        return stats.episode_rate_upper(episodes, length, n, measured.confidence) <= limit

    return stats.first_total(measured.n, enough)


def _slope(measured: Measured, limit: float) -> int | None:
    """The error of a slope over n shots falls as n^-3/2."""
    if measured.upper is None:
        return stats.SLOPE_BATCHES
    half, distance = measured.upper - measured.value, abs(limit - measured.value)
    if distance == 0 or half == 0:
        return None
    growth: float = (half / distance) ** (2 / 3)
    return math.ceil(measured.n * growth)
