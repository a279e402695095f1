"""What a live run is told before it starts: predictions of the policy, the node's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpu_decoder.runtime.protocol import EngineError
from gpu_decoder.turns import TurnDecoders
from hil.device.families import Models
from hil.device.measurements import measurement_layouts
from hil.device.sampler import ShotBatch, StimSampler
from hil.errors import DecoderError, ScenarioError
from hil.node.config import Breakage, Delays, DetectorMap, LiveNetwork, NodeConfig
from hil.rack.bulk import BulkExecutor
from hil.rack.pipeline import Pipeline
from hil.rack.plan import fallback_reasons, rack_way_back_ps
from hil.run.feeder import MODELLED_HOPS
from hil.run.parts import Decoders, board_mask
from hil.scenario.model import BreakFault, DelayFault, Scenario, StallFault
from hil.timebase import PS_PER_S, PS_PER_US, monotonic_ps

_WAKE_UP_PS = 200 * PS_PER_US
_PILOT_SHOTS = 400


def check_live(scenario: Scenario, pipeline: Pipeline) -> None:
    """Refuse what a live run cannot do, before anything starts.

    Raises:
        ScenarioError: finite buffers, two ports, or a ring without room for a shot and its request.
    """
    blocking = BulkExecutor.check(pipeline)
    if blocking:
        raise ScenarioError(
            "not yet supported: finite buffers in a live run",
            where="system.rack.stages",
            got=blocking,
            allowed="stages without buffer",
            fix="remove buffer, or use a virtual profile",
        )
    links = scenario.system.links
    if links.down.udp_port != links.up.udp_port:
        raise ScenarioError(
            "not yet supported: another UDP port on the way back",
            where="system.links.down.udp_port",
            got=str(links.down.udp_port),
            allowed=str(links.up.udp_port),
            fix="write the port of links.up",
        )
    if pipeline.ring_slots <= pipeline.n_blocks:
        raise ScenarioError(
            "the ring cannot hold one shot and its request",
            where="system.decoder.ring.slots",
            got=str(pipeline.ring_slots),
            allowed=f">= {pipeline.n_blocks + 1} in a live run",
            fix="raise slots",
        )


@dataclass(frozen=True)
class Predictions:
    """Service times that the node's policy plans with, measured before the run.

    Attributes:
        primary_ps: 99 % quantile of one-shot decodes of the primary, on shots of its own.
        fallback_ps: the same of the fallback.
        way_back_ps: wake-ups of two processes (allowance) plus the modelled way to ``applied``.
    """

    primary_ps: int
    fallback_ps: int
    way_back_ps: int


def measure_predictions(scenario: Scenario, models: Models, decoders: Decoders) -> Predictions:
    """Decode pilot shots one by one. Their seed is not the run's: no shot is seen twice.

    Raises:
        DecoderError: the pre-decoder fails already here.
    """
    pilot = next(StimSampler(models, scenario.run.seed ^ (1 << 62)).batches(_PILOT_SHOTS))
    try:
        primary_ps = _p99_ps(decoders.primary, pilot)
    except EngineError as error:
        raise DecoderError(
            "the pre-decoder fails before the first shot",
            where="system.decoder.predecoder",
            got=str(error),
        ) from error
    fallback_ps = _p99_ps(decoders.fallback, pilot)
    return Predictions(primary_ps, fallback_ps, _WAKE_UP_PS + rack_way_back_ps(scenario))


def _p99_ps(decoders: TurnDecoders, pilot: ShotBatch) -> int:
    spent = np.empty(pilot.n_shots, dtype=np.int64)
    for i, row in enumerate(pilot.detectors_b8):
        decoder = decoders.of(i)
        begin = monotonic_ps()
        decoder.decode_one(row)
        spent[i] = monotonic_ps() - begin
    return int(np.quantile(spent, 0.99, method="higher"))


def node_config(
    scenario: Scenario, models: Models, decoders: Decoders, predictions: Predictions, pace: int
) -> NodeConfig:
    """What the node process is told."""
    system, network = scenario.system, scenario.profile.network
    fallback, up = system.decoder.fallback, system.links.up
    measured = measurement_layouts(models) if up.payload == "measurements" else ()
    code, *others = models
    edges = np.concatenate([[0], np.cumsum(code.block_bits)])
    blocks = [code.wire_order[a:b].tolist() for a, b in pairwise(edges)]
    spacing_ps = system.qpu.shot_period_ps * pace
    return NodeConfig.create(
        rack_address=network.rack_address,
        node_address=network.node_address,
        network=live_network(scenario),
        rack_device=network.rack_device,
        node_device=network.node_device,
        udp_port=system.links.up.udp_port,
        psn_start_up=system.links.up.psn_start,
        psn_start_down=system.links.down.psn_start,
        ring_slots=system.decoder.ring.slots,
        block_detectors=tuple(tuple(b) for b in blocks),
        payload=up.payload,
        envelope=up.envelope,
        block_measurements=tuple(measured[0].block_bits.tolist()) if measured else (),
        detector_maps=tuple(DetectorMap(rows=m.rows, inverted=m.inverted) for m in measured),
        n_observables=code.n_observables,
        board_mask=board_mask(scenario),
        dem_text=code.dem_text,
        more_dem_texts=tuple(other.dem_text for other in others),
        primary=decoders.primary_name,
        predecoders=decoders.predecoders,
        primary_workers=system.decoder.workers,
        fallback=decoders.fallback_name if fallback.policy == "on_deadline" else None,
        fallback_workers=fallback.workers,
        fallback_when=fallback_reasons(scenario),
        mode="decide" if pace == 1 else "measure",
        deadline_ps=system.decoder.deadline_ps,
        primary_deadline_ps=fallback.primary_deadline_ps,
        primary_pred_ps=predictions.primary_ps,
        way_back_pred_ps=predictions.way_back_ps,
        fallback_pred=((0, predictions.fallback_ps),),
        gap_timeout_ps=max(2 * PS_PER_S, 8 * spacing_ps),
        answer_timeout_ps=max(5 * PS_PER_S, 8 * spacing_ps),
        spin=scenario.profile.rack.spin,
        delays=_delays(scenario),
        breakages=tuple(
            Breakage(reason=fault.reason, first=fault.at.shot, shots=fault.shots)
            for fault in scenario.faults.values()
            if isinstance(fault, BreakFault)
        ),
        mtu_bytes=system.links.up.mtu_bytes,
        transport=system.links.transport,
    )


def live_network(scenario: Scenario) -> LiveNetwork:
    """The network backend of a live run.

    Raises:
        ScenarioError: no frame travels in this profile.
    """
    backend = scenario.profile.network.backend
    if backend == "virtual":
        raise ScenarioError(
            "not a live network", where="bind.profiles.*.network.backend", got=backend
        )
    return backend


def _delays(scenario: Scenario) -> Delays:
    """Injected delays of the hops that are real here; the others are added by the models."""
    values: dict[str, int] = {}
    first: dict[str, int] = {}
    bursts: dict[str, tuple[int, int]] = {}
    stalls: dict[int, int] = {}
    for fault in scenario.faults.values():
        if isinstance(fault, StallFault):
            stalls[fault.at.shot] = stalls.get(fault.at.shot, 0) + fault.value_ps
        elif isinstance(fault, DelayFault) and fault.target not in MODELLED_HOPS:
            key = f"{fault.target}_ps"
            if key in values:
                raise ScenarioError(
                    "not yet supported: two delays on one measured hop",
                    where="faults",
                    got=fault.target,
                    allowed="one delay per hop in a live run",
                    fix="remove one of them",
                )
            values[key] = fault.value_ps
            first[fault.target] = fault.at.shot
            if fault.burst is not None:
                bursts[fault.target] = (fault.burst.shots, fault.burst.every)
    return Delays.model_validate(
        {**values, "from_shot": first, "bursts": bursts, "stalls_ps": stalls}
    )
