"""Live run: real frames to a node process, paced by the wall clock.

At ``pace`` 1 the wall clock is the scenario clock: stamps and the policy's decisions are those of
the wall. At any other pace frames flow slower, and every measured duration enters scenario time
unscaled as a service sample; queueing, deadline, fallback and backlog are then computed by the
executor (``docs/time.md``). Rack stages are models in both cases.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import numpy as np

from gpu_decoder.ising.config import PredecoderConfig
from gpu_decoder.protocol import PredecodeRecord, Reason
from gpu_decoder.runtime.protocol import EngineError
from hil.device.circuits import CodeCircuit
from hil.errors import DecoderError, NodeError
from hil.link.capture import Capture
from hil.link.endpoint import Endpoint
from hil.link.faults import Faulty
from hil.link.message_numbers import RequestNumbers
from hil.node.client import Exchange, NodeLostError, Plan, RackClient
from hil.node.config import NodeConfig
from hil.node.shots import NO_REPLY
from hil.rack.link_faults import LinkPlans
from hil.rack.pipeline import Pipeline, StageExecutor, WayBack, finish
from hil.rack.timeline import I64, Path, Status, Timeline, Workload
from hil.run.events import framing_of, packet_rows
from hil.run.feeder import Chunk, Feeder, FeedPlan
from hil.run.live_config import Predictions
from hil.run.parts import Decoders
from hil.run.record import Answers, Driven, Predecoded
from hil.scenario.model import Scenario
from hil.timebase import MISSING_PS, PS_PER_MS, monotonic_ps
from hil.trace.column import ByteWidths, Record
from hil.verdict.sender import SenderLateness

_LEAD_PS = 300 * PS_PER_MS


@dataclass
class LiveRun:
    """One live run. ``drive`` yields batches; afterwards ``counts`` and ``lost_node`` tell more."""

    scenario: Scenario
    code: CodeCircuit
    decoders: Decoders
    feed: FeedPlan
    pipeline: Pipeline
    executor: StageExecutor
    config: NodeConfig
    predictions: Predictions
    sender: SenderLateness
    widths: ByteWidths | None = None
    stop: Callable[[], bool] = lambda: False
    capture: Capture | None = None
    link_plans: LinkPlans = field(default_factory=dict)
    wall_start_ps: int = 0
    lost_node: str = ""
    undetected: int = 0
    way_back: WayBack = field(default_factory=WayBack)
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    node_pid: int = 0

    def drive(self) -> Iterator[Driven]:
        """Run all shots.

        Raises:
            NodeLostError: the node died and the scenario says ``on_node_lost: fail``; the shots
                known by then have been yielded.
        """
        with prompt_threads(), Feeder(self.feed) as feeder, self._client() as client:
            self.fingerprints = client.fingerprints()
            self.node_pid = client.node_pid
            if self.stop():
                return
            feeder.warm_up()
            self._warm_up()
            self.wall_start_ps = monotonic_ps() + _LEAD_PS
            feeder.start(self.wall_start_ps)
            try:
                self._check_decoders()
                yield from self._exchange(feeder, client)
            finally:
                self._collect(client)

    def _client(self) -> RackClient:
        tap = None if self.capture is None else self.capture.tap
        return RackClient(
            self.config, wrap=self._wrap, tap=tap, answer_faults=self.link_plans.get("down")
        )

    def _wrap(self, endpoint: Endpoint) -> Endpoint:
        plan = self.link_plans.get("up")
        return endpoint if plan is None else Faulty(endpoint, plan, RequestNumbers())

    def _check_decoders(self) -> None:
        """The node must run the decoders that the trace's metadata name.

        Raises:
            NodeError: another decoder, version or model answers.
        """
        wanted = {"primary": self.decoders.primary.fingerprint()}
        if self.config.fallback is not None:
            wanted["fallback"] = self.decoders.fallback.fingerprint()
        if self.fingerprints != wanted:
            raise NodeError(
                "the node runs other decoders than were asked for",
                got=str(self.fingerprints),
                allowed=str(wanted),
                fix="use one environment for rack and node",
            )

    def _warm_up(self) -> None:
        """Compile the executor off the clock: a pause of the sender would tear shots apart."""
        no_events = np.zeros((2, self.pipeline.n_blocks), dtype=np.int64)
        work = self.feed.source.rack_only(0, 0, 2, no_events)
        list(type(self.executor)(self.pipeline).run(iter([work])))

    def _exchange(self, feeder: Feeder, client: RackClient) -> Iterator[Driven]:
        sent: deque[Chunk] = deque()
        chunks = feeder.chunks()
        pace = self.feed.pace

        def plans() -> Iterator[Plan]:
            for chunk in chunks:
                if self.stop():
                    return
                sent.append(chunk)
                yield Plan(
                    chunk.batch.first_shot,
                    chunk.enqueue,
                    chunk.get,
                    self.wall_start_ps + chunk.send_ps * pace,
                )

        loss: list[NodeLostError] = []

        def exchanges() -> Iterator[tuple[Chunk, Exchange]]:
            stream = client.stream(plans(), spin=self.config.spin)
            while True:
                try:
                    exchange = next(stream)
                except StopIteration:
                    return
                except NodeLostError as error:
                    loss.append(error)
                    yield from _split(error.partial, sent)
                    return
                self._audit(exchange)
                chunk = sent.popleft()
                self._watch_sender(chunk, exchange)
                yield chunk, exchange

        if pace == 1:
            yield from (self._on_the_wall(c, e) for c, e in exchanges())
        else:
            yield from self._in_scenario_time(exchanges())
        if loss:
            self.lost_node = loss[0].what
            if self.scenario.system.decoder.on_node_lost == "fail":
                raise loss[0]
            for chunk in itertools.chain(sent, chunks):
                if self.stop():
                    return
                yield self._in_process(chunk)

    def _audit(self, got: Exchange) -> None:
        """A frame that never arrived although its shot was answered: a loss nobody noticed."""
        unnoticed = got.lost & (got.path != Path.UNANSWERED)[:, None]
        self.undetected += int(unnoticed.sum())

    def _watch_sender(self, chunk: Chunk, got: Exchange) -> None:
        """Lateness of the frames: T2 against the instant of the plan."""
        planned_ps = self.wall_start_ps + chunk.send_ps * self.feed.pace
        self.sender.update((got.t_tx_ps - planned_ps)[got.t_tx_ps != MISSING_PS])

    # -- pace 1: the wall clock is the scenario clock -----------------------------------------

    def _on_the_wall(self, chunk: Chunk, got: Exchange) -> Driven:
        def scenario_ps(wall: I64) -> I64:
            return np.where(wall == MISSING_PS, MISSING_PS, wall - self.wall_start_ps)

        path, reason = got.path.copy(), got.reason.copy()
        times = finish(
            self.pipeline,
            chunk.work,
            self.way_back,
            stamps=(
                chunk.intended_ps,
                chunk.formed_ps,
                scenario_ps(got.t_tx_ps),
                scenario_ps(got.t_rx_ps),
                scenario_ps(got.t_visible_ps),
            ),
            start_ps=scenario_ps(got.t_decode_start_ps),
            end_ps=scenario_ps(got.t_decode_end_ps),
            path=path,
            reason=reason,
            dropped=got.lost | got.refused,
            depth=got.queue_depth,
            reply=(scenario_ps(got.t_reply_tx_ps), scenario_ps(got.t_reply_rx_ps)),
        )
        answers = self._answers(times.path, got, got.prediction_b8)
        return self._with_lost_node(
            chunk, times, answers, _orphaned(got), self._packets(chunk, got)
        )

    # -- any other pace: measured durations, scenario time ------------------------------------

    def _in_scenario_time(self, exchanges: Iterator[tuple[Chunk, Exchange]]) -> Iterator[Driven]:
        under_way: deque[tuple[Chunk, Exchange]] = deque()
        last_ends = np.full(self.pipeline.policy.primary_workers, MISSING_PS, dtype=np.int64)

        def workloads() -> Iterator[Workload]:
            for chunk, got in exchanges:
                under_way.append((chunk, got))
                yield self._measured(chunk, got, last_ends)

        for scheduled in self.executor.run(workloads()):
            chunk, got = under_way.popleft()
            times = _observed(scheduled, got)
            fallback = (times.path == Path.FALLBACK)[:, None]
            bits = np.where(fallback, got.fallback_prediction_b8, got.primary_prediction_b8)
            answers = self._answers(times.path, got, bits)
            packets = self._packets(chunk, got)
            yield self._with_lost_node(chunk, times, answers, _orphaned(got), packets)

    def _measured(self, chunk: Chunk, got: Exchange, last_ends: I64) -> Workload:
        """Durations of the exchange as samples; 0 (1 for services) where nothing was measured."""

        def between(start: I64, end: I64, least: int = 0) -> I64:
            known = (start != MISSING_PS) & (end != MISSING_PS)
            return np.where(known, np.maximum(end - start, least), least)

        visible = got.t_visible_ps[:, -1]
        eligible = visible.copy()
        for i in range(visible.size):  # a busy worker is queueing, not dispatch
            k = int(np.argmin(last_ends))
            eligible[i] = max(int(visible[i]), int(last_ends[k]))
            if got.primary_end_ps[i] != MISSING_PS:
                last_ends[k] = got.primary_end_ps[i]
        fallback = between(got.fallback_start_ps, got.fallback_end_ps, 1)
        return replace(
            chunk.work,
            uplink_ps=between(got.t_tx_ps, got.t_rx_ps),
            deliver_ps=between(got.t_rx_ps, got.t_visible_ps),
            dispatch_ps=between(eligible, got.primary_start_ps),
            primary_ps=between(got.primary_start_ps, got.primary_end_ps, 1),
            primary_pred_ps=np.full(fallback.size, self.predictions.primary_ps, dtype=np.int64),
            fallback_ps=fallback,
            fallback_pred_ps=np.full(fallback.size, self.predictions.fallback_ps, dtype=np.int64),
            reply_ps=between(got.t_decode_end_ps, got.t_reply_tx_ps),
            downlink_ps=between(got.t_reply_tx_ps, got.t_reply_rx_ps),
            lost=got.lost | got.refused,
            failed=got.primary_failed,
        )

    # -- both -----------------------------------------------------------------------------------

    def _answers(self, path: np.ndarray, got: Exchange, bits: np.ndarray) -> Answers:
        table = np.stack([got.executed_primary, got.executed_fallback, np.zeros_like(path)])
        executed = table[path, np.arange(path.size)].astype(np.uint8)
        bits = np.where((path == Path.UNANSWERED)[:, None], np.uint8(0), bits)
        before = predecoded(self.decoders.predecoders, path == Path.PRIMARY, got)
        return Answers(bits, self.decoders.requested(path), executed, predecoded=before)

    def _packets(self, chunk: Chunk, got: Exchange) -> Record:
        if self.widths is None:
            return {}
        rows = packet_rows(
            got,
            wall_start_ps=self.wall_start_ps,
            framing=framing_of(self.config, chunk.enqueue.shape[2]),
            widths=self.widths,
        )
        return {"packets": rows}

    def _with_lost_node(
        self, chunk: Chunk, times: Timeline, answers: Answers, gone: np.ndarray, extra: Record
    ) -> Driven:
        """Shots that a dead node left: void, or answered here if the scenario says so.

        Raises:
            DecoderError: the pre-decoder fails here too.
        """
        if not gone.any():
            return Driven(chunk.batch, times, answers, extra)
        if self.scenario.system.decoder.on_node_lost == "fail":
            status = np.where(gone, np.uint8(Status.VOID), times.status)
            return Driven(chunk.batch, replace(times, status=status), answers, extra)
        left = chunk.batch.shots[gone]
        try:
            decoded = self.decoders.primary.decode_batch(chunk.batch.detectors_b8[gone], left)
        except EngineError as error:
            raise DecoderError(
                "the pre-decoder fails in process too, after the node was lost",
                where=f"shots {left[0]} to {left[-1]}",
                got=str(error),
            ) from error
        bits, executed, requested = (
            answers.predictions_b8.copy(),
            answers.executed.copy(),
            answers.requested.copy(),
        )
        bits[gone], executed[gone] = decoded.predictions_b8, decoded.executed
        requested[gone] = self.decoders.requested(np.zeros(1, dtype=np.uint8))[0]
        before = answers.predecoded
        if decoded.predecoded is not None:
            before = told_here(before, decoded.predecoded, gone)
        status = np.where(gone, np.uint8(Status.CONCEALED), times.status)
        path = np.where(gone, np.uint8(Path.FALLBACK), times.path)
        return Driven(
            chunk.batch,
            replace(times, status=status, path=path),
            replace(
                answers,
                predictions_b8=bits,
                requested=requested,
                executed=executed,
                predecoded=before,
            ),
            extra,
        )

    def _in_process(self, chunk: Chunk) -> Driven:
        """A chunk that was never sent because the node is gone."""
        n, r = chunk.intended_ps.shape
        missing = np.full((n, r), MISSING_PS, dtype=np.int64)
        times = finish(
            self.pipeline,
            chunk.work,
            self.way_back,
            stamps=(chunk.intended_ps, chunk.formed_ps, missing, missing, missing),
            start_ps=missing[:, 0],
            end_ps=missing[:, 0],
            path=np.full(n, Path.UNANSWERED, dtype=np.uint8),
            reason=np.full(n, Reason.DEVICE_LOST, dtype=np.uint8),
            dropped=np.ones((n, r), dtype=np.bool_),
            depth=np.zeros(n, dtype=np.uint16),
        )
        width = -(-self.code.n_observables // 8)
        none = np.zeros(n, dtype=np.uint8)
        return self._with_lost_node(
            chunk,
            times,
            Answers(np.zeros((n, width), dtype=np.uint8), none, none),
            np.ones(n, dtype=np.bool_),
            {},
        )

    def _collect(self, client: RackClient) -> None:
        """Counters of both ends, once the exchange is over."""
        rack = client.counters()
        node = client.close()
        if not node and not self.lost_node:
            self.lost_node = "the node ended without its counters"
        self.details = {f"rack.{k}": v for k, v in rack.items()}
        self.details |= {f"node.{k}": v for k, v in node.items()}
        self.details |= self.sender.counts()
        self.counts = {
            "packets.lost_undetected": self.undetected,
            "answers.missing": rack.get("answers_missing", 0),
            "shots.mixed_epoch": rack.get("reply_bad_epoch", 0) + node.get("bad_epoch", 0),
        }
        if node:
            self.counts |= {
                "packets.lost": node["lost"] + rack["link.psn_lost"],
                "packets.duplicate": node["duplicate"] + rack["link.psn_dup"],
                "packets.reordered": node["reordered"] + rack["link.psn_reorder"],
            }


@contextmanager
def prompt_threads() -> Iterator[None]:
    """Let the sender have the GIL back within 0.1 ms (default 5 ms) while the recorder works."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def predecoded(
    asked: Sequence[PredecoderConfig], answered: np.ndarray, got: Exchange
) -> Predecoded | None:
    """What the node says of its pre-decoder, beside what was asked for.

    Args:
        asked: pre-decoders of the run, all of one backend and precision; empty: it has none.
        answered: bool [n], shots that the primary answered.
        got: what happened.
    """
    if not asked:
        return None

    def where_answered(column: np.ndarray | int) -> np.ndarray:
        return np.where(answered, column, 0).astype(np.uint8)

    return Predecoded(
        where_answered(int(asked[0].backend)),
        where_answered(got.backend),
        where_answered(int(asked[0].precision)),
        where_answered(got.precision),
        np.where(answered, got.residual_events.astype(np.int64), -1),
    )


