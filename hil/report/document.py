"""The one document behind all reports: plain frozen data, numbers beside their texts.

`hil.report.build` makes it from metrics, judgements and the facts of a run; the writers for
terminal, HTML, JSON and JUnit only arrange it. Nothing here depends on the time or place of
writing, so that a report written twice is the same to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

Pairs: TypeAlias = tuple[tuple[str, str], ...]
FORMAT: Final = "hil-report/1"


@dataclass(frozen=True, slots=True)
class Executed:
    """One part of the rig: what was asked for, what ran and why.

    Attributes:
        part: ``rack``, ``network``, ``primary decoder`` ...
        requested: as written in the scenario.
        executed: what really ran.
        why: reason of the choice, empty if it was written in the scenario.
    """

    part: str
    requested: str
    executed: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One injected fault: ``what`` says kind, target and size."""

    id: str
    what: str
    when: str


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """One detector of faults: how often it fired, and whether it had to, might or must not."""

    name: str
    alarms: int
    role: str


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """Where the time of one stage or link comes from (class of evidence and source)."""

    part: str
    evidence: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a runner knows about a run and the metrics do not.

    Attributes:
        run_id: identity of the run.
        scenario_id: ``id`` of the scenario.
        title: its title.
        level: ``mil``, ``sil``, ...
        profile: name of the bind profile.
        created_utc: ISO 8601, when the run started.
        seed: root of the seed tree.
        simulated_ps: span of scenario time.
        wall_s: duration of the run on the wall clock; informational.
        workload: what was streamed (circuit, distance, rounds, noise, cadence), name and text.
        executed: requested and executed parts.
        faults: injected faults.
        alarms: detectors of faults; empty where nothing was there for them to read.
        detectors: counters of link and node, which they read, name and events.
        evidence: evidence class per stage and link.
        provenance: identities and hashes, name and text.
        seeds: named seeds.
        versions: software, name and version.
        not_tested: what this run leaves open, one sentence each.
        labels: remarks that belong on top of the report.
        files: name and path relative to the report.
    """

    run_id: str
    scenario_id: str
    title: str
    level: str
    profile: str = ""
    created_utc: str = ""
    seed: int = 0
    simulated_ps: int = 0
    wall_s: float | None = None
    workload: Pairs = ()
    executed: tuple[Executed, ...] = ()
    faults: tuple[FaultRow, ...] = ()
    alarms: tuple[DetectorRow, ...] = ()
    detectors: tuple[tuple[str, int], ...] = ()
    evidence: tuple[EvidenceRow, ...] = ()
    provenance: Pairs = ()
    seeds: Pairs = ()
    versions: Pairs = ()
    not_tested: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    files: Pairs = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and the text that every writer shows for it."""

    value: float | None
    text: str


@dataclass(frozen=True, slots=True)
class ExpectationRow:
    """One expectation, judged; ``interval`` is the text of both bounds."""

    id: str
    metric: str
    scope: str
    verdict: str
    measured: Figure
    lower: Figure
    upper: Figure
    interval: str
    limit: Figure
    limit_text: str
    unit: str
    n: int
    confidence: float
    shots_needed: int | None
    marginal: Figure
    marginal_hit: bool
    reason: str
    method: str
    label: str

    @property
    def n_text(self) -> str:
        """Samples with thousands separated."""
        return f"{self.n:,}"

    @property
    def needed_text(self) -> str:
        """Further shots, or empty."""
        return "" if self.shots_needed is None else f"+{self.shots_needed:,}"


@dataclass(frozen=True, slots=True)
class QuantileCell:
    """A quantile and its upper bound."""

    stat: str
    value: Figure
    upper: Figure


@dataclass(frozen=True, slots=True)
class HopRow:
    """Latency of one hop, or of the whole way (``end_to_end``)."""

    name: str
    start: str
    stop: str
    n: int
    minimum: Figure
    quantiles: tuple[QuantileCell, ...]
    maximum: Figure
    share_of_median: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class RateRow:
    """A rate with its bounds."""

    name: str
    events: int | None
    n: int
    value: Figure
    lower: Figure
    upper: Figure
    interval: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class PathRow:
    """Logical errors of the shots that went one way."""

    path: str
    shots: int
    failures: int
    value: Figure
    interval: str


@dataclass(frozen=True, slots=True)
class LogicalErrors:
    """Logical error rate: two-sided intervals."""

    shots: int
    failures: int
    per_shot: RateRow | None
    per_round: RateRow | None
    rounds: int | None
    by_path: tuple[PathRow, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class CountRow:
    """A count, ``None`` if nothing counted it."""

    name: str
    value: int | None
    text: str


@dataclass(frozen=True, slots=True)
class WarmupBlock:
    """Figures of the warm-up shots, which no rate or latency above contains."""

    shots: int
    rows: Pairs


@dataclass(frozen=True, slots=True)
class Document:
    """Everything that a report says.

    Attributes:
        verdict: worst verdict of the run; ``exit_code`` is that of the command.
        headline: one sentence on it.
        facts: what the runner stated.
        shots: all shots; ``judged_shots`` without warm-up and fault windows.
        deadline: from the intended time of a shot's last block.
        pace: wall time over scenario time; no meaning where ``simulated``.
        time_label: which time latencies are in.
        bound_confidence: of all bounds that belong to no expectation.
        expectations: judged expectations in order of the scenario.
        hops: hops that have samples; ``end_to_end`` is the sum, ``None`` without stamps.
        logical, rates, backlog, counts: what the loop achieved.
        fates: how shots ended, name and number, all shots.
        warmup: figures of the warm-up, judged never.
        labels: remarks for the head of the report.
        not_tested: what the run leaves open.
        format: identifies this structure in ``report.json``.
    """

    verdict: str
    exit_code: int
    headline: str
    facts: RunFacts
    shots: int
    judged_shots: int
    deadline: Figure
    pace: int
    simulated: bool
    time_label: str
    bound_confidence: float
    expectations: tuple[ExpectationRow, ...]
    hops: tuple[HopRow, ...]
    end_to_end: HopRow | None
    logical: LogicalErrors
    rates: tuple[RateRow, ...]
    backlog: RateRow | None
    counts: tuple[CountRow, ...]
    fates: tuple[tuple[str, int], ...]
    warmup: WarmupBlock
    labels: tuple[str, ...]
    not_tested: tuple[str, ...]
    format: str = field(default=FORMAT)
