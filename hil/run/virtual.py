"""Virtual run: simulated time, no frames; rounds are rows of arrays.

One shot's way: the sampler makes its detection events, the primary decodes the batch, the rack's
models give its durations, the executor gives its stamps and decides who answers it, the fallback
decodes the shots that were handed to it, and the record goes to trace and metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from gpu_decoder.protocol import DecodedBatch, GlobalDecoder
from hil.device.sampler import BlockCutter, ShotBatch, StimSampler, event_counts
from hil.rack.pipeline import StageExecutor
from hil.rack.plan import WorkloadSource
from hil.rack.timeline import Path, Timeline, Workload
from hil.run.parts import Decoders
from hil.run.primary import try_primary
from hil.run.record import Answers, Driven, Predecoded
from hil.run.resume import Earlier


def drive(
    sampler: StimSampler,
    source: WorkloadSource,
    executor: StageExecutor,
    decoders: Decoders,
    cutter: BlockCutter,
    n_shots: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    earlier: Earlier | None = None,
) -> Iterator[Driven]:
    """Run ``n_shots`` shots and yield them batch by batch.

    Args:
        sampler: makes the shots.
        source: gives the durations of each hop.
        executor: gives their stamps and fates.
        decoders: answer them.
        cutter: counts the events of each block where a recorded rack needs them.
        n_shots: shots wanted.
        stop: asked before each batch; no further one is begun once it says so.
        earlier: answers that an interrupted run has left.

    Raises:
        DecoderError: the primary refuses a batch; nothing is guessed.
    """
    under_way: deque[tuple[ShotBatch, DecodedBatch]] = deque()

    def decode(batch: ShotBatch) -> DecodedBatch:
        if earlier is not None:
            return earlier.primary(batch, decoders.primary)
        return decoders.primary.decode_batch(batch.detectors_b8, batch.shots)

    def workloads() -> Iterator[Workload]:
        for batch in sampler.batches(n_shots):
            if stop():
                return
            tried = try_primary(decoders.primary, batch, decode)
            decoded, failed = tried.decoded, tried.failed
            under_way.append((batch, decoded))
            events = decoded.window_events
            if events is None:  # the whole shot is one window
                events = event_counts(batch.detectors_b8)
            blocks = cutter.event_counts(batch.detectors_b8) if source.replays else None
            before = decoded.predecoded
            left = None if before is None else before.residual_events
            work = source.workload(batch.batch, batch.first_shot, events, blocks, left)
            if failed is not None:
                forced = 0 if work.failed is None else work.failed
                work = replace(work, failed=np.where(failed, failed, forced).astype(np.uint8))
            del batch, tried, decoded, failed, events, blocks, before, left
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
        decoded = decoders.fallback.decode_batch(
            batch.detectors_b8[handed_over], batch.shots[handed_over]
        )
        predictions[handed_over] = decoded.predictions_b8
        executed[handed_over] = decoded.executed
    before = primary.predecoded
    unanswered = times.path == Path.UNANSWERED
    predictions[unanswered] = 0
    executed[unanswered] = GlobalDecoder.NONE
    return Answers(
        predictions,
        decoders.requested(times.path),
        executed.astype(np.uint8),
        primary.window_events,
        primary.commits_b8,
        None if before is None else Predecoded.of(before, times.path == Path.PRIMARY),
    )
