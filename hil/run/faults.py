"""Injected truth of a run: rows of /faults, and in a virtual run what its receivers would count.

Nothing here is read by a decoder, a policy or a metric; the verdict gets the counters that the
receivers of a live run have as well, by the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from hil.link.arrivals import ArrivalAudit
from hil.link.fault_plan import CLEAN_RULE, LinkPlan
from hil.link.frame_fault import GONE, FrameFault
from hil.rack.link_faults import LinkPlans, link_plans
from hil.scenario.model import (
    BreakFault,
    DelayFault,
    Fault,
    LinkFault,
    PauseFault,
    QpuSpec,
    Scenario,
    StallFault,
)
from hil.trace.schema import Block, ByteWidths, block, clip, code

_LOST_ON_THE_WIRE: Final = (FrameFault.DROP, FrameFault.FLIP, FrameFault.WRONG_QP)
_COUNTERS: Final[Mapping[str, Mapping[FrameFault, str]]] = {
    "up": {
        FrameFault.FLIP: "node.link.drop_icrc",
        FrameFault.CORRUPT: "node.bad_envelope_crc",
        FrameFault.RESIZE: "node.link.drop_length",
        FrameFault.WRONG_QP: "node.link.drop_qp",
        FrameFault.HOLD: "rack.link.pauses",
    },
    "down": {
        FrameFault.FLIP: "rack.link.drop_icrc",
        FrameFault.CORRUPT: "rack.reply_bad_crc",
        FrameFault.RESIZE: "rack.reply_malformed",
        FrameFault.WRONG_QP: "rack.link.drop_qp",
        FrameFault.HOLD: "node.link.pauses",
    },
}
"""The counter of a live run that each fault of a frame raises."""


class FaultLog:
    """Truth of one run, batch by batch in order.

    Args:
        scenario: names the faults.
        widths: of the trace.
    """

    def __init__(self, scenario: Scenario, widths: ByteWidths) -> None:
        self._scenario = scenario
        self._widths = widths
        self._plans = link_plans(scenario)
        self._per_shot = {name: len(p.cadence.offsets_ps) for name, p in self._plans.items()}
        self._begun = not scenario.faults
        self.receivers = None if scenario.profile.live else VirtualReceivers(self._plans)

    def take(self, first_shot: int, n_shots: int) -> Block | None:
        """Rows of a batch: of the faults themselves until :meth:`begun`, then of its frames."""
        parts = [] if self._begun else [_begin_rows(self._scenario, self._widths)]
        for link, plan in self._plans.items():
            per_shot = self._per_shot[link]
            rows = self._frames(plan, first_shot * per_shot, n_shots * per_shot)
            parts += [rows] if rows is not None else []
        if self.receivers is not None:
            self.receivers.take(first_shot, n_shots)
        if not parts:
            return None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def begun(self) -> None:
        """The recorder has taken the rows of the faults themselves."""
        self._begun = True

    def _frames(self, plan: LinkPlan, first: int, n: int) -> Block | None:
        _, amounts, rules = plan.suffering(first, n)
        hit = np.flatnonzero(rules != CLEAN_RULE)
        if not hit.size:
            return None
        faults = [self._scenario.link_faults[rule.name] for rule in plan.rules]
        rule = rules[hit]

        def named(column: str, texts: list[str]) -> np.ndarray:
            return np.array([clip("faults", column, text) for text in texts])[rule]

        return block(
            "faults",
            hit.size,
            self._widths,
            t_ps=plan.cadence.due_ps(hit + first),
            id=named("id", [rule.name for rule in plan.rules]),
            kind=named("kind", [fault.kind for fault in faults]),
            target=named("target", [fault.target for fault in faults]),
            phase=code("faults", "phase", "frame"),
            value=amounts[hit].astype(np.float64),
            frame=hit + first,
        )

    def end(self, shots: int, caught: Mapping[str, str]) -> Block | None:
        """Rows of the ends of all link faults.

        Args:
            shots: shots of the run.
            caught: fault id -> detector that noticed it, empty if none did.
        """
        faults = self._scenario.link_faults
        if not faults:
            return None
        over_ps = shots * self._scenario.system.qpu.shot_period_ps
        ends = [
            min(over_ps, over_ps if f.for_ps is None else _begin_ps(f, self._scenario) + f.for_ps)
            for f in faults.values()
        ]
        return block(
            "faults",
            len(faults),
            self._widths,
            t_ps=np.array(ends, dtype=np.int64),
            id=np.array([clip("faults", "id", name) for name in faults]),
            kind=np.array([clip("faults", "kind", fault.kind) for fault in faults.values()]),
            target=np.array([clip("faults", "target", f.target) for f in faults.values()]),
            phase=code("faults", "phase", "end"),
            value=np.array([_value(fault) for fault in faults.values()]),
            caught_by=np.array([clip("faults", "caught_by", caught[name]) for name in faults]),
        )


class VirtualReceivers:
    """Both ends of the links of a virtual run: what they would have counted."""

    def __init__(self, plans: LinkPlans) -> None:
        self._plans = plans
        gone = {"up": GONE, "down": _LOST_ON_THE_WIRE}
        self._audits = {link: ArrivalAudit(plan, gone[link]) for link, plan in plans.items()}
        self._shots = 0
        self._without_reply = 0

    def take(self, first_shot: int, n_shots: int) -> None:
        """The next shots are sent."""
        silent = np.zeros(n_shots, np.bool_)
        for link, plan in self._plans.items():
            per_shot = len(plan.cadence.offsets_ps)
            first, n = first_shot * per_shot, n_shots * per_shot
            self._audits[link].take(first, n)
            kinds = plan.suffering(first, n).kinds.reshape(n_shots, per_shot)[:, -1]
            silent |= np.isin(kinds, GONE)
        self._without_reply += int(silent.sum())
        self._shots = first_shot + n_shots

    def counters(self) -> dict[str, int]:
        """Counters by the names of a live run; empty without faults of links. Ends the run."""
        out: dict[str, int] = {}
        for link, receiver in self._audits.items():
            if link == "up":
                receiver.close(self._shots * len(self._plans[link].cadence.offsets_ps))
                out |= {f"node.{name}": n for name, n in receiver.audit.counts().items()}
                out["node.widest"] = receiver.audit.widest
            else:  # the last answers of a run: only their requests miss them
                audit = receiver.audit
                out |= {
                    "rack.link.psn_lost": audit.lost,
                    "rack.link.psn_dup": audit.duplicate,
                    "rack.link.psn_reorder": audit.reordered,
                    "rack.link.psn_stale": audit.stale,
                }
            out |= {name: receiver.counts[kind] for kind, name in _COUNTERS[link].items()}
        return out and {**out, "rack.answers_missing": self._without_reply}


def _begin_rows(scenario: Scenario, widths: ByteWidths) -> Block:
    """One row per injected fault, at the scheduled start of its first shot."""
    faults = scenario.faults
    return block(
        "faults",
        len(faults),
        widths,
        t_ps=np.array([_begin_ps(f, scenario) for f in faults.values()], dtype=np.int64),
        id=np.array([clip("faults", "id", name) for name in faults]),
        kind=np.array([clip("faults", "kind", f.kind) for f in faults.values()]),
        target=np.array([clip("faults", "target", _target(f)) for f in faults.values()]),
        phase=code("faults", "phase", "begin"),
        value=np.array([_value(f) for f in faults.values()]),
    )


def _begin_ps(fault: Fault, scenario: Scenario) -> int:
    qpu: QpuSpec = scenario.system.qpu
    if isinstance(fault, DelayFault | StallFault | BreakFault):
        return fault.at.shot * qpu.shot_period_ps
    return fault.at.first_due_ps(qpu.round_period_ps, qpu.shot_period_ps, qpu.n_blocks)


def _value(fault: Fault | LinkFault) -> float:
    """Time in ps, shots that are broken, or share of the frames."""
    if isinstance(fault, BreakFault):
        return float(fault.shots)
    if isinstance(fault, DelayFault | StallFault | PauseFault):
        return float(fault.value_ps)
    return fault.p


def _target(fault: Fault) -> str:
    if isinstance(fault, DelayFault):
        return f"hop {fault.target}"
    if isinstance(fault, StallFault | BreakFault):
        return f"decoder {fault.target}"
    return fault.target
