"""From a capture to a recording: quantile tables by event count, and ranks in recorded order."""

from __future__ import annotations

from typing import Final

import numpy as np

from hil import seeds
from hil.rack.fit.capture import Capture
from hil.rack.timeline import I64
from hil.scenario.recording import Recording

CLASS_ROWS: Final = 300
"""Fewest rounds of one class of event counts: their 99 % quantile is then inside them (n_min of
p99 at 95 %: 299)."""


def event_classes(events: I64) -> I64:
    """int64 [c]: smallest event count of each class; neighbours are joined up to CLASS_ROWS."""
    counts = np.bincount(events)
    first, rows = [0], 0
    for value, n in enumerate(counts):
        if rows >= CLASS_ROWS:
            first.append(value)
            rows = 0
        rows += int(n)
    if rows < CLASS_ROWS and len(first) > 1:
        first.pop()
    return np.array(first, dtype=np.int64)


def fit_recording(capture: Capture) -> Recording:
    """The recording of a capture. Equal captures give equal recordings.

    Ties (a clock's ticks) are ranked in random order, so that equal durations hold no order of
    their own; the generator is fixed.
    """
    n = capture.n_rounds
    events = np.zeros(n, dtype=np.int64) if capture.events is None else capture.events
    classes = event_classes(events)
    own = np.searchsorted(classes, events, side="right") - 1
    edges = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=classes.size))])
    shuffled = seeds.generator(0, "rack", "fit", "ties").permutation(n)
    tables = np.empty_like(capture.durations_ps)
    ranks = np.empty(capture.durations_ps.shape, dtype=np.int32)
    for k, values in enumerate(capture.durations_ps):
        order = shuffled[np.lexsort((values[shuffled], own[shuffled]))]
        tables[k] = values[order]
        ranks[k, order] = np.arange(n) - edges[own[order]]
    return Recording(
        stages=capture.stages,
        events_from=classes,
        edges=edges.astype(np.int64),
        table_ps=tables,
        ranks=ranks,
        own=own.astype(np.int32),
        rounds_per_shot=capture.rounds_per_shot,
    )


def replayed_total_ps(recording: Recording, events: I64, start: int) -> I64:
    """int64 [n]: sum of all stages for rounds with these event counts, replayed from ``start``."""
    rows = start + np.arange(events.size)
    total = np.zeros(events.size, dtype=np.int64)
    for stage in recording.stages:
        total += recording.replay_ps(stage, rows, events)
    return total


def independent_total_ps(recording: Recording, n: int, rng: np.random.Generator) -> I64:
    """int64 [n]: sum of stages that are drawn independently from all recorded durations."""
    total = np.zeros(n, dtype=np.int64)
    for values in recording.table_ps:
        total += values[rng.integers(0, values.size, size=n)]
    return total
