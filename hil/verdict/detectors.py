"""Detectors of link faults: functions of the counters of a run, and the verdict on them.

A detector that a scenario names must fire; one that no injected fault explains must not. Which
detector may fire with which fault, and why, stands in :mod:`hil.scenario.faults`; the matrix in
``docs/faults.md`` is made from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from hil.scenario.faults import RESENT, Detector, LinkFault, side_effects
from hil.scenario.faults import named_detector as named
from hil.scenario.model import Scenario
from hil.verdict.judge import Judgement, Verdict

NAMES: Final[tuple[Detector, ...]] = get_args(Detector)

READS: Final[Mapping[Detector, tuple[str, ...]]] = {
    "seq_gap": ("node.lost", "rack.link.psn_lost"),
    "seq_dup": (
        *("node.duplicate", "rack.link.psn_dup"),
        *("node.link.rx_duplicate", "rack.link.rx_duplicate"),
    ),
    "seq_inversion": ("node.reordered", "rack.link.psn_reorder"),
    "e2e_crc": ("node.bad_envelope_crc", "rack.reply_bad_crc"),
    "nic_icrc": ("node.link.drop_icrc", "rack.link.drop_icrc"),
    "frame_len": (
        *("node.link.drop_length", "node.link.drop_bounds", "node.bad_length"),
        *("rack.link.drop_length", "rack.link.drop_bounds", "rack.reply_malformed"),
    ),
    "psn_window": ("node.stale", "node.link.psn_stale", "rack.link.psn_stale"),
    "retx_cluster": ("rack.link.retransmit", "node.link.retransmit"),
    "rnr_count": ("rack.link.rx_rnr", "node.link.rx_rnr"),
    "pause_time": ("rack.link.pauses", "node.link.pauses"),
    "stream_id": (
        *("node.link.drop_qp", "node.link.drop_rkey", "rack.link.drop_qp", "rack.link.drop_rkey"),
        *("node.bad_decoder_id", "node.bad_boards"),
    ),
    "link_gap": (),
}
"""Counters of a run (``rack.*``, ``node.*``) whose sum is the number of alarms.

``link_gap`` is the one that is no sum: one alarm if ``node.widest``, the most messages missing in a
row, is a whole shot or more.
"""

MEANING: Final[Mapping[Detector, str]] = {
    "seq_gap": "numbers missing: message counter at the node, PSN of answers at the rack",
    "seq_dup": "numbers seen again",
    "seq_inversion": "numbers that came late and filled their gap",
    "e2e_crc": "CRC-32 of the envelope, made where the syndrome is formed, wrong where it is read",
    "nic_icrc": "frames whose ICRC is wrong, dropped by the receiving end",
    "frame_len": "length against RETH, slot and RPC header",
    "psn_window": "numbers older than the memory of the audit; silent over a PSN wrap",
    "retx_cluster": "packets that a reliable connection sent again",
    "rnr_count": "times a reliable receiver had no free receive",
    "pause_time": "times the port was stopped",
    "stream_id": "frames of another queue pair, key, decoder or board",
    "link_gap": "a whole shot or more without a message",
}

NOT_COVERED: Final[Mapping[str, str]] = {
    "queue_depth": "F11, ECN and incast jitter: links are modelled without a shared port",
    "board_id": "F13, two board cables swapped: one aggregate board sends, boards share its frames",
}
"""Detectors of the catalogue of network faults that this version does not have, and why."""

_MUST_NOT: Final = "must be silent"


@dataclass(frozen=True, slots=True)
class Alarms:
    """What the detectors of one run say.

    Attributes:
        events: alarms of each detector.
    """

    events: Mapping[Detector, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def noticed(self, fault: LinkFault, scenario: Scenario) -> str:
        """The detector that is asked for, or the named one, if it fired; else empty."""
        asked: Detector = fault.caught_by or named(fault.kind, scenario.system.links.transport)
        return asked if self.events[asked] else ""

    def roles(self, scenario: Scenario) -> dict[Detector, str]:
        """What each detector had to do in a run of this scenario."""
        return {name: _role(name, scenario) for name in NAMES}


def alarms_of(counters: Mapping[str, int], messages_per_shot: int) -> Alarms:
    """Read all detectors.

    Args:
        counters: of both ends, ``rack.*`` and ``node.*``; absent = 0.
        messages_per_shot: rounds, and the request for the answer.
    """
    events = {name: sum(counters.get(c, 0) for c in READS[name]) for name in NAMES}
    events["link_gap"] = int(counters.get("node.widest", 0) >= messages_per_shot)
    return Alarms(events)


def judge_faults(scenario: Scenario, alarms: Alarms, n_shots: int) -> list[Judgement]:
    """One line for each ``caught_by``, and one for detectors that no fault explains."""
    out = [
        _caught(name, fault.caught_by, alarms.events[fault.caught_by], n_shots)
        for name, fault in scenario.link_faults.items()
        if fault.caught_by is not None
    ]
    fired = {
        name: alarms.events[name]
        for name, role in alarms.roles(scenario).items()
        if role == _MUST_NOT and alarms.events[name]
    }
    text = ", ".join(f"{name} {count}" for name, count in fired.items())
    reason = f"no injected fault explains: {text}" if fired else "none fired without its fault"
    return [*out, _judgement("no-other-alarm", not fired, sum(fired.values()), n_shots, reason)]


def _role(name: Detector, scenario: Scenario) -> str:
    faults, transport = scenario.link_faults, scenario.system.links.transport
    asked = [fault_id for fault_id, fault in faults.items() if fault.caught_by == name]
    if asked:
        return f"must fire for {', '.join(asked)}"
    for fault_id, fault in faults.items():
        if named(fault.kind, transport) == name:
            return f"may fire for {fault_id}"
        why = side_effects(fault.kind, transport).get(name)
        if why:
            return f"may fire for {fault_id}: {why}"
    if transport == "rc" and name in RESENT and len(scenario.faults) > len(faults):
        return f"may fire for a slow decoder or hop: {RESENT[name]}"
    return _MUST_NOT


def _caught(fault_id: str, detector: str, events: int, n_shots: int) -> Judgement:
    reason = f"{detector} fired {events} times" if events else f"{detector} stayed silent"
    return _judgement(f"caught-{fault_id}", bool(events), events, n_shots, reason, least=1)


def _judgement(
    name: str, met: bool, events: int, n_shots: int, reason: str, least: int | None = None
) -> Judgement:
    return Judgement(
        id=name,
        metric="detectors.fired",
        stat="",
        scope="all",
        verdict=Verdict.PASS if met else Verdict.FAIL,
        reason=reason,
        measured=events,
        lower=events,
        upper=events,
        limit_min=least,
        equals=0 if least is None else None,
        unit="count",
        n=n_shots,
    )
