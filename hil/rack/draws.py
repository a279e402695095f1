"""Samples of durations from the models of a scenario: the ``Workload`` of a batch.

Every stage draws from its own stream of the seed tree, one generator per batch, so that a change
to one stage never shifts another. Constants cost nothing: they are broadcast, not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np

from hil import seeds
from hil.errors import ScenarioError
from hil.rack.timeline import I64
from hil.scenario.latency import (
    Const,
    Cycles,
    Empirical,
    Latency,
    LogNormal,
    Normal,
    Recorded,
)
from hil.scenario.recording import Recording
from hil.scenario.service import ByEvents
from hil.scenario.vendor import Zhinst
from hil.timebase import Ticks

_Z99 = 2.3263478740408408
"""99 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Which recorded rounds a batch replays: one stretch per recording, the same for all stages.

    Attributes:
        seed: run seed.
        batch: number of the batch; its start in the recording is drawn from the seed tree.
        events: int64 [n, r]: detection events of each block.
    """

    seed: int
    batch: int
    events: I64

    def draw(self, latency: Recorded, shape: tuple[int, ...]) -> I64:
        """Durations of ``shape`` [n, r], or [n]: those of each shot's last block.

        Shots begin at recorded shots where both have equally many rounds. A recording of one row
        per shot advances by one row per shot where one value per shot is asked for; halves of a
        round trip are those of one row, so that they add up.

        Raises:
            ScenarioError: the latency was not read from a file.
        """
        recording = latency.recording
        if recording is None:
            raise ScenarioError(
                "a recording was not read",
                where=latency.file,
                fix="load the scenario with load_scenario",
            )
        n, r = self.events.shape
        start = self._start(recording, r)
        if len(shape) == 1 and recording.rounds_per_shot == 1 and latency.half is None:
            whole = recording.replay_ps(latency.stage, start + np.arange(n), self.events[:, -1])
        else:
            rows = start + np.arange(n * r).reshape(n, r)
            part = np.s_[:, -1] if len(shape) == 1 else np.s_[:]
            whole = recording.replay_ps(latency.stage, rows[part], self.events[part])
        if latency.half is None:
            return whole
        first: I64 = whole // 2
        return first if latency.half == "first" else whole - first

    def _start(self, recording: Recording, n_blocks: int) -> int:
        rng = seeds.generator(self.seed, "rack", "recording", recording.sha256, self.batch)
        start = int(rng.integers(recording.n_rounds))
        same = recording.rounds_per_shot == n_blocks
        return start - start % n_blocks if same else start


def draw(
    latency: Latency,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    ticks: Ticks | None = None,
    replay: Replay | None = None,
) -> I64:
    """Int64 array of ``shape`` (ps), read-only where it is a constant.

    Formulas of ``docs/scenario.md``: lognormal = min + exp(N(mu, s)) with mu = ln(p50 - min) and
    s = (ln(p99 - min) - mu) / 2.3263; normal is cut at ``min``; cycles are whole clock periods.
    """
    match latency:
        case Const() | Zhinst():
            return np.broadcast_to(np.int64(latency.ps), shape)
        case Cycles():
            if ticks is None:
                raise ValueError("cycles need a clock")
            return np.broadcast_to(np.int64(ticks.edge_ps(latency.n)), shape)
        case Normal():
            values = rng.standard_normal(shape) * latency.sd_ps + latency.mean_ps
            return np.maximum(np.rint(values).astype(np.int64), latency.min_ps)
        case LogNormal():
            above = np.exp(rng.standard_normal(shape) * latency.sigma + latency.mu)
            return latency.min_ps + np.rint(above).astype(np.int64)
        case Empirical():
            values_ps = np.array(latency.values_ps, dtype=np.int64)
            return values_ps[rng.integers(0, values_ps.size, size=shape)]
        case Recorded():
            if replay is None:
                raise ValueError("a recording needs the event counts of the blocks")
            return replay.draw(latency, shape)
        case _:
            assert_never(latency)


def predicted_ps(latency: Latency, ticks: Ticks | None = None) -> int:
    """What a policy plans with: the 99 % quantile of the model (a constant is itself)."""
    match latency:
        case Const() | Zhinst():
            return latency.ps
        case Cycles():
            if ticks is None:
                raise ValueError("cycles need a clock")
            return ticks.edge_ps(latency.n)
        case Normal():
            return max(latency.min_ps, latency.mean_ps + round(_Z99 * latency.sd_ps))
        case LogNormal():
            return latency.p99_ps
        case Empirical():
            return int(np.quantile(np.array(latency.values_ps), 0.99, method="higher"))
        case Recorded():
            if latency.recording is None:
                raise ValueError("a recording was not read")
            p99 = latency.recording.quantile_ps(latency.stage, 0.99)
            return p99 if latency.half is None else p99 - p99 // 2
        case _:
            assert_never(latency)


def service_ps(model: Latency | ByEvents, events: np.ndarray, rng: np.random.Generator) -> I64:
    """Service time of each shot, int64 [n] (> 0): by its event count, or an independent draw.

    Between recorded points the time is interpolated linearly in integers (floor); beyond the
    first and last point it is that point's time.
    """
    if isinstance(model, ByEvents):
        return _looked_up(model, events)
    return np.maximum(draw(model, events.shape, rng), 1)


def _looked_up(model: ByEvents, events: np.ndarray) -> I64:
    table = service_table_ps(model)
    found: I64 = table[np.minimum(events, table.size - 1)]
    return found


def service_table_ps(model: ByEvents) -> I64:
    """Service time for 0, 1, 2 .. events up to the last recorded point, int64."""
    counts = np.array(model.events, dtype=np.int64)
    times = np.array(model.service_ps, dtype=np.int64)
    events = np.arange(int(counts[-1]) + 1, dtype=np.int64)
    if counts.size == 1:
        return np.full(events.size, times[0])
    right = np.clip(np.searchsorted(counts, events, side="right"), 1, counts.size - 1)
    x0, x1 = counts[right - 1], counts[right]
    y0, y1 = times[right - 1], times[right]
    inside = y0 + (np.maximum(events, counts[0]) - x0) * (y1 - y0) // (x1 - x0)
    table: I64 = np.where(events <= counts[0], times[0], inside)
    return table


def predicted_service_ps(model: Latency | ByEvents, events: np.ndarray) -> I64:
    """What the policy predicts for each shot, int64 [n]: a table is believed, a draw by its p99."""
    if isinstance(model, ByEvents):
        return _looked_up(model, events)
    return np.broadcast_to(np.int64(max(1, predicted_ps(model))), events.shape)


def stage_generator(seed: int, batch: int, *path: str | int) -> np.random.Generator:
    """Generator of one stage for one batch."""
    return seeds.generator(seed, "rack", *path, batch)
