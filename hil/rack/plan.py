"""From a scenario to what the executors take: the pipeline, and the workload of each batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.policy import PolicyConfig
from gpu_decoder.protocol import Reason
from gpu_decoder.windows import WindowPlan
from hil.errors import ScenarioError
from hil.rack.draws import (
    Replay,
    draw,
    predicted_ps,
    predicted_service_ps,
    service_ps,
    stage_generator,
)
from hil.rack.events import EventExecutor
from hil.rack.link_faults import link_plans, with_link_faults
from hil.rack.pipeline import Pipeline, StageExecutor, Station
from hil.rack.timeline import I64, Workload
from hil.scenario.latency import Latency, Recorded
from hil.scenario.model import (
    BreakFault,
    ByEvents,
    DecoderBinding,
    DelayFault,
    Scenario,
    StallFault,
)
from hil.scenario.system import DecoderSpec, LinksSpec
from hil.timebase import PS_PER_S
from hil.wire.rpc_batch import enqueue_row_bytes

FRAME_OVERHEAD_BYTES = 78
"""Ethernet 14, IPv4 20, UDP 8, BTH 12, RETH 16, immediate 4, ICRC 4 (``docs/wire.md``)."""
_PREAMBLE_FCS_BYTES = 12
_GAP_BYTES = 12
_UNUSED_PS = 1


def wire_ps(n_bytes: int, rate_bps: int) -> int:
    """Time of ``n_bytes`` on a line, rounded up to a whole ps."""
    return -(-n_bytes * 8 * PS_PER_S // rate_bps)


def build_pipeline(
    scenario: Scenario, largest_block_bits: int, *, way_back_pred_ps: int
) -> Pipeline:
    """The pipeline of a scenario.

    Args:
        scenario: checked scenario.
        largest_block_bits: bits of the largest block on the wire: fixes the length of all frames.
        way_back_pred_ps: time that the policy predicts from decode end to correction in effect.

    Raises:
        ScenarioError: the ring cannot hold one shot.
    """
    system = scenario.system
    n_blocks = system.qpu.n_blocks
    slots = system.decoder.ring.slots
    windows = window_plan(scenario)
    need = n_blocks if windows is None else min(n_blocks, windows.length)
    rule = "rounds + final readout" if windows is None else "commit + buffer"
    if slots < need:
        raise ScenarioError(
            f"the ring cannot hold one {'shot' if windows is None else 'window'}",
            where="system.decoder.ring.slots",
            got=str(slots),
            allowed=f">= {need} ({rule})",
            fix="raise slots or lower rounds",
        )
    up = system.links.up
    message = enqueue_row_bytes(largest_block_bits, up.envelope)
    if message > up.mtu_bytes:
        raise ScenarioError(
            "not yet supported: a round that does not fit one packet",
            where="system.links.up.mtu",
            got=f"{up.mtu_bytes}B",
            allowed=f">= {message}B for {largest_block_bits} bits",
            fix="raise mtu or lower distance",
        )
    frame = FRAME_OVERHEAD_BYTES + message + _PREAMBLE_FCS_BYTES
    fallback = system.decoder.fallback
    return Pipeline(
        n_blocks=n_blocks,
        n_boards=len(system.rack.readout_boards),
        round_period_ps=system.qpu.round_period_ps,
        shot_period_ps=system.qpu.shot_period_ps,
        board_stations=tuple(_station(scenario, name) for name in system.rack.board_stages),
        rack_stations=tuple(_station(scenario, name) for name in system.rack.rack_stages),
        frame_gap_ps=wire_ps(frame + _GAP_BYTES, up.rate_bps),
        frame_ps=wire_ps(frame, up.rate_bps),
        ring_slots=slots,
        deadline_ps=system.decoder.deadline_ps,
        primary_deadline_ps=fallback.primary_deadline_ps or system.decoder.deadline_ps,
        policy=PolicyConfig(
            enabled=fallback.policy == "on_deadline",
            primary_workers=system.decoder.workers,
            fallback_workers=fallback.workers,
            way_back_pred_ps=way_back_pred_ps,
            when=fallback_reasons(scenario),
        ),
        windows=windows,
    )


def fallback_reasons(scenario: Scenario) -> frozenset[Reason]:
    """Reasons for which the fallback is asked."""
    return frozenset(Reason[name.upper()] for name in scenario.system.decoder.fallback.when)


def window_plan(scenario: Scenario) -> WindowPlan | None:
    """The windows of a shot in blocks; ``None`` where it is decoded as a whole."""
    sliding = scenario.system.decoder.window.sliding
    if sliding is None:
        return None
    return WindowPlan(scenario.system.qpu.n_blocks, *sliding)


def _station(scenario: Scenario, name: str) -> Station:
    stage = scenario.system.rack.stages[name]
    return Station(name, stage.servers, stage.buffer)


def modelled_way_back_ps(scenario: Scenario) -> int:
    """Predicted way back of a virtual run: reply, downlink, apply.

    Raises:
        ScenarioError: the profile models no reply.
    """
    reply = scenario.profile.decoder.reply
    if reply is None:
        raise ScenarioError("a virtual run needs this model", where="bind.decoder.reply")
    return predicted_ps(reply) + rack_way_back_ps(scenario)


def rack_way_back_ps(scenario: Scenario) -> int:
    """Predicted downlink flight plus ``apply``."""
    rack = scenario.system.rack
    ticks = rack.ticks(rack.aggregate_board)
    down, apply = scenario.system.links.down.latency, rack.stages["apply"].latency
    return predicted_ps(down, ticks) + predicted_ps(apply, ticks)


def choose_executor(scenario: Scenario, pipeline: Pipeline) -> tuple[StageExecutor, str]:
    """The executor that runs, and why.

    Raises:
        UsageError: ``bulk`` was asked for and cannot run this pipeline.
    """
    asked = scenario.profile.rack.executor
    if asked == "events":
        return EventExecutor(pipeline), "asked for by the profile"
    from hil.rack.bulk import BulkExecutor  # brings the compiler

    why_not = BulkExecutor.check(pipeline)
    if asked == "bulk":
        return BulkExecutor(pipeline), "asked for by the profile"
    if why_not:
        return EventExecutor(pipeline), f"bulk cannot run it: {why_not}"
    bulk = BulkExecutor(pipeline)
    how = "" if bulk.compiled else "; interpreted, for a long memory"
    return bulk, f"no finite buffer, no feedback: recursions are exact{how}"


@dataclass(frozen=True)
class WorkloadSource:
    """Draws the workload of each batch: rack, links, node and decoders of a virtual run.

    In a live run the parts behind the rack are measured: ``rack_only`` leaves them zero.
    """

    scenario: Scenario

    @property
    def replays(self) -> bool:
        """True where a stage or link replays a recording and needs the events of each block."""
        system = self.scenario.system
        latencies = [stage.latency for stage in system.rack.stages.values()]
        latencies += [system.links.up.latency, system.links.down.latency]
        return any(isinstance(latency, Recorded) for latency in latencies)

    def workload(
        self,
        batch: int,
        first_shot: int,
        events: I64,
        block_events: I64 | None = None,
        residual_events: I64 | None = None,
    ) -> Workload:
        """Samples for ``len(events)`` shots.

        Args:
            batch: number of the batch: with the run seed it fixes all draws.
            first_shot: index of its first shot.
            events: int64 [n], event counts of the shots, or [n, w] those of their windows.
            block_events: int64 [n, r], of their blocks; needed where ``replays``.
            residual_events: int64 [n], what a pre-decoder leaves to the matching.
        """
        decoder = self.scenario.profile.decoder
        n, r = events.shape[0], self.scenario.system.qpu.n_blocks
        services = _services(
            decoder, self.scenario.system.decoder, self._seed, batch, events, residual_events
        )
        work = replace(
            self.rack_only(batch, first_shot, n, block_events),
            deliver_ps=self._part(decoder.deliver, (n, r), batch, "deliver"),
            dispatch_ps=self._part(decoder.dispatch, events.shape, batch, "dispatch"),
            reply_ps=self._part(decoder.reply, (n,), batch, "reply"),
            primary_ps=services.primary_ps,
            primary_pred_ps=services.primary_pred_ps,
            fallback_ps=services.fallback_ps,
            fallback_pred_ps=services.fallback_pred_ps,
            pre_ps=services.pre_ps,
        )
        return self.with_faults(work)

    def rack_only(
        self, batch: int, first_shot: int, n: int, block_events: I64 | None = None
    ) -> Workload:
        """Rack stages and links of ``n`` shots; node and decoder parts are zero.

        ``block_events`` int64 [n, r]: event counts of the blocks; needed where ``replays``.
        """
        replay = None if block_events is None else Replay(self._seed, batch, block_events)
        system = self.scenario.system
        rack, links = system.rack, system.links
        r = system.qpu.n_blocks
        boards = rack.readout_boards
        aggregate = rack.ticks(rack.aggregate_board)
        board_ps = np.zeros((len(rack.board_stages), len(boards), n, r), dtype=np.int64)
        for k, name in enumerate(rack.board_stages):
            for b, board in enumerate(boards):
                stage = rack.stages[name]
                if board in stage.at:
                    rng = stage_generator(self._seed, batch, name, board)
                    board_ps[k, b] = draw(stage.latency, (n, r), rng, rack.ticks(board), replay)
                if k == 0:
                    board_ps[k, b] += rack.boards[board].skew_ps
        rack_ps = np.zeros((len(rack.rack_stages), n, r), dtype=np.int64)
        for k, name in enumerate(rack.rack_stages):
            rng = stage_generator(self._seed, batch, name)
            rack_ps[k] = draw(rack.stages[name].latency, (n, r), rng, aggregate, replay)
        return Workload(
            first_shot=first_shot,
            board_ps=board_ps,
            rack_ps=rack_ps,
            uplink_ps=self._link(links, "up", (n, r), batch, replay),
            deliver_ps=np.zeros((n, r), dtype=np.int64),
            dispatch_ps=np.zeros(n, dtype=np.int64),
            primary_ps=np.full(n, _UNUSED_PS, dtype=np.int64),
            primary_pred_ps=np.full(n, _UNUSED_PS, dtype=np.int64),
            fallback_ps=np.full(n, _UNUSED_PS, dtype=np.int64),
            fallback_pred_ps=np.full(n, _UNUSED_PS, dtype=np.int64),
            reply_ps=np.zeros(n, dtype=np.int64),
            downlink_ps=self._link(links, "down", (n,), batch, replay),
            apply_ps=draw(
                rack.stages["apply"].latency,
                (n,),
                stage_generator(self._seed, batch, "apply"),
                aggregate,
                replay,
            ),
        )

    def with_faults(self, work: Workload, *, only: frozenset[str] | None = None) -> Workload:
        """Add the scenario's injected faults.

        ``only``: of a live run the hops that are models; there frames suffer on the links.
        """
        for fault in self.scenario.faults.values():
            if isinstance(fault, StallFault):
                if only is None or "decode" in only:
                    work = _stalled(work, fault)
            elif isinstance(fault, BreakFault):
                if only is None or "decode" in only:
                    work = _broken(work, fault)
            elif isinstance(fault, DelayFault) and (only is None or fault.target in only):
                work = _delayed(work, fault)
        if only is None and self.scenario.link_faults:
            plans = link_plans(self.scenario)
            work = with_link_faults(work, plans, self.scenario.system.qpu.n_blocks)
        return work

    @property
    def _seed(self) -> int:
        return self.scenario.run.seed

    def _part(self, latency: Latency | None, shape: tuple[int, ...], batch: int, name: str) -> I64:
        if latency is None:
            raise ScenarioError("a virtual run needs this model", where=f"bind.decoder.{name}")
        return draw(latency, shape, stage_generator(self._seed, batch, "node", name))

    def _link(
        self,
        links: LinksSpec,
        name: str,
        shape: tuple[int, ...],
        batch: int,
        replay: Replay | None,
    ) -> I64:
        rack = self.scenario.system.rack
        link = links.up if name == "up" else links.down
        ticks = rack.ticks(rack.aggregate_board)
        rng = stage_generator(self._seed, batch, "link", name)
        flight = draw(link.latency, shape, rng, ticks, replay)
        if name == "up":
            return flight
        frame = FRAME_OVERHEAD_BYTES - 20 + 64 + _PREAMBLE_FCS_BYTES  # SEND: no RETH, no immediate
        return flight + wire_ps(frame, link.rate_bps)


@dataclass(frozen=True, slots=True)
class _Services:
    """Service times of one batch and what the policy predicts of them, int64 [n] or [n, w]."""

    primary_ps: I64
    primary_pred_ps: I64
    fallback_ps: I64
    fallback_pred_ps: I64
    pre_ps: I64 | None


def _services(
    binding: DecoderBinding,
    spec: DecoderSpec,
    seed: int,
    batch: int,
    events: I64,
    residual_events: I64 | None,
) -> _Services:
    """Times of both decoders.

    The pre-decoder and the fallback see ``events``, the matching behind a pre-decoder
    ``residual_events``. How many are left is not known before the pre-decoder is done: the policy
    predicts the matching with the raw count, which is cautious.
    """
    if binding.service is None:
        raise ScenarioError("a virtual run needs this model", where="bind.decoder.service")

    def drawn(model: Latency | ByEvents, counts: I64, name: str) -> I64:
        return service_ps(model, counts, stage_generator(seed, batch, "node", name))

    matched = events if residual_events is None else residual_events
    primary = drawn(binding.service.model, matched, "primary")
    predicted = predicted_service_ps(binding.service.model, events)
    pre = None
    if binding.predecoder_service is not None:
        pre = drawn(binding.predecoder_service.model, events, "predecoder")
        primary = primary + pre
        predicted = predicted + predicted_service_ps(binding.predecoder_service.model, events)
    if spec.fallback.policy == "never" or binding.fallback_service is None:
        unused = np.full(events.shape[0], _UNUSED_PS, dtype=np.int64)
        return _Services(primary, predicted, unused, unused, pre)
    model = binding.fallback_service.model
    fallback = drawn(model, events, "fallback")
    return _Services(primary, predicted, fallback, predicted_service_ps(model, events), pre)


def _stalled(work: Workload, fault: StallFault) -> Workload:
    at = fault.at.shot - work.first_shot
    if not 0 <= at < work.n_shots:
        return work
    primary = work.primary_ps.copy()
    last = (at,) if primary.ndim == 1 else (at, -1)  # of a stream: the window the answer waits for
    primary[last] += fault.value_ps
    return replace(work, primary_ps=primary)


def broken_shots(fault: BreakFault, first_shot: int, n_shots: int) -> NDArray[np.bool_]:
    """Bool [n_shots]: shots from ``first_shot`` on that the fault breaks."""
    since = np.arange(first_shot, first_shot + n_shots) - fault.at.shot
    return (since >= 0) & (since < fault.shots)


def _broken(work: Workload, fault: BreakFault) -> Workload:
    """The primary gives these shots up; where two faults meet, the first one's reason stands."""
    hit = broken_shots(fault, work.first_shot, work.n_shots)
    failed = np.zeros(work.n_shots, np.uint8) if work.failed is None else work.failed
    return replace(work, failed=np.where(hit & (failed == 0), np.uint8(fault.reason), failed))