def told_here(node: Predecoded | None, record: PredecodeRecord, gone: np.ndarray) -> Predecoded:
    """What the node says of its pre-decoder, and of the shots ``gone`` what ran in this process.

    Args:
        node: of the whole batch; ``None``: the batch was never sent.
        record: of the shots decoded here, in order.
        gone: bool [n], which shots these are.
    """
    left = np.full(gone.size, -1, dtype=np.int64)
    left[gone] = record.residual_events
    here = Predecoded.of(replace(record, residual_events=left), gone)
    if node is None:
        return here
    return Predecoded(
        *(
            np.where(gone, getattr(here, part.name), getattr(node, part.name))
            for part in fields(Predecoded)
        )
    )


def _orphaned(got: Exchange) -> np.ndarray:
    """Bool [n]: shots whose node died before it replied."""
    orphaned: np.ndarray = (got.reason == Reason.DEVICE_LOST) & (got.status_code == NO_REPLY)
    return orphaned


def _split(partial: Exchange | None, sent: deque[Chunk]) -> Iterator[tuple[Chunk, Exchange]]:
    """What was known when the node died, chunk by chunk."""
    start = 0
    while partial is not None and start < partial.n_shots:
        chunk = sent.popleft()
        stop = start + chunk.batch.n_shots
        columns = {
            f.name: getattr(partial, f.name)[start:stop]
            for f in fields(Exchange)
            if f.name != "first_shot"
        }
        yield chunk, Exchange(first_shot=chunk.batch.first_shot, **columns)
        start = stop


