"""Metrics of a run, accumulated batch by batch; the same code on a live run and on a file.

Shots are sorted into three groups: ``clean``, ``warmup`` (DQ bit 0) and ``disturbed`` (fault
window or recovery). Rates and latencies are judged on ``clean`` shots or, with scope ``all``, on
every shot; counts always use every shot. Definitions: ``docs/verdict.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import RigError, UsageError
from hil.trace.schema import Dq
from hil.verdict import stats
from hil.verdict.accumulate import Episodes
from hil.verdict.group import LATENCIES, RATES, Group, derive, watch_name
from hil.verdict.histogram import Histogram
from hil.verdict.measured import Clusters, Measured, NotMeasuredError

I64 = NDArray[np.int64]

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
GROUPS: Final = ("clean", "warmup", "disturbed")
SCOPES: Final = {"clean": ("clean",), "all": GROUPS, "warmup": ("warmup",), "disturbed": ("disturbed",)}
EPISODE_GAP_SHOTS: Final = 50
"""Default largest distance inside an episode; should exceed the gaps of one recovery."""
DEPENDENCE_LEVEL: Final = 0.05
"""Independence is refused below this p-value, shared by the two tests of `Episodes.p_value`."""


class Metrics:
    """Streaming metrics of one run.

    Args:
        n_observables: observables per shot; a shot fails if any of them is wrong.
        round_period_ps: cadence of rounds.
        shot_period_ps: cadence of shots, start to start.
        warmup_shots: shots at the start that must carry DQ bit ``warmup``.
        deadline_ps: deadline from the intended time of a shot's last block.
        time_source: ``modelled`` or ``measured`` durations.
        pace: wall time over scenario time of a live run; 1 for a virtual run.
        watch: latency limits by metric; exceedances of these are tracked one by one, so that a
            verdict on them can allow for shots that are late together (`judge.limits_of`).
        episode_gap_shots: largest distance of two events of one episode.
    """

    def __init__(
        self,
        n_observables: int,
        round_period_ps: int,
        shot_period_ps: int,
        warmup_shots: int,
        deadline_ps: int,
        time_source: str,
        pace: int = 1,
        *,
        watch: Mapping[str, tuple[int, ...]] | None = None,
        episode_gap_shots: int = EPISODE_GAP_SHOTS,
    ) -> None:
        if time_source not in ("modelled", "measured"):
            raise UsageError("time source", got=time_source, allowed="modelled, measured")
        self.n_observables = n_observables
        self.round_period_ps = round_period_ps
        self.shot_period_ps = shot_period_ps
        self.warmup_shots = warmup_shots
        self.deadline_ps = deadline_ps
        self.time_source = time_source
        self.pace = pace
        self.n_rounds: int | None = None
        self.counts: dict[str, int] = {}
        self.watch: dict[str, tuple[int, ...]] = {
            metric: tuple(sorted(set(limits))) for metric, limits in (watch or {}).items()
        }
        for metric in self.watch:
            if metric.removeprefix("latency.") not in LATENCIES:
                raise UsageError("no such latency", got=metric, allowed=", ".join(LATENCIES))
        self.groups = {name: Group(self._columns()) for name in GROUPS}
        self.episodes = {
            scope: {name: Episodes(episode_gap_shots) for name in self._columns()}
            for scope in ("clean", "all")
        }
        self._next_shot = 0

    def _columns(self) -> tuple[str, ...]:
        watched = (watch_name(m, x) for m, limits in self.watch.items() for x in limits)
        return (*RATES, *watched)

    # --- taking in -----------------------------------------------------------------------------

    def update(
        self,
        shots: Mapping[str, NDArray[np.generic]],
        windows: Mapping[str, NDArray[np.int64]],
    ) -> None:
        """Add a batch of shots, ascending and behind all shots added before.

        Args:
            shots: columns of /shots, [n] each: ``shot, dq_mask, failed, latency_ps, slack_ps,
                fallback, status`` and, if known, ``n_rounds``.
            windows: stamps of each shot's last block, int64 [n], columns of /rounds
                ``t_intended_ps`` ... ``t_applied_ps``; empty if there are none.

        Raises:
            RigError: the columns contradict each other: shots out of order, warm-up marks that
                are not those of the scenario, slack that is not deadline - latency, hops that do
                not add up to the latency.
        """
        position = shots["shot"].astype(np.int64)
        if position.shape[0] == 0:
            return
        if int(position[0]) < self._next_shot or not bool((position[1:] > position[:-1]).all()):
            raise RigError(
                "shots are not ascending",
                where="metrics",
                got=f"shot {int(position[0])} when {self._next_shot} or later was due",
            )
        batch = derive(position, shots, windows, self.deadline_ps, self.watch)
        marks = shots["dq_mask"].astype(np.uint32)
        self._check_warmup(position, marks)
        if "n_rounds" in shots:
            self.n_rounds = int(shots["n_rounds"][0])
        parts = _split(marks)
        for name, chosen in parts.items():
            self.groups[name].update(batch if chosen is None else batch.take(chosen))
        clean = parts.get("clean", _NOTHING)
        for name in self._columns():
            event = batch.columns[name]
            if not event.any():
                continue
            self.episodes["all"][name].update(position[event])
            of_clean = event if clean is None else event & clean if clean.size else None
            if of_clean is not None:
                self.episodes["clean"][name].update(position[of_clean])
        self._next_shot = int(position[-1]) + 1

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to counts; a name that is never added is not measured. Values are >= 0."""
        for name, value in counts.items():
            if value < 0:
                raise UsageError("count below zero", where=name, got=str(value))
            self.counts[name] = self.counts.get(name, 0) + int(value)

    def _check_warmup(self, position: I64, marks: NDArray[np.uint32]) -> None:
        marked = (marks & Dq.WARMUP.mask) != 0
        expected = position < self.warmup_shots
        if not np.array_equal(marked, expected):
            at = int(position[np.flatnonzero(marked != expected)[0]])
            raise RigError(
                "warm-up mark differs from the scenario",
                where=f"/shots/dq_mask, shot {at}",
                allowed=f"bit 0 on shots 0..{self.warmup_shots - 1} only",
            )

    # --- giving out ----------------------------------------------------------------------------

    @property
    def time_label(self) -> str:
        """Which time the latencies are in and where the durations come from."""
        if self.time_source == "modelled":
            return "scenario time, modelled durations"
        if self.pace == 1:
            return "wall time, measured (pace 1)"
        return f"scenario time from measured durations (pace {self.pace})"

    def shots(self, scope: str = "all") -> int:
        """Number of shots in a scope."""
        return sum(self.groups[name].shots for name in _scope(scope))

    def histogram(self, latency: str, scope: str = "clean") -> Histogram:
        """Histogram of a hop or of ``end_to_end`` (answered shots only)."""
        names = _scope(scope)
        if len(names) == 1:
            return self.groups[names[0]].histograms[latency]
        merged = Histogram()
        for name in names:
            merged.merge(self.groups[name].histograms[latency])
        return merged

    def measure(
        self, metric: str, stat: str = "", confidence: float = 0.95, scope: str = "clean"
    ) -> Measured:
        """Any metric by its scenario name.

        Raises:
            NotMeasuredError: there is no data for it.
            UsageError: no such metric or stat.
        """
        if metric.startswith("latency."):
            return self._quantile(metric, stat, confidence, scope)
        if metric in RATE_METRICS:
            return self._rate(metric, RATE_METRICS[metric], confidence, scope)
        if metric == "ler.per_round":
            return self._per_round(confidence, scope)
        if metric == "backlog.slope":
            return self._slope(confidence, scope)
        if metric in self.counts or metric in COUNT_METRICS:
            return self._count(metric)
        known = [*(f"latency.{name}" for name in LATENCIES), *RATE_METRICS, "backlog.slope"]
        raise UsageError("no such metric", got=metric, allowed=", ".join((*known, *COUNT_METRICS)))

    def exceedance(self, metric: str, limit: int, confidence: float, scope: str) -> Measured:
        """Rate of samples above ``limit`` ps: the latency expectation seen as a rate.

        Shots without an answer exceed any limit. Clusters are known if ``limit`` is watched. Where
        the histogram cannot tell on which side a sample lies, it is taken as above.
        """
        name = watch_name(metric, limit)
        histogram, n = self._latency(metric, scope)
        if name in self._columns() and scope in self.episodes:
            return self._bounded_rate(metric, name, n, confidence, scope)
        events = histogram.count_above(limit)[1] + n - histogram.count
        bounds = stats.clopper_pearson(events, n, confidence)
        return Measured(
            *(metric, "", scope, events / n, bounds.lower, bounds.upper, "1", n, confidence),
            events=events,
            method="Clopper-Pearson (shots taken as independent)",
            label=self.time_label,
        )

    def _latency(self, metric: str, scope: str) -> tuple[Histogram, int]:
        """Histogram and number of samples; unanswered shots count as end-to-end samples."""
        latency = metric.removeprefix("latency.")
        if latency not in LATENCIES:
            raise UsageError("no such latency", got=metric, allowed=", ".join(LATENCIES))
        histogram = self.histogram(latency, scope)
        groups = [self.groups[name] for name in _scope(scope)]
        n = histogram.count
        if latency == "end_to_end":
            n += sum(group.sums["unanswered"] for group in groups)
            absent = sum(group.unstamped for group in groups)
            if absent:
                raise NotMeasuredError(f"{absent} answered shots have no latency", where=metric)
        if n == 0:
            raise NotMeasuredError("no sample", where=f"{metric}, scope {scope}")
        if histogram.count and histogram.minimum < 0:
            raise NotMeasuredError(
                "a stamp runs backwards",
                where=metric,
                got=f"{histogram.minimum} ps",
                allowed=">= 0",
            )
        return histogram, n

    def _quantile(self, metric: str, stat: str, confidence: float, scope: str) -> Measured:
        q = parse_stat(stat)
        histogram, n = self._latency(metric, scope)

        def at(rank: int | None, edge: int) -> float | None:
            if rank is None:
                return None
            return histogram.order_statistic(rank)[edge] if rank <= histogram.count else np.inf

        value = at(stats.quantile_rank(n, q), 1)
        return Measured(
            metric,
            stat,
            scope,
            np.inf if value is None else value,
            at(stats.lower_rank(n, q, confidence), 0),
            at(stats.upper_rank(n, q, confidence), 1),
            "ps",
            n,
            confidence,
            method="order statistics",
            label=self.time_label,
        )

    def _rate(self, metric: str, name: str, confidence: float, scope: str) -> Measured:
        groups = [self.groups[g] for g in _scope(scope)]
        n = sum(g.with_truth if name == "failed" else g.shots for g in groups)
        if n == 0:
            raise NotMeasuredError("no shot to judge", where=f"{metric}, scope {scope}")
        if name == "miss" and any(g.unstamped for g in groups):
            raise NotMeasuredError("answered shots have no slack", where=metric)
        return self._bounded_rate(metric, name, n, confidence, scope)

    def _bounded_rate(
        self, metric: str, name: str, n: int, confidence: float, scope: str
    ) -> Measured:
        events = sum(self.groups[g].sums[name] for g in _scope(scope))
        bounds = stats.clopper_pearson(events, n, confidence)
        lower, upper, method = bounds.lower, bounds.upper, "Clopper-Pearson"
        clusters = self._clusters(name, n, scope)
        if clusters is not None and clusters.dependent:
            episode = stats.episode_rate_upper(
                clusters.episodes, clusters.mean_length, n, confidence
            )
            batch = stats.mean_lower_bound(self._batch_rates(name, scope), confidence)
            upper, lower = max(upper, episode), max(0.0, min(lower, batch))
            method = (
                f"episodes (K = {clusters.episodes}, L = {clusters.mean_length:.4g}), dependent"
            )
        label = self.time_label if name != "failed" else "decoded shots against truth"
        return Measured(
            *(metric, "", scope, events / n, lower, upper, "1", n, confidence),
            events=events,
            method=method,
            label=label,
            clusters=clusters,
        )

    def _clusters(self, name: str, n: int, scope: str) -> Clusters | None:
        if scope not in self.episodes:
            return None
        seen = self.episodes[scope][name]
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

    def _batch_rates(self, name: str, scope: str) -> NDArray[np.float64]:
        sums = self._batches(scope)
        filled = sums["rows"] > 0
        rates: NDArray[np.float64] = sums[name][filled] / sums["rows"][filled]
        return rates

    def _batches(self, scope: str) -> dict[str, I64]:
        first, *others = (self.groups[name].table for name in _scope(scope))
        table = first.copy()
        for other in others:
            table.merge(other)
        return table.batches()

    def _per_round(self, confidence: float, scope: str) -> Measured:
        shot = self._rate("ler.per_shot", "failed", confidence, scope)
        rounds = self.n_rounds
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

    def _slope(self, confidence: float, scope: str) -> Measured:
        _, n = self._latency("latency.end_to_end", scope)
        sums = self._batches(scope)
        filled = sums["answered"] > 0
        answered = sums["answered"][filled].astype(np.float64)
        if not filled.any():
            raise NotMeasuredError("no shot was answered", where="backlog.slope")
        line = stats.line_through_batches(
            sums["answered_position"][filled] / answered,
            sums["latency"][filled] / answered,
            confidence,
        )
        enough = line is not None and n >= stats.SLOPE_BATCHES
        return Measured(
            *("backlog.slope", "", scope, line.value if line else 0.0),
            line.lower if line and enough else None,
            line.upper if line and enough else None,
            *("ps/shot", n, confidence),
            method=f"line through {int(filled.sum())} batch means, two-sided t interval",
            label=self.time_label,
        )

    def _count(self, metric: str) -> Measured:
        if metric not in self.counts:
            raise NotMeasuredError("nothing counted this", where=metric)
        events = self.counts[metric]
        n = self.shots("all")
        return Measured(
            *(metric, "", "all", events, events, events, "count", n, 1.0),
            events=events,
            method="exact",
            label="every event counted",
        )


_NOTHING: Final = np.zeros(0, np.bool_)


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


def _scope(scope: str) -> tuple[str, ...]:
    if scope not in SCOPES:
        raise UsageError("no such scope", got=scope, allowed=", ".join(SCOPES))
    return SCOPES[scope]


def _split(marks: NDArray[np.uint32]) -> dict[str, NDArray[np.bool_] | None]:
    """Group name -> which rows, ``None`` for all; only groups that have rows."""
    marked = marks & (Dq.WARMUP.mask | Dq.FAULT_WINDOW.mask | Dq.RECOVERY.mask)
    if not marked.any():
        return {"clean": None}
    warmup = (marked & Dq.WARMUP.mask) != 0
    parts = {"clean": marked == 0, "warmup": warmup, "disturbed": (marked != 0) & ~warmup}
    return {name: chosen for name, chosen in parts.items() if chosen.any()}
