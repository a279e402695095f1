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
from hil.verdict import figures
from hil.verdict.accumulate import Episodes
from hil.verdict.density import EventCounts, EventSums
from hil.verdict.figures import COUNT_METRICS, RATE_METRICS
from hil.verdict.group import (
    GROUPS,
    LATENCIES,
    RATES,
    SCOPES,
    Group,
    derive,
    groups_of,
    latency_name,
    watch_name,
)
from hil.verdict.histogram import Histogram
from hil.verdict.load import WindowServices
from hil.verdict.measured import Measured

I64 = NDArray[np.int64]

__all__ = [
    "COUNT_METRICS",
    "EPISODE_GAP_SHOTS",
    "GROUPS",
    "LATENCIES",
    "RATE_METRICS",
    "SCOPES",
    "Metrics",
]

EPISODE_GAP_SHOTS: Final = 50
"""Default largest distance inside an episode; should exceed the gaps of one recovery."""


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
        window_time_ps: time in which the rounds arrive that a sliding window commits.
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
        window_time_ps: int | None = None,
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
            if latency_name(metric) not in LATENCIES:
                raise UsageError("no such latency", got=metric, allowed=", ".join(LATENCIES))
        self.groups = {name: Group(self.columns) for name in GROUPS}
        self.episodes = {
            scope: {name: Episodes(episode_gap_shots) for name in self.columns}
            for scope in ("clean", "all")
        }
        self.window_time_ps = window_time_ps
        self.services = {name: WindowServices() for name in GROUPS}
        self.density = {name: EventSums() for name in GROUPS}
        self._next_shot = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all events that are tracked: rates and watched limits."""
        watched = (watch_name(m, x) for m, limits in self.watch.items() for x in limits)
        return tuple(dict.fromkeys((*RATES, *watched)))

    # --- taking in -----------------------------------------------------------------------------

    def update(
        self,
        shots: Mapping[str, NDArray[np.generic]],
        windows: Mapping[str, NDArray[np.int64]],
        window_service_ps: NDArray[np.int64] | None = None,
        events: EventCounts | None = None,
    ) -> None:
        """Add a batch of shots, ascending and behind all shots added before.

        Args:
            shots: columns of /shots, [n] each: ``shot, dq_mask, failed, latency_ps, slack_ps,
                fallback, status`` and, if known, ``n_rounds``.
            windows: stamps of each shot's last block, int64 [n], columns of /rounds
                ``t_intended_ps`` ... ``t_applied_ps``; empty if there are none.
            window_service_ps: int64 [n, w], service time of each sliding window.
            events: detection events before and behind a pre-decoder.

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
            rows = slice(None) if chosen is None else chosen
            if events is not None:
                part = EventCounts(events.before[rows], events.left[rows])
                self.density[name].update(position[rows], part)
            if window_service_ps is not None:
                self.services[name].update(position[rows], window_service_ps[rows])
        clean = parts.get("clean", _NOTHING)
        for name in self.columns:
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
    def on_the_wall(self) -> bool:
        """Whether latencies are differences of wall stamps (a live run at pace 1)."""
        return self.time_source == "measured" and self.pace == 1

    @property
    def time_label(self) -> str:
        """Which time the latencies are in and where the durations come from."""
        if self.time_source == "modelled":
            return "scenario time, modelled durations"
        if self.pace == 1:
            return "wall stamps (pace 1); rack stages are models"
        return f"scenario time from measured durations (pace {self.pace})"

    def shots(self, scope: str = "all") -> int:
        """Number of shots in a scope."""
        return sum(self.groups[name].shots for name in groups_of(scope))

    def histogram(self, latency: str, scope: str = "clean") -> Histogram:
        """Histogram of a hop or of ``end_to_end`` (answered shots only)."""
        names = groups_of(scope)
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
        return figures.measure(self, metric, stat, confidence, scope)

    def exceedance(self, metric: str, limit: int, confidence: float, scope: str) -> Measured:
        """Rate of samples above ``limit`` ps: the latency expectation seen as a rate.

        Shots without an answer exceed any limit. Clusters are known if ``limit`` is watched. Where
        the histogram cannot tell on which side a sample lies, it is taken as above.
        """
        return figures.exceedance(self, metric, limit, confidence, scope)


_NOTHING: Final = np.zeros(0, np.bool_)


def _split(marks: NDArray[np.uint32]) -> dict[str, NDArray[np.bool_] | None]:
    """Group name -> which rows, ``None`` for all; only groups that have rows."""
    marked = marks & (Dq.WARMUP.mask | Dq.FAULT_WINDOW.mask | Dq.RECOVERY.mask)
    if not marked.any():
        return {"clean": None}
    warmup = (marked & Dq.WARMUP.mask) != 0
    parts = {"clean": marked == 0, "warmup": warmup, "disturbed": (marked != 0) & ~warmup}
    return {name: chosen for name, chosen in parts.items() if chosen.any()}
