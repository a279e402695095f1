"""One run: load, build, drive, judge, report. ``run_scenario`` is what ``hil run`` calls."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hil.device.sampler import BlockCutter
from hil.errors import HilError, RigError, UsageError
from hil.link.capture import Capture, Ends
from hil.report.document import Document
from hil.run import facts
from hil.run.faults import FaultLog
from hil.run.interrupt import Interrupt
from hil.run.parts import build_recorder
from hil.run.resume import TRACE_NAMES, set_aside
from hil.run.rig import Batches, Rig, build_driver, build_meta, build_rig
from hil.scenario.load import Loaded, load_scenario
from hil.timebase import PS_PER_S
from hil.trace.meta import TraceMeta
from hil.trace.writer import TraceWriter
from hil.units import format_ps
from hil.verdict.detectors import alarms_of, judge_faults
from hil.verdict.judge import Judgement, Verdict, exit_code, judge, run_verdict
from hil.verdict.summary import extras

_ALARM = re.compile(
    r"(rack|node)\.(link\.(drop_.*|psn_(lost|dup|reorder|stale)|buffer_overflow)"
    r"|lost|duplicate|reordered|stale|bad_.*|reply_(bad_.*|malformed|unknown|duplicate|stale))"
)
"""Counters of a live run that must stay 0 where no fault is injected."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """What the caller asks for beyond the scenario.

    Attributes:
        bind: profile instead of the scenario's ``bind.use``.
        out: directory of the results; default ``runs/<scenario>-<profile>-<time>``.
        overrides: ``path=value`` texts.
        progress: called with (shots done, shots wanted).
        resume: go on with the interrupted virtual run of ``out``.
        pcap: pcapng file for every frame that the rack of a live run sends or receives.
    """

    bind: str | None = None
    out: Path | None = None
    overrides: Sequence[str] = ()
    progress: Progress = lambda _done, _all: None
    resume: bool = False
    pcap: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """Outcome of one run."""

    verdict: Verdict
    document: Document
    directory: Path
    trace: Path
    content_id: str
    unwritten: str = ""
    """Why a report file could not be written; empty if all are there."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command line."""
        return RigError.exit_code if self.unwritten else exit_code(self.verdict)


@dataclass(frozen=True)
class Outcome:
    """A run that is over, before its reports are written."""

    rig: Rig
    meta: TraceMeta
    judgements: list[Judgement]
    directory: Path
    trace: Path
    content_id: str
    wall_s: float

    @property
    def verdict(self) -> Verdict:
        """Worst verdict of all expectations."""
        return run_verdict(self.judgements)


def run_scenario(path: Path, options: RunOptions | None = None) -> RunResult:
    """Run one scenario and write ``trace.h5``, ``report.json``, ``junit.xml``, ``report.html``.

    Raises:
        ScenarioError: the scenario is not valid (nothing has been started or written).
        HilError: the rig failed before the first shot; later failures end in verdict RIG ERROR
            with a valid trace of what was done.
    """
    options = options or RunOptions()
    loaded = load_scenario(path, bind=options.bind, overrides=options.overrides)
    interrupt = Interrupt()
    unwritten = ""
    with interrupt.listening():
        outcome = execute(loaded, options, interrupt)
        document = facts.build_document(outcome)
        try:
            facts.write_reports(document, outcome.directory)
        except RigError as error:
            unwritten = error.message
    return RunResult(
        outcome.verdict, document, outcome.directory, outcome.trace, outcome.content_id, unwritten
    )


def execute(loaded: Loaded, options: RunOptions, interrupt: Interrupt | None = None) -> Outcome:
    """Drive a checked scenario, judge it, close its trace."""
    begin = time.monotonic()
    directory = _directory(loaded, options)
    rig = build_rig(loaded)
    if interrupt is not None:
        rig.interrupt = interrupt
    meta = build_meta(rig)
    with contextlib.ExitStack() as stack:
        if options.pcap is not None:
            rig.capture = stack.enter_context(_capture(loaded, options.pcap))
        if options.resume:
            rig.earlier = set_aside(directory, meta)
        if rig.earlier is not None:
            stack.enter_context(rig.earlier)
        batches = build_driver(rig, meta.widths)
        rig.interrupt.refuse()
        judgements, trace, content_id = _record(rig, batches, directory, meta, options)
    wall_s = time.monotonic() - begin
    return Outcome(rig, meta, judgements, directory, trace, content_id, wall_s)