def delayed_shots(fault: DelayFault, first_shot: int, n_shots: int) -> NDArray[np.bool_]:
    """Bool [n_shots]: shots from ``first_shot`` on that the fault delays."""
    since = np.arange(first_shot, first_shot + n_shots) - fault.at.shot
    on = since >= 0
    if fault.burst is not None:
        on &= since % fault.burst.every < fault.burst.shots
    return on


def _delayed(work: Workload, fault: DelayFault) -> Workload:
    """The delay on the one array that feeds the target hop, in the shots of the fault."""
    extra = np.where(
        delayed_shots(fault, work.first_shot, work.n_shots), np.int64(fault.value_ps), np.int64(0)
    )
    if not extra.any():
        return work
    field = {
        "acquire": "rack_ps" if work.rack_ps.shape[0] > 1 else "board_ps",
        "packetize": "rack_ps",
        "uplink": "uplink_ps",
        "deliver": "deliver_ps",
        "queue": "dispatch_ps",
        "decode": "primary_ps",
        "reply": "reply_ps",
        "downlink": "downlink_ps",
        "apply": "apply_ps",
    }[fault.target]
    longer = getattr(work, field).copy()
    if fault.target == "acquire":
        longer[0] += extra[:, None]
    elif fault.target == "packetize":
        longer[-1] += extra[:, None]
    elif fault.target in ("queue", "decode") and longer.ndim > 1:
        longer[:, -1] += extra  # of a stream: the window that the answer waits for
    else:
        longer += extra.reshape(-1, *[1] * (longer.ndim - 1))
    if fault.target == "decode":  # both decoders: the hop is the decode, whoever does it
        return replace(work, primary_ps=longer, fallback_ps=work.fallback_ps + extra)
    changes: dict[str, I64] = {field: longer}
    return replace(work, **changes)  # type: ignore[arg-type]
