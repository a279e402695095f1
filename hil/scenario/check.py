"""Rules across keys (E4xx to E6xx): what a single value cannot tell.

Each rule is a function of the sections it needs. Sections that are not valid in themselves are
``None``; their rules are skipped, the others still run, so one pass finds as much as possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from hil.scenario.check_expect import check_expectations
from hil.scenario.check_faults import check_link_faults
from hil.scenario.check_predecoder import check_predecoder
from hil.scenario.check_rack import check_links, check_rack
from hil.scenario.check_window import check_window_metrics, check_windows
from hil.scenario.expect import Expectation
from hil.scenario.fields import Spec, TextContext
from hil.scenario.latency import Const, Empirical, LogNormal, Normal
from hil.scenario.model import (
    LINK_FAULTS,
    BindSpec,
    BreakFault,
    DecoderSpec,
    Fault,
    LinksSpec,
    QpuSpec,
    RackSpec,
    RunSpec,
    Scenario,
)
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.service import ByEvents, Service
from hil.scenario.text import Document
from hil.units import format_time

S = TypeVar("S", bound=Spec)

FULL_LOAD = 1.0
_LONGEST_RUN_PS = 2**62
"""Half of the range, so that sums of a time and a latency fit as well."""

HIGH_LOAD = 0.9
"""Load of the primary workers from which a warning is given."""


@dataclass(slots=True)
class Parts:
    """The sections of a scenario; ``None`` or absent where one is not valid."""

    qpu: QpuSpec | None = None
    rack: RackSpec | None = None
    links: LinksSpec | None = None
    decoder: DecoderSpec | None = None
    bind: BindSpec | None = None
    run: RunSpec | None = None
    expect: dict[str, Expectation] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)


def parts_of(scenario: Scenario | None, data: object, context: TextContext) -> Parts:
    """Sections of a valid scenario, or those that are valid on their own."""
    if scenario is not None:
        system = scenario.system
        return Parts(
            system.qpu,
            system.rack,
            system.links,
            system.decoder,
            scenario.bind,
            scenario.run,
            dict(scenario.expect),
            dict(scenario.faults),
        )

    def at(*path: str) -> object:
        found = data
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def part(model: type[S], *path: str) -> S | None:
        return _try(TypeAdapter(model), at(*path), context)

    expect, faults = at("expect"), at("faults")
    expectations = TypeAdapter(Expectation)
    fault: TypeAdapter[Fault] = TypeAdapter(Fault)
    return Parts(
        part(QpuSpec, "system", "qpu"),
        part(RackSpec, "system", "rack"),
        part(LinksSpec, "system", "links"),
        part(DecoderSpec, "system", "decoder"),
        part(BindSpec, "bind"),
        part(RunSpec, "run"),
        _each(expectations, expect, context),
        _each(fault, faults, context),
    )


T = TypeVar("T")


def _try(adapter: TypeAdapter[T], data: object, context: TextContext) -> T | None:
    try:
        return adapter.validate_python(data, context=context, by_alias=True, by_name=False)
    except ValidationError:
        return None


def _each(adapter: TypeAdapter[T], data: object, context: TextContext) -> dict[str, T]:
    if not isinstance(data, dict):
        return {}
    found = {str(name): _try(adapter, body, context) for name, body in data.items()}
    return {name: body for name, body in found.items() if body is not None}


def check_parts(parts: Parts, document: Document) -> Iterator[Problem]:
    """All rules on all valid sections."""
    if parts.qpu is not None:
        yield from _check_cadence(parts.qpu, document)
    if parts.rack is not None:
        yield from check_rack(parts.rack, parts.qpu, document)
        if parts.links is not None:
            yield from check_links(parts.links, parts.rack, document)
    if parts.links is not None:
        yield from _check_envelope(parts.links, parts.expect, document)
        yield from _check_plain_udp(parts.links, parts.bind, document)
    if parts.qpu is not None and parts.decoder is not None:
        yield from _check_ring(parts.decoder, parts.qpu, document)
    if parts.decoder is not None:
        yield from check_windows(parts.decoder, parts.qpu, parts.rack, parts.bind, document)
        yield from check_window_metrics(parts.expect, parts.decoder, parts.qpu, document)
        yield from check_predecoder(parts.decoder, parts.qpu, parts.bind, document)
    if parts.bind is not None:
        yield from _check_bind(parts.bind, parts.decoder, document)
        if parts.qpu is not None and parts.decoder is not None:
            yield from _check_load(parts.bind, parts.decoder, parts.qpu, document)
    if parts.run is not None:
        if parts.qpu is not None:
            yield from _check_length(parts.qpu, parts.run, document)
        yield from _check_faults(parts.faults, parts.run, document)
        yield from check_link_faults(
            parts.faults, parts.qpu, parts.links, parts.bind, parts.run.shots, document
        )
        yield from _check_breaks(parts.faults, parts.decoder, document)
        yield from check_expectations(parts.expect, parts.run, document)


def _check_envelope(
    links: LinksSpec, expect: Mapping[str, Expectation], document: Document
) -> Iterator[Problem]:
    """Messages without an epoch cannot show that two epochs were mixed."""
    for name, expectation in expect.items():
        if links.up.envelope == "nvidia" and expectation.metric == "shots.mixed_epoch":
            yield document.problem(
                "E513",
                ("expect", name, "metric"),
                "shots.mixed_epoch cannot be seen without an epoch in the messages",
                got="links.up.envelope: nvidia",
                allowed="links.up.envelope: hil",
                fix="remove this expectation, or write envelope: hil",
            )


def _check_plain_udp(
    links: LinksSpec, bind: BindSpec | None, document: Document
) -> Iterator[Problem]:
    """Plain UDP acknowledges nothing."""
    used = bind.profiles.get(bind.use) if bind is not None else None
    if bind is None or used is None or links.transport == "uc":
        return
    if used.network.backend == "cudaq_udp":
        yield document.problem(
            "E513",
            ("bind", "profiles", bind.use, "network", "backend"),
            "plain UDP is no reliable connection",
            got=f"network.backend: cudaq_udp, links.up.profile: {links.up.profile}",
            allowed="cudaq_udp with rocev2-uc-write-imm and rocev2-uc-send",
            fix="write another network.backend, or the profiles of uc",
        )


def _check_cadence(qpu: QpuSpec, document: Document) -> Iterator[Problem]:
    need = qpu.n_blocks * qpu.round_period_ps
    if need > qpu.shot_period_ps:
        yield document.problem(
            "E502",
            ("system", "qpu", "shot_period"),
            "rounds and final readout do not fit into a shot",
            got=format_time(qpu.shot_period_ps),
            allowed=f">= {format_time(need)} = ({qpu.circuit.rounds} + 1) x "
            f"{format_time(qpu.round_period_ps)}",
            fix=f"write shot_period: {format_time(need)} or more",
        )


def _check_length(qpu: QpuSpec, run: RunSpec, document: Document) -> Iterator[Problem]:
    """Times are 64 bit counts of picoseconds: 106 days."""
    most = _LONGEST_RUN_PS // qpu.shot_period_ps
    if run.shots > most:
        yield document.problem(
            "E205",
            ("run", "shots"),
            "the run is longer than 64 bit times can count",
            got=f"{run.shots} x {format_time(qpu.shot_period_ps)}",
            allowed=f"at most {most} shots",
            fix="lower run.shots or system.qpu.shot_period",
        )


def _check_ring(decoder: DecoderSpec, qpu: QpuSpec, document: Document) -> Iterator[Problem]:
    window = decoder.window.sliding
    need = qpu.n_blocks if window is None else min(sum(window), qpu.n_blocks)
    if decoder.ring.slots < need:
        what, sum_ = ("shot", "rounds + 1") if window is None else ("window", "commit + buffer")
        yield document.problem(
            "E205",
            ("system", "decoder", "ring", "slots"),
            f"the ring cannot hold one {what}, so no shot would ever be decoded",
            got=str(decoder.ring.slots),
            allowed=f">= {need} = {sum_}",
            fix=f"write slots: {need} or more",
        )


def _check_bind(
    bind: BindSpec, decoder: DecoderSpec | None, document: Document
) -> Iterator[Problem]:
    if bind.use not in bind.profiles:
        yield document.problem(
            "E401",
            ("bind", "use"),
            f"unknown profile '{bind.use}'",
            got=bind.use,
            allowed=", ".join(bind.profiles),
            fix=did_you_mean(bind.use, bind.profiles) or "choose one of these",
        )
    if decoder is None or decoder.fallback.policy == "never":
        return
    for name, profile in bind.profiles.items():
        if profile.decoder.time == "modelled" and profile.decoder.fallback_service is None:
            yield document.problem(
                "E202",
                ("bind", "profiles", name, "decoder", "fallback_service"),
                "missing key 'fallback_service'",
                got="fallback.policy: on_deadline, time: modelled",
                allowed="the service time of the fallback decoder",
                fix="write fallback_service, or fallback.policy: never",
                key=True,
            )


def mean_service_ps(service: Service) -> float:
    """Mean service time; of a service by events the smallest, since the mean load is not known."""
    model = service.model
    if isinstance(model, ByEvents):
        return float(min(model.service_ps))
    if isinstance(model, Const):
        return float(model.ps)
    if isinstance(model, Normal):
        return float(model.mean_ps)
    if isinstance(model, LogNormal):
        return model.mean_ps
    if isinstance(model, Empirical) and model.values_ps:
        return sum(model.values_ps) / len(model.values_ps)
    return 0.0


def _check_load(
    bind: BindSpec, decoder: DecoderSpec, qpu: QpuSpec, document: Document
) -> Iterator[Problem]:
    """E503: a queue whose work comes faster than it is done grows without end."""
    for name, profile in bind.profiles.items():
        services = (profile.decoder.predecoder_service, profile.decoder.service)
        given = [service for service in services if service is not None]
        if profile.decoder.service is None:
            continue
        mean = sum(map(mean_service_ps, given))
        server, period = _server(decoder, qpu)
        load = mean / period
        if load < HIGH_LOAD:
            continue
        at_least = "at least " if any(isinstance(s.model, ByEvents) for s in given) else ""
        found = document.problem(
            "E503",
            ("bind", "profiles", name, "decoder", "service"),
            "the decoder cannot keep up"
            if load >= FULL_LOAD
            else "the decoder is close to its limit",
            got=f"load {at_least}{load:.3f} = {format_time(round(mean))} / ({server})",
            allowed="< 1, better < 0.9",
            fix="add workers, lengthen shot_period or shorten the service"
            if decoder.window.sliding is None
            else "raise commit, lengthen round_period or shorten the service",
        )
        yield found if load >= FULL_LOAD else _as_warning(found)


def _server(decoder: DecoderSpec, qpu: QpuSpec) -> tuple[str, int]:
    """What one decode has time for, in words and in ps.

    The windows of a shot are sequential: more workers do not help within a shot.
    """
    window = decoder.window.sliding
    if window is None:
        period = decoder.workers * qpu.shot_period_ps
        return f"{decoder.workers} x {format_time(qpu.shot_period_ps)}", period
    words = f"commit {window[0]} x {format_time(qpu.round_period_ps)}"
    return words, window[0] * qpu.round_period_ps


def _as_warning(p: Problem) -> Problem:
    return Problem(
        p.path, p.line, p.col, p.code, p.dotted, p.what, p.got, p.allowed, p.fix, "warning"
    )


def _check_faults(
    faults: Mapping[str, Fault], run: RunSpec, document: Document
) -> Iterator[Problem]:
    for name, fault in faults.items():
        if not isinstance(fault, LINK_FAULTS) and fault.at.shot >= run.shots:
            yield document.problem(
                "E505",
                ("faults", name, "at", "shot"),
                "fault after the end of the run",
                got=str(fault.at.shot),
                allowed=f"0 to {run.shots - 1}",
                fix="lower at.shot or raise run.shots",
            )


def _check_breaks(
    faults: Mapping[str, Fault], decoder: DecoderSpec | None, document: Document
) -> Iterator[Problem]:
    """A broken window would leave the next one without its defects."""
    if decoder is None or decoder.window.sliding is None:
        return
    for name, fault in faults.items():
        if isinstance(fault, BreakFault):
            yield document.problem(
                "E513",
                ("faults", name, "kind"),
                "a broken primary does not go with sliding windows",
                got=f"kind: {fault.kind}, window.mode: sliding",
                allowed="delay, decoder_stall, or window.mode: shot",
                fix="remove the fault, or write window: {mode: shot}",
            )
