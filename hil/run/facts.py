"""What a finished run tells: rows of the trace's final groups, facts of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hil.report.build import build
from hil.report.document import (
    DetectorRow,
    Document,
    EvidenceRow,
    Executed,
    FaultRow,
    RunFacts,
)
from hil.report.write import write_all
from hil.run import provenance
from hil.scenario.bind import NetworkBinding
from hil.scenario.faults import DuplicateFault, LossFault, ReorderFault, TruncateFault
from hil.scenario.model import (
    LINK_FAULTS,
    BreakFault,
    DelayFault,
    LinkFault,
    PauseFault,
    Scenario,
    UserCircuit,
)
from hil.trace.schema import code
from hil.units import format_ps
from hil.verdict.judge import Verdict

if TYPE_CHECKING:
    from hil.run.rig import Rig
    from hil.run.runner import Outcome

_EXIT_STATUS: Final = {
    Verdict.PASS: "success",
    Verdict.FAIL: "fail",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.RIG_ERROR: "rig_error",
    Verdict.SKIP: "inconclusive",
}


def exit_status(verdict: Verdict) -> str:
    """Root attribute ``exit_status`` of a trace with this verdict."""
    return _EXIT_STATUS[verdict]


def build_document(outcome: Outcome) -> Document:
    """The report of a run."""
    rig, meta = outcome.rig, outcome.meta
    scenario = rig.loaded.scenario
    period = scenario.system.qpu.shot_period_ps
    facts = RunFacts(
        run_id=meta.run_id,
        scenario_id=scenario.id,
        title=scenario.title,
        level=rig.loaded.profile.level,
        profile=scenario.bind.use,
        created_utc=meta.created_utc,
        seed=scenario.run.seed,
        simulated_ps=rig.shots_done * period,
        wall_s=round(outcome.wall_s, 3),
        workload=_workload(scenario, rig.code.n_detectors),
        executed=_executed(rig),
        faults=_faults(scenario),
        alarms=_alarms(rig),
        detectors=tuple(sorted(rig.details.items())),
        evidence=_evidence(scenario),
        provenance=(
            ("content_id", outcome.content_id),
            ("problem_id", meta.problem_id),
            ("circuit_sha256", rig.code.circuit_sha256),
            ("dem_sha256", rig.code.dem_sha256),
            *provenance.as_pairs(provenance.git()),
            *provenance.as_pairs(provenance.host()),
        ),
        seeds=(("run", str(scenario.run.seed)),),
        versions=provenance.as_pairs(provenance.software()),
        not_tested=_not_tested(rig),
        labels=(*rig.remarks, *_bases(rig), *(str(w) for w in rig.loaded.warnings)),
        files=(
            ("trace", outcome.trace.name),
            ("report (data)", "report.json"),
            ("JUnit", "junit.xml"),
            ("report (page)", "report.html"),
        ),
    )
    return build(rig.metrics, outcome.judgements, facts)


def write_reports(document: Document, directory: Path) -> None:
    """Write report.json, junit.xml and report.html."""
    write_all(document, directory)


def _workload(scenario: Scenario, n_detectors: int) -> tuple[tuple[str, str], ...]:
    qpu = scenario.system.qpu
    circuit = qpu.circuit
    what = (
        ("file", f"sha256 {circuit.sha256}")
        if isinstance(circuit, UserCircuit)
        else ("distance", str(circuit.distance))
    )
    return (
        ("circuit", f"{circuit.code}, basis {circuit.basis}"),
        what,
        ("rounds", f"{circuit.rounds} + final readout, {n_detectors} detectors"),
        ("noise", qpu.noise.shown),
        ("round period", format_ps(qpu.round_period_ps)),
        ("shot period", format_ps(qpu.shot_period_ps)),
        ("decode window", _window(scenario)),
        ("deadline", format_ps(scenario.system.decoder.deadline_ps)),
        ("arrivals", "open loop"),
    )


def _window(scenario: Scenario) -> str:
    sliding = scenario.system.decoder.window.sliding
    if sliding is None:
        return "whole shot"
    return f"sliding, commit {sliding[0]}, buffer {sliding[1]} rounds"


def _bases(rig: Rig) -> tuple[str, ...]:
    """Failed shots of each basis, where bases alternate: the rates are pooled over them."""
    if len(rig.models) == 1:
        return ()
    names = {code("shots", "basis", model.basis): model.basis for model in rig.models}
    parts = (f"{names[basis]} {failed} of {n}" for basis, (n, failed) in rig.audit.by_basis.items())
    return (f"failed shots by basis, warm-up included: {', '.join(parts)}",)


def _executed(rig: Rig) -> tuple[Executed, ...]:
    scenario, profile = rig.loaded.scenario, rig.loaded.profile
    decoder = scenario.system.decoder
    prints = rig.fingerprint
    behind = f", then {decoder.matcher}" if decoder.predecoder else ""
    asked = f"{decoder.primary}{behind}"

    def ran(role: str) -> str:
        found = prints.get(role)
        return "none" if found is None else f"{found['decoder']} (pymatching {found['version']})"

    return (
        Executed("rack", f"{profile.rack.backend}, executor {profile.rack.executor}",
                 rig.executor, rig.executor_why),
        Executed("network", profile.network.backend, profile.network.backend),
        Executed("node", profile.decoder.node, _node_executed(rig)),
        *_predecoder(scenario, prints.get("primary", {})),
        Executed("primary decoder", asked, ran("primary")),
        Executed("fallback decoder", f"{decoder.fallback.to}, {decoder.fallback.policy}",
                 ran("fallback")),
        Executed("decode time", profile.decoder.time, profile.decoder.time),
    )  # fmt: skip


def _predecoder(scenario: Scenario, print_: Mapping[str, str]) -> tuple[Executed, ...]:
    """The pre-decoder as it was asked for and as it ran; no row without one."""
    asked, binding = scenario.system.decoder.predecoder, scenario.profile.decoder
    if asked is None:
        return ()
    if asked.rule is not None:
        return (Executed("pre-decoder", asked.shown, print_.get("predecoder", "nothing")),)
    ran = [print_.get("predecoder", "nothing")]
    if "runtime" in print_:
        ran += [f"{print_['runtime']} {print_['runtime_version']}", print_["precision"]]
    how = f"{asked.shown}, {binding.predecoder} {binding.precision}"
    return (Executed("pre-decoder", how, ", ".join(ran)),)


def _node_executed(rig: Rig) -> str:
    asked = rig.loaded.profile.decoder.node
    return f"{asked}, lost on the way: {rig.lost_node}" if rig.lost_node else asked


def _faults(scenario: Scenario) -> tuple[FaultRow, ...]:
    rows = []
    for name, fault in scenario.faults.items():
        target = fault.target
        until = "once"
        if isinstance(fault, LINK_FAULTS):
            rows.append(FaultRow(name, _link_fault(fault), _window_of(scenario, fault)))
            continue
        if isinstance(fault, BreakFault):
            what = f"{fault.kind} on {target}"
            until = f"{fault.shots} shots" if fault.shots > 1 else "once"
        else:
            what = f"{fault.kind} of {format_ps(fault.value_ps)} on {target}"
        if isinstance(fault, DelayFault):
            burst = fault.burst
            until = f"{burst.shots} of every {burst.every} shots" if burst else "to the end"
        rows.append(FaultRow(name, what, f"from shot {fault.at.shot}, {until}"))
    return tuple(rows)


def _link_fault(fault: LinkFault) -> str:
    if isinstance(fault, PauseFault):
        again = "" if fault.every_ps is None else f" every {format_ps(fault.every_ps)}"
        what = f"pause of {format_ps(fault.value_ps)}{again}"
    else:
        more = ""
        match fault:
            case LossFault(burst=burst) if burst is not None:
                more = f" in bursts of {burst.frames:g}, of which {100 * burst.loss:g} % are lost,"
            case DuplicateFault(after=after):
                more = f", {after} frames later,"
            case ReorderFault(window=most):
                more = f" by 1 to {most} frames"
            case TruncateFault(value_bytes=cut):
                more = f" by {cut} B"
        what = f"{fault.kind} of {100 * fault.p:g} % of the frames{more}"
    caught = f", to be caught by {fault.caught_by}" if fault.caught_by else ""
    return f"{what} on {fault.target}{caught}"


def _window_of(scenario: Scenario, fault: LinkFault) -> str:
    qpu = scenario.system.qpu
    begin = fault.at.first_due_ps(qpu.round_period_ps, qpu.shot_period_ps, qpu.n_blocks)
    length = "to the end" if fault.for_ps is None else f"for {format_ps(fault.for_ps)}"
    return f"from {format_ps(begin)} (shot {begin // qpu.shot_period_ps}), {length}"


def _alarms(rig: Rig) -> tuple[DetectorRow, ...]:
    """Detectors of a run that has the counters they read."""
    if not rig.details:
        return ()
    roles = rig.alarms.roles(rig.loaded.scenario)
    return tuple(DetectorRow(name, rig.alarms.events[name], role) for name, role in roles.items())


def _evidence(scenario: Scenario) -> tuple[EvidenceRow, ...]:
    system, profile = scenario.system, scenario.profile
    rows = [
        EvidenceRow(f"stage {name}", stage.evidence, stage.source)
        for name, stage in system.rack.stages.items()
    ]
    if profile.live:
        here = "sockets and decoder of this machine"
        rows += [EvidenceRow(f"link {n}", "measured", here) for n in ("up", "down")]
        rows.append(EvidenceRow("decoder", "measured", here))
        return tuple(rows)
    for name, link in (("up", system.links.up), ("down", system.links.down)):
        rows.append(EvidenceRow(f"link {name}", link.evidence, link.source))
    for name, service in (
        ("pre-decoder", profile.decoder.predecoder_service),
        ("primary decoder", profile.decoder.service),
        ("fallback decoder", profile.decoder.fallback_service),
    ):
        if service is not None:
            rows.append(EvidenceRow(name, service.evidence, service.source))
    rows.append(EvidenceRow("node: deliver, dispatch, reply", "assumed", "bind profile"))
    return tuple(rows)


def _not_tested(rig: Rig) -> tuple[str, ...]:
    profile = rig.loaded.profile
    on_gpu = profile.decoder.predecoder in ("tensorrt", "tensorrt_rtx")
    on_device = profile.network.backend == "verbs"
    absent = [*(() if on_gpu else ("GPU",)), *(() if on_device else ("RDMA device",)), "FPGA"]
    open_points = [f"No {_or(absent)} took part in this run."]
    if not rig.loaded.profile.live:
        open_points.append("No frame travelled: links and decoder times are models.")
    else:
        open_points.append(f"Rack stages are models; frames crossed {_crossed(profile.network)}.")
    return tuple(open_points)


def _or(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _crossed(network: NetworkBinding) -> str:
    """What carried the frames; whether a device is hardware, nobody here can tell."""
    devices = f"{network.rack_device} and {network.node_device}"
    if network.backend == "verbs":
        return f"the verbs devices {devices}"
    if network.backend == "frames" and network.rack_device is not None:
        return f"the interfaces {devices}"
    return f"{'UNIX' if network.backend == 'frames' else 'loopback UDP'} sockets, not a NIC"
