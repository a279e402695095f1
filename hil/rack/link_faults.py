"""Faults of links: from a scenario to the plans of both links, and what they do to a workload.

Frames of the uplink are numbered as its messages, shot x (n_blocks + 1) + place (the request for
the answer comes last); frames of the downlink, the answers, as their shots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np

from hil.link.arrivals import late_behind
from hil.link.fault_plan import Burst, Cadence, LinkPlan, Pauses, Rule
from hil.link.frame_fault import GONE, FrameFault
from hil.rack.timeline import Bools, Workload
from hil.scenario.faults import (
    DuplicateFault,
    LinkFault,
    LossFault,
    PauseFault,
    ReorderFault,
    SpoilFault,
    TruncateFault,
)
from hil.scenario.model import Scenario
from hil.timebase import PS_PER_S
from hil.wire.roce import MAX_QP
from hil.wire.rpc import ENVELOPE_BYTES, GET_FIXED_BYTES, HEADER_BYTES

LinkPlans: TypeAlias = dict[str, LinkPlan]
"""``up`` and ``down``; only links that have faults."""

LINKS: Final = ("up", "down")
_BYTE: Final = 8
_BURST_FRAME_BYTES: Final = 178
"""A round of distance 5 on the line, gap included: sets how fast a pause is caught up with."""

_QP_BITS: Final = (40, 63)
"""Bits of the BTH that hold the destination QP: a flip there is seen by the ICRC first."""


def link_plans(scenario: Scenario) -> LinkPlans:
    """The plans of all links with faults."""
    return {link: plan for link in LINKS if (plan := _plan(scenario, link)).rules}


def cadence_of(scenario: Scenario, link: str) -> Cadence:
    """When the frames of a link are due: intended times of their blocks."""
    qpu = scenario.system.qpu
    blocks = tuple((k + 1) * qpu.round_period_ps for k in range(qpu.n_blocks))
    return Cadence(qpu.shot_period_ps, (*blocks, blocks[-1]) if link == "up" else blocks[-1:])


def _plan(scenario: Scenario, link: str) -> LinkPlan:
    faults = scenario.link_faults
    here = {name: f for name, f in faults.items() if f.target == f"links.{link}"}
    cadence = cadence_of(scenario, link) if here else Cadence(1, (0,))
    rules = tuple(_rule(scenario, link, cadence, name, fault) for name, fault in here.items())
    frames = scenario.run.shots * len(cadence.offsets_ps)
    return LinkPlan(scenario.run.seed, link, frames, cadence, rules)


def _rule(scenario: Scenario, link: str, cadence: Cadence, name: str, fault: LinkFault) -> Rule:
    qpu, line = scenario.system.qpu, scenario.system.links
    begin = fault.at.first_due_ps(qpu.round_period_ps, qpu.shot_period_ps, qpu.n_blocks)
    end = scenario.run.shots * qpu.shot_period_ps
    if fault.for_ps is not None:
        end = min(end, begin + fault.for_ps)
    elif isinstance(fault, PauseFault) and fault.every_ps is None:
        end = min(end, begin + 2 * fault.value_ps)  # the pause, and as long to catch up
    window = (cadence.first_at(begin), cadence.first_at(end))
    if isinstance(fault, PauseFault):
        rate = line.up.rate_bps if link == "up" else line.down.rate_bps
        gap = -(-_BURST_FRAME_BYTES * _BYTE * PS_PER_S // rate)
        pauses = Pauses(begin, fault.value_ps, fault.every_ps or 0, gap)
        return Rule(name, FrameFault.HOLD, *window, pauses=pauses)
    kind, low, high = _amounts(fault, link)
    burst = None
    if isinstance(fault, LossFault) and fault.burst is not None:
        burst = Burst(fault.burst.frames, fault.burst.loss)
    return Rule(name, kind, *window, fault.p, burst, low, high)


def _amounts(fault: LinkFault, link: str) -> tuple[FrameFault, int, int]:
    """Kind of a fault of frames, smallest and largest amount."""
    found = (FrameFault.DROP, 0, 0)
    match fault:
        case DuplicateFault(after=after):
            found = (FrameFault.DUPLICATE, after, after)
        case ReorderFault(window=most):
            found = (FrameFault.REORDER, 1, most)
        case TruncateFault(value_bytes=cut):
            found = (FrameFault.RESIZE, -cut, -cut)
        case SpoilFault(kind="icrc"):
            found = (FrameFault.FLIP, *_QP_BITS)
        case SpoilFault(kind="wrong_qp"):
            found = (FrameFault.WRONG_QP, 1, MAX_QP)
        case SpoilFault():
            body = ENVELOPE_BYTES + (GET_FIXED_BYTES if link == "up" else 0)  # every message has it
            first = _BYTE * HEADER_BYTES
            found = (FrameFault.CORRUPT, first, first + _BYTE * body - 1)
    return found


def with_link_faults(work: Workload, plans: LinkPlans, n_blocks: int) -> Workload:
    """The workload of a virtual run under the faults of its links.

    A frame that never reaches the node is ``lost``; a shot whose request or answer is lost, or one
    of whose rounds comes behind a newer shot, is ``undelivered``. A pause makes the flight longer.
    Frames that others overtake keep their stamps: in a virtual run only the audits see the order.
    """
    first, n = work.first_shot, work.n_shots
    lost = np.zeros((n, n_blocks), np.bool_) if work.lost is None else work.lost
    undelivered = np.zeros(n, np.bool_) if work.undelivered is None else work.undelivered
    uplink_ps, downlink_ps = work.uplink_ps, work.downlink_ps
    if "up" in plans:
        per_shot = n_blocks + 1
        kinds, amounts, _ = plans["up"].suffering(first * per_shot, n * per_shot)
        gone = np.isin(kinds, GONE).reshape(n, per_shot)
        held = np.where(kinds == FrameFault.HOLD, amounts, 0).reshape(n, per_shot)
        lost = lost | gone[:, :n_blocks]
        undelivered = undelivered | gone[:, n_blocks]
        undelivered |= late_behind(plans["up"], first, n, per_shot)
        uplink_ps = uplink_ps + held[:, :n_blocks]
    if "down" in plans:
        kinds, amounts, _ = plans["down"].suffering(first, n)
        undelivered = undelivered | np.isin(kinds, GONE)
        downlink_ps = downlink_ps + np.where(kinds == FrameFault.HOLD, amounts, 0)
    return replace(
        work, lost=lost, undelivered=undelivered, uplink_ps=uplink_ps, downlink_ps=downlink_ps
    )


def suffering_shots(plans: LinkPlans, first_shot: int, n_shots: int) -> Bools:
    """Bool [n_shots]: shots in the window of any fault of a link, whether it hits them or not."""
    shots = np.arange(first_shot, first_shot + n_shots)
    inside = np.zeros(n_shots, np.bool_)
    for plan in plans.values():
        per_shot = len(plan.cadence.offsets_ps)
        for rule in plan.rules:
            last = max(rule.first, rule.stop - 1) + plan.longest_wait
            inside |= (shots >= rule.first // per_shot) & (shots <= last // per_shot)
    return inside
