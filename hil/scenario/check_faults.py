"""Rules of link faults across keys: a frame that can suffer, a detector that can see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from hil.scenario.bind import BindSpec
from hil.scenario.faults import (
    ENDS_RC,
    LINK_FAULTS,
    REPAIRED_BY_RC,
    Fault,
    LinkFault,
    may_fire,
)
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.qpu import QpuSpec
from hil.scenario.system import LinksSpec
from hil.scenario.text import Document
from hil.units import format_time

_NETWORKS: Final = ("virtual", "soft_roce", "frames")


def check_link_faults(
    faults: Mapping[str, Fault],
    qpu: QpuSpec | None,
    links: LinksSpec | None,
    bind: BindSpec | None,
    shots: int,
    document: Document,
) -> Iterator[Problem]:
    """E405, E505 and E513 of faults on ``links.up`` and ``links.down``.

    Args:
        faults: all faults by id.
        qpu: the device, for the instants at which frames are due.
        links: the links, for their transport.
        bind: the profiles, for the one in use.
        shots: shots of the run.
        document: where the problems are.
    """
    for name, fault in faults.items():
        if not isinstance(fault, LINK_FAULTS):
            continue
        if qpu is not None:
            yield from _window(name, fault, qpu, shots, document)
        if links is not None:
            yield from _visible(name, fault, links, document)
            if bind is not None:
                yield from _modelled(name, fault, links, bind, document)


def _window(
    name: str, fault: LinkFault, qpu: QpuSpec, shots: int, document: Document
) -> Iterator[Problem]:
    begin = fault.at.first_due_ps(qpu.round_period_ps, qpu.shot_period_ps, qpu.n_blocks)
    end = shots * qpu.shot_period_ps
    if begin >= end:
        (key,) = (key for key in ("shot", "round", "time_ps") if getattr(fault.at, key) is not None)
        yield document.problem(
            "E505",
            ("faults", name, "at", key.removesuffix("_ps")),
            "fault after the end of the run",
            got=format_time(begin),
            allowed=f"below {format_time(end)}",
            fix="begin earlier or raise run.shots",
        )
    elif fault.for_ps is not None and _next_due_ps(begin, fault, qpu) >= begin + fault.for_ps:
        yield document.problem(
            "E505",
            ("faults", name, "for"),
            "no frame is due while the fault lasts",
            got=format_time(fault.for_ps),
            allowed=f"more than {format_time(_next_due_ps(begin, fault, qpu) - begin)}",
            fix="raise for, or begin at another instant",
        )


def _next_due_ps(begin_ps: int, fault: LinkFault, qpu: QpuSpec) -> int:
    """When the first frame of the target is due that is due at ``begin_ps`` or later."""
    first = 1 if fault.target == "links.up" else qpu.n_blocks
    shot, inside = divmod(begin_ps, qpu.shot_period_ps)
    block = max(first, -(-inside // qpu.round_period_ps))
    if block > qpu.n_blocks:
        shot, block = shot + 1, first
    return shot * qpu.shot_period_ps + block * qpu.round_period_ps


def _visible(
    name: str, fault: LinkFault, links: LinksSpec, document: Document
) -> Iterator[Problem]:
    able = may_fire(fault.kind, links.transport)
    if fault.kind == "bit_flip" and str(links.up.envelope) != "hil":
        yield document.problem(
            "E405",
            ("faults", name, "kind"),
            "nothing could see a wrong bit: this envelope has no end-to-end CRC",
            got=f"bit_flip, envelope {links.up.envelope}",
            allowed="envelope: hil",
            fix="write system.links.up.envelope: hil, or inject icrc",
        )
    if links.transport == "rc" and fault.kind in ENDS_RC:
        yield document.problem(
            "E405",
            ("faults", name, "kind"),
            f"{fault.kind} ends a reliable connection at the first frame",
            got=f"{fault.kind} on {links.up.profile}",
            allowed="a link of profile rocev2-uc-*",
            fix="use UC, or another kind",
        )
    elif fault.caught_by is not None and fault.caught_by not in able:
        yield document.problem(
            "E405",
            ("faults", name, "caught_by"),
            f"this detector does not see {fault.kind} on a {links.transport.upper()} link",
            got=fault.caught_by,
            allowed=", ".join(able),
            fix=did_you_mean(fault.caught_by, able) or f"write caught_by: {able[0]}",
        )


def _modelled(
    name: str, fault: LinkFault, links: LinksSpec, bind: BindSpec, document: Document
) -> Iterator[Problem]:
    """Only packets of our own can suffer; what RC repairs costs time that only a live run shows."""
    used = bind.profiles.get(bind.use)
    if used is None:
        return
    if str(used.network.backend) not in _NETWORKS:
        yield document.problem(
            "E513",
            ("faults", name, "target"),
            "faults of links need packets that this program makes",
            got=f"{fault.target}, profile {bind.use} with network {used.network.backend}",
            allowed=f"network {', '.join(_NETWORKS)}",
            fix="choose another profile, or remove the fault",
        )
    if used.live or links.transport != "rc" or fault.kind not in REPAIRED_BY_RC:
        return
    yield document.problem(
        "E513",
        ("faults", name, "kind"),
        "a virtual run does not model how a reliable connection repairs this",
        got=f"{fault.kind}, profile {bind.use} with network {used.network.backend}",
        allowed="bit_flip, pause, or a live network",
        fix="choose a live profile, or links of profile rocev2-uc-*",
    )