def _observed(times: Timeline, got: Exchange) -> Timeline:
    """The executor's timeline with what the exchange knows better.

    Where the node gave no answer no schedule can make one, and its reason stands. A frame that was
    never sent or never arrived has no stamp.
    """
    gone = got.path == Path.UNANSWERED

    def unset(column: I64) -> I64:
        return np.where(gone, MISSING_PS, column)

    def where_seen(column: I64, wall: I64) -> I64:
        return np.where(wall == MISSING_PS, MISSING_PS, column)

    return replace(
        times,
        t_tx_ps=where_seen(times.t_tx_ps, got.t_tx_ps),
        t_rx_ps=where_seen(times.t_rx_ps, got.t_rx_ps),
        t_visible_ps=where_seen(times.t_visible_ps, got.t_visible_ps),
        t_decode_start_ps=unset(times.t_decode_start_ps),
        t_decode_end_ps=unset(times.t_decode_end_ps),
        t_reply_tx_ps=unset(times.t_reply_tx_ps),
        t_reply_rx_ps=unset(times.t_reply_rx_ps),
        t_applied_ps=unset(times.t_applied_ps),
        path=np.where(gone, np.uint8(Path.UNANSWERED), times.path),
        reason=np.where(gone, got.reason, times.reason),
        status=np.where(gone, np.uint8(Status.DROPPED), times.status),
    )
