"""From the sums of a run to figures with bounds: one function per kind of metric.

Formulas and their sources: ``docs/verdict.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import UsageError
from hil.verdict import density, load, stats
from hil.verdict.group import LATENCIES, Group, groups_of, latency_name, watch_name
from hil.verdict.histogram import Histogram
from hil.verdict.measured import Clusters, Measured, NotMeasuredError

if TYPE_CHECKING:
    from hil.verdict.metrics import Metrics

COUNT_METRICS: Final = (
    "packets.lost",
    "packets.duplicate",
    "packets.reordered",
    "packets.lost_undetected",
    "decoder.backend_mismatch",
    "rounds.out_of_order_commits",
    "shots.mixed_epoch",
    "answers.missing",
)
RATE_METRICS: Final = {
    "deadline.miss_rate": "miss",
    "decoder.fallback_rate": "fallback",
    "decoder.unanswered_rate": "unanswered",
    "ler.per_shot": "failed",
}
DEPENDENCE_LEVEL: Final = 0.05
"""Independence is refused below this p-value, shared by the two tests of `Episodes.p_value`."""


def measure(metrics: Metrics, metric: str, stat: str, confidence: float, scope: str) -> Measured:
    """Any metric by its scenario name; see `Metrics.measure`."""
    if metric.startswith("latency.") or metric == "reaction_time":
        return _quantile(metrics, metric, stat, confidence, scope)
    if metric in RATE_METRICS:
        return _rate(metrics, metric, confidence, scope)
    if metric in _BY_NAME:
        return _BY_NAME[metric](metrics, confidence, scope)
    if metric == load.METRIC:
        services = [metrics.services[name] for name in groups_of(scope)]
        return load.measure(services, metrics.window_time_ps, confidence, scope, metrics.time_label)
    if metric in metrics.counts or metric in COUNT_METRICS:
        return _count(metrics, metric)
    known = [*(f"latency.{name}" for name in LATENCIES), "reaction_time", *RATE_METRICS]
    known += ["backlog.slope", load.METRIC, density.METRIC]
    raise UsageError("no such metric", got=metric, allowed=", ".join((*known, *COUNT_METRICS)))


def _density(metrics: Metrics, confidence: float, scope: str) -> Measured:
    groups = [metrics.density[name] for name in groups_of(scope)]
    return density.measure(groups, confidence, scope)


def exceedance(
    metrics: Metrics, metric: str, limit: int, confidence: float, scope: str
) -> Measured:
    """Rate of samples above ``limit`` ps; see `Metrics.exceedance`."""
    name = watch_name(metric, limit)
    histogram, n = _samples(metrics, metric, scope)
    if name in metrics.columns and scope in metrics.episodes:
        return _bounded_rate(metrics, metric, name, n, confidence, scope)
    events = histogram.count_above(limit)[1] + n - histogram.count
    bounds = stats.clopper_pearson(events, n, confidence)
    return Measured(
        *(metric, "", scope, events / n, bounds.lower, bounds.upper, "1", n, confidence),
        events=events,
        method="Clopper-Pearson (shots taken as independent)",
        label=metrics.time_label,
    )


def parse_stat(stat: str) -> float:
    """``p99.9`` -> 0.999.

    Raises:
        UsageError: not a percentile strictly between 0 and 100.
    """
    try:
        digits = stat.removeprefix("p") if stat.startswith("p") else ""
        q = round(float(digits) * 10**7) / 10**9
    except ValueError:
        q = 0.0
    if not 0.0 < q < 1.0:
        raise UsageError("no such stat", got=stat or "(none)", allowed="p50, p99, p99.9, ...")
    return q


def _groups(metrics: Metrics, scope: str) -> list[Group]:
    return [metrics.groups[name] for name in groups_of(scope)]


def _samples(metrics: Metrics, metric: str, scope: str) -> tuple[Histogram, int]:
    """Histogram and number of samples; unanswered shots count as end-to-end samples."""
    latency = latency_name(metric)
    if latency not in LATENCIES:
        raise UsageError("no such latency", got=metric, allowed=", ".join(LATENCIES))
    histogram = metrics.histogram(latency, scope)
    groups = _groups(metrics, scope)
    n = histogram.count
    if latency == "end_to_end":
        n += sum(group.sums["unanswered"] for group in groups)
        absent = sum(group.unstamped for group in groups)
        if absent:
            raise NotMeasuredError(f"{absent} answered shots have no latency", where=metric)
    if n == 0:
        raise NotMeasuredError("no sample", where=f"{metric}, scope {scope}")
    if histogram.count and histogram.minimum < 0:
        lowest = f"{histogram.minimum} ps"
        raise NotMeasuredError("a stamp runs backwards", where=metric, got=lowest, allowed=">= 0")
    return histogram, n


def _quantile(metrics: Metrics, metric: str, stat: str, confidence: float, scope: str) -> Measured:
    q = parse_stat(stat)
    histogram, n = _samples(metrics, metric, scope)

    def at(rank: int | None, edge: int) -> float | None:
        if rank is None:
            return None
        return histogram.order_statistic(rank)[edge] if rank <= histogram.count else math.inf

    value = at(stats.quantile_rank(n, q), 1)
    return Measured(
        metric=metric,
        stat=stat,
        scope=scope,
        value=math.inf if value is None else value,
        lower=at(stats.lower_rank(n, q, confidence), 0),
        upper=at(stats.upper_rank(n, q, confidence), 1),
        unit="ps",
        n=n,
        confidence=confidence,
        method="order statistics",
        label=metrics.time_label,
    )


def _rate(metrics: Metrics, metric: str, confidence: float, scope: str) -> Measured:
    name = RATE_METRICS[metric]
    groups = _groups(metrics, scope)
    n = sum(g.with_truth if name == "failed" else g.shots for g in groups)
    if n == 0:
        raise NotMeasuredError("no shot to judge", where=f"{metric}, scope {scope}")
    if name == "miss" and any(g.unstamped for g in groups):
        raise NotMeasuredError("answered shots have no slack", where=metric)
    return _bounded_rate(metrics, metric, name, n, confidence, scope)


def _bounded_rate(
    metrics: Metrics, metric: str, name: str, n: int, confidence: float, scope: str
) -> Measured:
    events = sum(group.sums[name] for group in _groups(metrics, scope))
    bounds = stats.clopper_pearson(events, n, confidence)
    lower, upper, method = bounds.lower, bounds.upper, "Clopper-Pearson"
    clusters = _clusters(metrics, name, n, scope)
    if clusters is not None and clusters.dependent:
        length = clusters.mean_length
        episode = stats.episode_rate_upper(clusters.episodes, length, n, confidence)
        batch = stats.mean_lower_bound(_batch_rates(metrics, name, scope), confidence)
        upper, lower = max(upper, episode), max(0.0, min(lower, batch))
        method = f"episodes (K = {clusters.episodes}, L = {length:.4g}), dependent"
    return Measured(
        *(metric, "", scope, events / n, lower, upper, "1", n, confidence),
        events=events,
        method=method,
        label=metrics.time_label if name != "failed" else "decoded shots against truth",
        clusters=clusters,
    )


def _clusters(metrics: Metrics, name: str, n: int, scope: str) -> Clusters | None:
    if scope not in metrics.episodes:
        return None
    seen = metrics.episodes[scope][name]
    if seen.events == 0:
        return Clusters(0, 0, 1.0, 0, seen.wide.gap, 1.0, dependent=False)
    p = seen.p_value(n)
    runs = seen.scale(n)
    return Clusters(
        events=runs.events,
        episodes=runs.count,
        mean_length=runs.mean_length,
        longest=runs.longest,
        gap=runs.gap,
        p_value=p,
        dependent=p < DEPENDENCE_LEVEL / 2,
    )


def _batch_rates(metrics: Metrics, name: str, scope: str) -> NDArray[np.float64]:
    sums = _batches(metrics, scope)
    filled = sums["rows"] > 0
    rates: NDArray[np.float64] = sums[name][filled] / sums["rows"][filled]
    return rates


def _batches(metrics: Metrics, scope: str) -> dict[str, NDArray[np.int64]]:
    first, *others = (group.table for group in _groups(metrics, scope))
    table = first.copy()
    for other in others:
        table.merge(other)
    return table.batches()


def _per_round(metrics: Metrics, confidence: float, scope: str) -> Measured:
    shot = _rate(metrics, "ler.per_shot", confidence, scope)
    rounds = metrics.n_rounds
    if rounds is None:
        raise NotMeasuredError("number of rounds unknown", where="ler.per_round")
    value, lower, upper = (
        stats.failure_rate_per_round(p, rounds)
        for p in (shot.value, shot.lower or 0.0, 1.0 if shot.upper is None else shot.upper)
    )
    return Measured(
        *("ler.per_round", "", scope, value, lower, upper, "1", shot.n, confidence),
        events=shot.events,
        method=f"{shot.method}, e = (1 - (1 - 2p)^(1/{rounds})) / 2",
        label=shot.label,
        clusters=shot.clusters,
    )


def _slope(metrics: Metrics, confidence: float, scope: str) -> Measured:
    _, n = _samples(metrics, "latency.end_to_end", scope)
    sums = _batches(metrics, scope)
    filled = sums["answered"] > 0
    if not filled.any():
        raise NotMeasuredError("no shot was answered", where="backlog.slope")
    answered = sums["answered"][filled].astype(np.float64)
    line = stats.line_through_batches(
        sums["answered_position"][filled] / answered, sums["latency"][filled] / answered, confidence
    )
    enough = line is not None and n >= stats.SLOPE_BATCHES
    return Measured(
        metric="backlog.slope",
        stat="",
        scope=scope,
        value=line.value if line else 0.0,
        lower=line.lower if line and enough else None,
        upper=line.upper if line and enough else None,
        unit="ps/shot",
        n=n,
        confidence=confidence,
        method=f"line through {int(filled.sum())} batch means, two-sided t interval",
        label=metrics.time_label,
    )


def _count(metrics: Metrics, metric: str) -> Measured:
    if metric not in metrics.counts:
        raise NotMeasuredError("nothing counted this", where=metric)
    events = metrics.counts[metric]
    return Measured(
        *(metric, "", "all", events, events, events, "count", metrics.shots("all"), 1.0),
        events=events,
        method="exact",
        label="every event counted",
    )


_BY_NAME: Final[dict[str, Callable[[Metrics, float, str], Measured]]] = {
    "ler.per_round": _per_round,
    "backlog.slope": _slope,
    density.METRIC: _density,
}
"""Figures that need nothing but metrics, confidence and scope."""
