"""Virtual run: simulated time, no frames; rounds are rows of arrays.

One shot's way: the sampler makes its detection events, the primary decodes the batch, the rack's
models give its durations, the executor gives its stamps and decides who answers it, the fallback
decodes the shots that were handed to it, and the record goes to trace and metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from gpu_decoder.protocol import DecodedBatch, GlobalDecoder
from hil.device.sampler import ShotBatch, StimSampler, event_counts
from hil.rack.pipeline import StageExecutor
from hil.rack.plan import WorkloadSource
from hil.rack.timeline import Path, Timeline, Workload
from hil.run.parts import Decoders
from hil.run.record import Answers, Driven


def drive(
    sampler: StimSampler,
    source: WorkloadSource,
    executor: StageExecutor,
    decoders: Decoders,
    n_shots: int,
) -> Iterator[Driven]:
    """Run ``n_shots`` shots and yield them batch by batch."""
    under_way: deque[tuple[ShotBatch, DecodedBatch]] = deque()

    def workloads() -> Iterator[Workload]:
        for batch in sampler.batches(n_shots):
            decoded = decoders.primary.decode_batch(batch.detectors_b8)
            under_way.append((batch, decoded))
            events = decoded.window_events
            if events is None:  # the whole shot is one window
                events = event_counts(batch.detectors_b8)
            work = source.workload(batch.batch, batch.first_shot, events)
            del batch, decoded, events
            yield work
            del work

    for times in executor.run(workloads()):
        batch, decoded = under_way.popleft()
        yield Driven(batch, times, _answers(batch, times, decoded, decoders))
        del batch, decoded, times  # of a long memory only one batch fits at a time


def _answers(
    batch: ShotBatch, times: Timeline, primary: DecodedBatch, decoders: Decoders
) -> Answers:
    predictions, executed = primary.predictions_b8, np.full(batch.n_shots, primary.executed)
    handed_over = np.flatnonzero(times.path == Path.FALLBACK)
    if handed_over.size:
        decoded = decoders.fallback.decode_batch(batch.detectors_b8[handed_over])
        predictions[handed_over] = decoded.predictions_b8
        executed[handed_over] = decoded.executed
    unanswered = times.path == Path.UNANSWERED
    predictions[unanswered] = 0
    executed[unanswered] = GlobalDecoder.NONE
    return Answers(
        predictions,
        decoders.requested(times.path),
        executed.astype(np.uint8),
        primary.window_events,
        primary.commits_b8,
    )