def _record(
    rig: Rig, batches: Batches, directory: Path, meta: TraceMeta, options: RunOptions
) -> tuple[list[Judgement], Path, str]:
    """Drive all batches into a new trace; returns judgements, final file and its content_id."""
    loaded = rig.loaded
    _make(directory)
    record = loaded.scenario.run.record
    writer = TraceWriter.create(
        directory / "trace.h5",
        meta,
        level=record.level,
        streams=record.streams,
        n_rounds=loaded.scenario.system.qpu.circuit.rounds,
        measured=loaded.profile.live,
    )
    with writer:
        if rig.earlier is not None:
            batches = rig.earlier.until_overtaken(batches, writer.flush)
        _drive(rig, batches, writer, meta, options.progress)
        _settle(rig)
        _end_faults(rig, writer)
        judgements, trace = _close(rig, writer)
    return judgements, trace, writer.content_id


def _capture(loaded: Loaded, path: Path) -> Capture:
    scenario, network = loaded.scenario, loaded.profile.network
    if not loaded.profile.live:
        raise UsageError(
            "no frame travels in a virtual run: there is nothing to capture",
            where="--pcap",
            got=f"profile {scenario.bind.use} with network {network.backend}",
            allowed="a profile with a live network",
            fix="leave --pcap out, or choose a live profile with --bind",
        )
    ends = Ends(network.rack_address, network.node_address, scenario.system.links.up.udp_port)
    return Capture(path, ends)


def _drive(
    rig: Rig, batches: Batches, writer: TraceWriter, meta: TraceMeta, progress: Progress
) -> None:
    """Pull every batch through recorder, trace, metrics and audit."""
    scenario = rig.loaded.scenario
    recorder = build_recorder(scenario, BlockCutter(rig.code), meta.widths)
    log = rig.fault_log = FaultLog(scenario, meta.widths)
    total = scenario.run.shots
    try:
        for driven in batches:
            record, windows = recorder.build(driven)
            faults = log.take(driven.batch.first_shot, driven.batch.n_shots)
            if faults is not None:
                record["faults"] = faults
            if writer.append(record, block=not rig.loaded.profile.live):
                log.begun()
            rig.metrics.update(
                record["shots"], windows, driven.times.window_service_ps, driven.events
            )
            rig.audit.update(record, driven)
            rig.shots_done += driven.batch.n_shots
            progress(rig.shots_done, total)
            del driven, record, windows  # a long memory is large: make room for the next batch
            _check_wall(rig)
        writer.flush()
    except UsageError:
        raise
    except HilError as error:
        rig.rig_errors.append(error.message)
    if writer.overflow and not writer.failed:
        rig.rig_errors.append(f"the recorder lost {writer.overflow} rows: the trace has gaps")
    if rig.lost_node and not rig.rig_errors:
        if scenario.system.decoder.on_node_lost == "fail":
            rig.rig_errors.append(rig.lost_node)
        else:
            rig.remarks.append(f"{rig.lost_node}; what it left was decoded in process")


def _check_wall(rig: Rig) -> None:
    """Stop a run that takes longer than ``run.wall``."""
    limit_ps = rig.loaded.scenario.run.wall_ps
    spent_ps = int((time.monotonic() - rig.begin) * PS_PER_S)
    if limit_ps is not None and spent_ps > limit_ps:
        raise RigError(
            "the run took longer than run.wall",
            where="run.wall",
            got=f"{format_ps(spent_ps)} after {rig.shots_done} shots",
            allowed=format_ps(limit_ps),
            fix="raise run.wall or lower run.shots",
        )


def _close(rig: Rig, writer: TraceWriter) -> tuple[list[Judgement], Path]:
    """Judgements and trace: the final file, or the live one if the disk refuses the final one."""
    judgements = _judge(rig)
    try:
        aborted = rig.interrupt and rig.missing
        status = "aborted" if aborted else facts.exit_status(run_verdict(judgements))
        trace = writer.close(status, extras(rig.metrics, judgements))
    except HilError as error:
        if error.message not in rig.rig_errors:
            rig.rig_errors.append(error.message)
        return _judge(rig), writer.part
    return judgements, trace


