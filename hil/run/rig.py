"""The rig of one run: all its parts, built from a scenario, and the driver that pulls batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from hil.device.circuits import CodeCircuit
from hil.device.families import Models
from hil.device.measurements import measurement_layouts
from hil.device.sampler import BlockCutter, StimSampler
from hil.link.capture import Capture
from hil.rack.link_faults import link_plans
from hil.rack.plan import (
    WorkloadSource,
    build_pipeline,
    choose_executor,
    modelled_way_back_ps,
)
from hil.run import provenance, virtual
from hil.run.faults import FaultLog
from hil.run.interrupt import Interrupt
from hil.run.parts import Decoders, board_mask, build_circuits, build_decoders
from hil.run.record import Audit, Driven
from hil.run.resume import Earlier
from hil.scenario.load import Loaded
from hil.scenario.model import Ising25Noise, IsingScalarNoise, Scenario, UserCircuit
from hil.trace.column import ByteWidths
from hil.trace.meta import ModelMeta, TraceMeta
from hil.verdict.detectors import Alarms
from hil.verdict.judge import limits_of
from hil.verdict.load import window_time_ps
from hil.verdict.metrics import Metrics
from hil.verdict.sender import SenderLateness
from hil.wire.roce import ROCE_PORT

if TYPE_CHECKING:
    from hil.run.live import LiveRun

Batches: TypeAlias = Iterator[Driven]


@dataclass
class Rig:
    """Everything built for one run, and what is known of it afterwards."""

    loaded: Loaded
    models: Models
    decoders: Decoders
    metrics: Metrics
    interrupt: Interrupt = field(default_factory=Interrupt)
    audit: Audit = field(default_factory=Audit)
    earlier: Earlier | None = None
    capture: Capture | None = None
    executor: str = ""
    executor_why: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, int] = field(default_factory=dict)
    fault_log: FaultLog | None = None
    alarms: Alarms = field(default_factory=Alarms)
    fingerprint: dict[str, dict[str, str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    rig_errors: list[str] = field(default_factory=list)
    lost_node: str = ""
    sender: SenderLateness | None = None
    shots_done: int = 0
    begin: float = field(default_factory=time.monotonic)

    @property
    def code(self) -> CodeCircuit:
        """The first model; all have the same blocks."""
        return self.models[0]

    @property
    def missing(self) -> int:
        """Shots that were wanted and not run."""
        return self.loaded.scenario.run.shots - self.shots_done


def build_rig(loaded: Loaded) -> Rig:
    """Circuit, decoders and metrics of a scenario."""
    scenario = loaded.scenario
    models = build_circuits(scenario)
    code = models[0]
    qpu, live = scenario.system.qpu, loaded.profile.live
    metrics = Metrics(
        code.n_observables,
        qpu.round_period_ps,
        qpu.shot_period_ps,
        scenario.run.warmup.shots,
        scenario.system.decoder.deadline_ps,
        "measured" if live else "modelled",
        loaded.profile.rack.pace,
        watch=limits_of(scenario.expect),
        window_time_ps=window_time_ps(scenario.system),
    )
    return Rig(loaded, models, build_decoders(scenario, models), metrics)


def build_meta(rig: Rig) -> TraceMeta:
    """Static content of the trace."""
    scenario, code = rig.loaded.scenario, rig.code
    circuit, noise = scenario.system.qpu.circuit, scenario.system.qpu.noise
    predecoder = scenario.system.decoder.predecoder
    resolved = rig.loaded.resolved
    system = resolved["system"]
    rig.fingerprint = {"primary": rig.decoders.primary.fingerprint()}
    if scenario.system.decoder.fallback.policy == "on_deadline":
        rig.fingerprint["fallback"] = rig.decoders.fallback.fingerprint()
    return TraceMeta(
        level=rig.loaded.profile.level,
        scenario_yaml=rig.loaded.text,
        resolved=resolved,
        decoder=system["decoder"],
        noise=system["qpu"]["noise"],
        params={"noise": system["qpu"]["noise"]},
        circuit_stim=code.circuit_text,
        dem=code.dem_text,
        n_detectors=code.n_detectors,
        n_observables=code.n_observables,
        detector_coords=code.coords,
        detector_round=code.detector_block,
        detector_slot=code.detector_slot,
        round_period_ps=scenario.system.qpu.round_period_ps,
        shot_period_ps=scenario.system.qpu.shot_period_ps,
        seeds={"run": scenario.run.seed},
        requested={"profile": scenario.bind.use, **resolved["bind"]["profiles"][scenario.bind.use]},
        executed={"fingerprints": rig.fingerprint},
        fingerprint=rig.fingerprint,
        argv=provenance.command(),
        host=provenance.host(),
        software=provenance.software(),
        git=provenance.git(),
        pace=rig.loaded.profile.rack.pace if rig.loaded.profile.live else 0,
        arrivals=scenario.run.arrivals,
        links=[{"name": name, **system["links"][name]} for name in ("up", "down")],
        boards=[{"name": name, **board} for name, board in system["rack"]["boards"].items()],
        matcher_id=rig.fingerprint["primary"]["decoder"],
        predecoder_sha256=predecoder.sha256 if predecoder is not None else "",
        noise_fingerprint=noise.parameters.fingerprint()
        if isinstance(noise, Ising25Noise | IsingScalarNoise)
        else "",
        layout=circuit.layout_document() if isinstance(circuit, UserCircuit) else {},
        more_models=tuple(_model_meta(model) for model in rig.models[1:]),
    )


def _model_meta(code: CodeCircuit) -> ModelMeta:
    return ModelMeta(
        circuit_stim=code.circuit_text,
        dem=code.dem_text,
        detector_coords=code.coords,
        detector_round=code.detector_block,
        detector_slot=code.detector_slot,
        n_observables=code.n_observables,
    )


def build_driver(rig: Rig, widths: ByteWidths) -> Batches:
    """The virtual or the live driver of this scenario, ready to be pulled."""
    scenario = rig.loaded.scenario
    source = WorkloadSource(scenario)
    measured = scenario.system.links.up.payload == "measurements"
    sent = measurement_layouts(rig.models)[0] if measured else rig.code
    largest = int(sent.block_bits.max())
    if rig.loaded.profile.live:
        return _live(rig, source, largest, widths)
    pipeline = build_pipeline(scenario, largest, way_back_pred_ps=modelled_way_back_ps(scenario))
    executor, rig.executor_why = choose_executor(scenario, pipeline)
    rig.executor = executor.name
    return virtual.drive(
        StimSampler(rig.models, scenario.run.seed, measurements=measured),
        source,
        executor,
        rig.decoders,
        BlockCutter(rig.code),
        scenario.run.shots,
        stop=lambda: bool(rig.interrupt),
        earlier=rig.earlier,
    )


def _live(rig: Rig, source: WorkloadSource, largest: int, widths: ByteWidths) -> Batches:
    from hil.run import live, live_config
    from hil.run.feeder import FeedPlan

    scenario, pace = rig.loaded.scenario, rig.loaded.profile.rack.pace
    predictions = live_config.measure_predictions(scenario, rig.models, rig.decoders)
    pipeline = build_pipeline(scenario, largest, way_back_pred_ps=predictions.way_back_ps)
    # What crossed the sockets contains the serialisation: it must not be added a second time.
    scenario_time = replace(pipeline, frame_ps=0)
    executor, why = choose_executor(scenario, scenario_time)
    rig.executor = executor.name if pace != 1 else "wall clock"
    rig.executor_why = why if pace != 1 else "pace 1: stamps and decisions are the wall's"
    live_config.check_live(scenario, scenario_time)
    rig.sender = SenderLateness.for_deadline(
        scenario.system.decoder.deadline_ps, scenario.system.qpu.round_period_ps
    )
    run = live.LiveRun(
        scenario=scenario,
        code=rig.code,
        decoders=rig.decoders,
        feed=FeedPlan(rig.models, source, pipeline, scenario.run.shots, pace, board_mask(scenario)),
        pipeline=scenario_time,
        executor=executor,
        config=live_config.node_config(scenario, rig.models, rig.decoders, predictions, pace),
        predictions=predictions,
        sender=rig.sender,
        widths=widths if "packets" in scenario.run.record.streams else None,
        stop=lambda: bool(rig.interrupt),
        capture=rig.capture,
        link_plans=link_plans(scenario),
    )
    rig.remarks += _port_remarks(scenario)
    return _live_batches(rig, run)


def _port_remarks(scenario: Scenario) -> list[str]:
    port = scenario.system.links.up.udp_port
    plain = scenario.profile.network.backend == "cudaq_udp"
    if plain == (port != ROCE_PORT):
        return []
    what = "is RoCEv2's, and these datagrams are not" if plain else "is not RoCEv2's"
    return [f"UDP port {port} {what}"]


def _live_batches(rig: Rig, run: LiveRun) -> Batches:
    """Drive the live run; whatever ends it, what its two ends counted is kept."""
    try:
        yield from run.drive()
    finally:
        rig.counts, rig.details = run.counts, run.details
        rig.lost_node = run.lost_node
        rig.remarks.append(f"sender: {run.sender.words()}")
        if rig.capture is not None:
            _finish_capture(rig, rig.capture)


def _finish_capture(rig: Rig, capture: Capture) -> None:
    rig.details |= {"capture.frames": capture.taken, "capture.left_out": capture.left_out}
    rig.remarks.append(
        f"capture {capture.path}: {capture.taken} frames, {capture.left_out} not captured"
    )
    capture.close()