def _settle(rig: Rig) -> None:
    """Add the counts of the whole run to its metrics; name the shots that were not run."""
    rig.metrics.add_counts(rig.audit.counts)
    rig.metrics.add_counts(rig.counts)
    if not rig.loaded.profile.live:
        rig.metrics.add_counts(_virtual_counts(rig))
    if rig.earlier is not None:
        rig.remarks.append(
            f"resumed: {rig.earlier.reused} answers come from the interrupted run, not decoded anew"
        )
    if rig.missing:
        rig.rig_errors.append(_why_missing(rig))


def _virtual_counts(rig: Rig) -> dict[str, int]:
    """Counts of a run without packets; under faults of links those of its virtual receivers."""
    log = rig.fault_log
    rig.details = {} if log is None or log.receivers is None else log.receivers.counters()
    found = rig.details
    if not found:
        return {"packets.lost": rig.audit.lost_rounds}

    def both(up: str, down: str) -> int:
        return found.get(f"node.{up}", 0) + found.get(f"rack.link.psn_{down}", 0)

    return {
        "packets.lost": both("lost", "lost"),
        "packets.duplicate": both("duplicate", "dup"),
        "packets.reordered": both("reordered", "reorder"),
        "answers.missing": found["rack.answers_missing"],
    }


def _end_faults(rig: Rig, writer: TraceWriter) -> None:
    """Read the detectors; write down what caught the faults of links."""
    scenario = rig.loaded.scenario
    rig.alarms = alarms_of(rig.details, scenario.system.qpu.n_blocks + 1)
    faults = scenario.link_faults
    caught = {name: rig.alarms.noticed(fault, scenario) for name, fault in faults.items()}
    rows = rig.fault_log.end(rig.shots_done, caught) if rig.fault_log is not None else None
    if rows is not None and not writer.failed:
        writer.append({"faults": rows}, block=not rig.loaded.profile.live)


def _judge(rig: Rig) -> list[Judgement]:
    scenario = rig.loaded.scenario
    alarms, extra = None, []
    if rig.details and not rig.rig_errors:
        if scenario.faults:
            extra = judge_faults(scenario, rig.alarms, rig.metrics.shots())
        elif rig.loaded.profile.live and scenario.expect:
            alarms = {name: n for name, n in rig.details.items() if _ALARM.fullmatch(name)}
    judged = judge(
        scenario.expect, rig.metrics, rig_errors=rig.rig_errors, alarms=alarms, sender=rig.sender
    )
    return judged + extra


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RigError(
            "the output directory cannot be made",
            where=str(directory),
            got=error.strerror or str(error),
            fix="choose another --out",
        ) from error


def _why_missing(rig: Rig) -> str:
    wanted = rig.loaded.scenario.run.shots
    if not rig.interrupt:
        return f"{rig.missing} of {wanted} shots were not run"
    text = f"interrupted by {rig.interrupt.name} after {rig.shots_done} of {wanted} shots"
    return text if rig.loaded.profile.live else f"{text}; --resume goes on with it"


def _directory(loaded: Loaded, options: RunOptions) -> Path:
    out = options.out
    if options.resume:
        return _resumed_directory(loaded, out)
    if out is not None:
        for name in TRACE_NAMES:
            if (out / name).exists():
                raise UsageError(
                    "the output directory holds a trace already",
                    where=str(out),
                    got=name,
                    allowed="a directory without a trace",
                    fix="choose another --out, or remove the old run"
                    + ("" if name == "trace.h5" else ", or go on with it by --resume"),
                )
        return out
    now = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%S")
    base = Path("runs") / f"{loaded.scenario.id}-{loaded.scenario.bind.use}-{now}"
    candidate, k = base, 1
    while candidate.exists():
        k += 1
        candidate = base.with_name(f"{base.name}-{k}")
    return candidate


def _resumed_directory(loaded: Loaded, out: Path | None) -> Path:
    if loaded.profile.live:
        raise UsageError(
            "a live run cannot be resumed: a measurement is not repeatable",
            where="--resume",
            got=f"profile {loaded.scenario.bind.use}",
            allowed="virtual profiles",
            fix="begin a new run",
        )
    if out is None:
        raise UsageError("--resume needs the folder of the interrupted run", fix="add --out DIR")
    return out
