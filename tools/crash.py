"""SIGKILL of every process of a run at random moments: what is left, and is it all accounted for?

Victims: ``writer`` (a virtual run at full speed, whose recorder never rests), ``runner``, ``node``
(its server), ``worker`` (a decode worker) and ``rack`` (the feeder process, which samples and
models the rack). Moments are seeded. One kill is one run of the command line in a session of its
own; ``kill_once`` returns what was found, ``table`` runs many and returns a Markdown table.

A kill proves itself by counting: the run counts the shots that its recorder accepted, and the
commits that it began, in a mapped file that outlives it. What is in the recovered trace is compared
with that, and its bits with the sampler's.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SCENARIO = ROOT / "scenarios" / "surface_d5.yaml"
VICTIMS = ("writer", "runner", "node", "worker", "rack")
SEED = 20_261_122
SHOTS = {"writer": 200_000}
LIVE_SHOTS = 500
SPAN_S = {"writer": 4.0}
LIVE_SPAN_S = 4.0
"""Kills of even number fall into this time from the creation of the live trace on: start-up,
mostly. Those of odd number fall into the stream."""

NAMED = {"node": "node died", "worker": "decode worker", "rack": "feeder process"}
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Found:
    """What one kill left.

    Attributes:
        victim: who was killed.
        exit: exit code of the run, negative for a signal.
        asked: shots of the scenario.
        accepted: shots that the recorder had accepted.
        recorded: shots in the trace, after recovery where the runner died.
        commits_lost: commits begun that the trace does not hold.
        commit_age_s: time from the last commit of the trace to the kill; 0 if the run ended itself.
        orphans: processes of the run that outlived it.
        left: files of the run outside its folder.
        faults: what is wrong, in words; empty = all is as it must be.
    """

    victim: str
    exit: int
    asked: int
    accepted: int
    recorded: int
    commits_lost: int
    commit_age_s: float
    orphans: tuple[str, ...]
    left: tuple[str, ...]
    faults: tuple[str, ...] = field(default=())

    @property
    def lost(self) -> int:
        """Shots that waited in memory: queued, or taken since the last commit."""
        return self.accepted - self.recorded


def kill_once(victim: str, index: int, folder: Path) -> Found:
    """Start a run in ``folder``, kill ``victim`` at moment number ``index``, look at what is left.

    Raises:
        TimeoutError: the run neither wrote a trace nor ended in two minutes.
    """
    rng = random.Random(f"{SEED} {victim} {index}")  # noqa: S311 - moments, not secrets
    moment_s = rng.uniform(0.0, SPAN_S.get(victim, LIVE_SPAN_S))
    stamps_before = _stamp_files()
    process, counter = _start(victim, index, folder)
    part = folder / "run" / "trace.part.h5"
    try:
        _until(lambda: part.exists() or process.poll() is not None)
        if index % 2:  # in the stream: behind a random number of shots, whatever the machine's load
            behind = rng.randrange(_asked(victim) * 9 // 10)
            _until(lambda: _COUNTS.unpack(counter[:])[0] > behind or process.poll() is not None)
            moment_s *= 0.05
        time.sleep(moment_s)
        target = _until(lambda: _find(victim, process.pid) or process.poll() is not None)
        killed_ns = time.time_ns()
        if process.poll() is None:
            os.kill(int(str(target)), signal.SIGKILL)
        process.wait(_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    orphans = _orphans(process.pid)
    left = tuple(sorted(_left_behind(stamps_before)))
    accepted, begun = _COUNTS.unpack(counter[:])
    counter.close()
    said = (folder / "stderr").read_text()
    counts = (accepted, begun, killed_ns)
    return _examine(victim, process.returncode, folder / "run", counts, said, orphans, left)


def _start(victim: str, index: int, folder: Path) -> tuple[subprocess.Popen[bytes], mmap.mmap]:
    folder.mkdir(parents=True, exist_ok=True)
    accepted = folder / "accepted"
    accepted.write_bytes(bytes(_COUNTS.size))
    with accepted.open("r+b") as file:
        counter = mmap.mmap(file.fileno(), _COUNTS.size)
    host = (os.getpid() % 200, 2 * (index % 100) + 1)
    command = [sys.executable, str(Path(__file__)), str(accepted), "run", str(SCENARIO), "--quiet",
               "--out", str(folder / "run"), "--set", f"run.shots={_asked(victim)}"]  # fmt: skip
    if victim == "writer":
        command += ["--bind", "mil"]
    else:
        network = "bind.profiles.sil.network"
        command += ["--set", f"{network}.rack_address=127.61.{host[0]}.{host[1]}",
                    "--set", f"{network}.node_address=127.61.{host[0]}.{host[1] + 1}"]  # fmt: skip
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, start_new_session=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    return process, counter


def _asked(victim: str) -> int:
    return SHOTS.get(victim, LIVE_SHOTS)


def _until(probe: Callable[[], object]) -> object:
    end = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.002)
    raise TimeoutError("the run does not move")


# -- processes ------------------------------------------------------------------------------------


def _session(leader: int) -> dict[int, str]:
    """Process id -> command line of the running processes of a session."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found[int(stat.parent.name)] = command
    return found


def _find(victim: str, leader: int) -> int | None:
    if victim in ("writer", "runner"):
        return leader
    mark = {"node": "node serve", "worker": "hil.node.worker", "rack": "hil.run.feeder"}[victim]
    return next((pid for pid, command in _session(leader).items() if mark in command), None)


def _orphans(leader: int) -> tuple[str, ...]:
    """What still runs ten seconds after the run has ended; it is ended here.

    A child that is still importing has not asked the kernel yet to tell it of its parent's death.
    """
    end = time.monotonic() + 10.0
    while _session(leader) and time.monotonic() < end:
        time.sleep(0.02)
    left = _session(leader)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return tuple(left.values())


def _stamp_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("hil-stamps-*")}  # noqa: S108


def _left_behind(before: set[str]) -> set[str]:
    """Stamp files that stay; those of other runs on this machine live for milliseconds."""
    end = time.monotonic() + 5.0
    left = _stamp_files() - before
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left &= _stamp_files()
    return left


# -- what is left ---------------------------------------------------------------------------------


def _examine(  # noqa: PLR0912 - a list of checks
    victim: str, status: int, run: Path, counts: tuple[int, int, int], said: str,
    orphans: tuple[str, ...], left: tuple[str, ...],
) -> Found:  # fmt: skip
    from hil.errors import TraceError
    from hil.trace.reader import open_trace
    from hil.trace.recover import recover
    from hil.trace.validate import validate_trace

    asked, faults = _asked(victim), []
    accepted, begun, killed_ns = counts
    final, part, age_s = run / "trace.h5", run / "trace.part.h5", 0.0
    dead = victim in ("writer", "runner")
    if dead and part.exists():
        if final.exists():
            faults.append("both a live and a final trace")
        try:
            final = recover(part)
        except TraceError:
            if begun:
                raise
            # Killed while it made the file: nothing was committed, and recovery says so.
            return Found(victim, status, asked, accepted, 0, 0, 0.0, orphans, left, tuple(faults))
    if not final.exists():
        gone = (*faults, "no trace")
        return Found(victim, status, asked, accepted, 0, begun, 0.0, orphans, left, gone)
    if not validate_trace(final).ok:
        faults.append("the trace is not valid")
    with open_trace(final) as trace:
        shots = trace.stream("shots", ["shot", "detectors_b8", "obs_true_b8"])
        recorded, outcome = trace.rows("shots"), trace.exit_status
        commits_lost = begun - trace.commits
        if dead:
            age_s = (killed_ns - _last_commit_ns(final)) * 1e-9
    if recorded and not _is_prefix(shots, asked):
        faults.append("the shots are not the first ones of the run, each once")
    if dead and outcome not in ("recovered", "success", "inconclusive"):
        faults.append(f"exit status {outcome}")
    if not dead and status == 3:
        faults += _accounted(victim, run, asked, recorded, outcome)
    if not dead and status not in (0, 3, 4):
        faults.append(f"exit code {status}: {said.strip()[-300:]}")
    if "Traceback" in said:
        faults.append("a traceback")
    if commits_lost > 1:
        faults.append(f"{commits_lost} commits lost")
    return Found(
        victim, status, asked, accepted, recorded, commits_lost, age_s, orphans, left, tuple(faults)
    )


def _last_commit_ns(trace: Path) -> int:
    """Wall time of the last commit, from the ledger's last column."""
    import h5py

    with h5py.File(trace) as file:
        return int(file["commits"][-1, -1])


def _accounted(victim: str, run: Path, asked: int, recorded: int, outcome: str) -> list[str]:
    """The report of a run that outlived its victim names it and every shot that was not run."""
    faults = []
    if outcome != "rig_error":
        faults.append(f"exit status {outcome}")
    text = (run / "report.json").read_text()
    report = json.loads(text)
    if NAMED[victim] not in text:
        faults.append(f"the report does not name the {victim}")
    missing = f"{asked - recorded} of {asked} shots were not run"
    if asked > recorded and missing not in text:
        faults.append("the report does not say how many shots were not run")
    if report["verdict"] != "RIG ERROR":
        faults.append(f"verdict {report['verdict']}")
    return faults


_reference: dict[str, np.ndarray] = {}


def _is_prefix(shots: dict[str, np.ndarray], asked: int) -> bool:
    """Whether these are the scenario's first shots, in order, with the right bits."""
    if not _reference or len(_reference["shot"]) < asked:
        _reference.update(_sampled(asked))
    n = len(shots["shot"])
    return all(np.array_equal(shots[name], _reference[name][:n]) for name in shots)


def _sampled(n_shots: int) -> dict[str, np.ndarray]:
    from hil.device.sampler import StimSampler
    from hil.run.parts import build_circuits
    from hil.scenario.load import load_scenario

    scenario = load_scenario(SCENARIO).scenario
    sampler = StimSampler(build_circuits(scenario), scenario.run.seed)
    batches = list(sampler.batches(n_shots))
    return {
        "shot": np.arange(n_shots, dtype="<u8"),
        "detectors_b8": np.concatenate([b.detectors_b8 for b in batches]),
        "obs_true_b8": np.concatenate([b.observables_b8 for b in batches]),
    }


# -- many -----------------------------------------------------------------------------------------

HEAD = (
    "| victim | kills | before the first shot | after the last | exit codes |"
    " shots in memory, max | commits lost, max | orphans | files left | faults |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def table(kills: int, victims: Sequence[str] = VICTIMS) -> tuple[str, list[Found]]:
    """``kills`` moments per victim; a Markdown table and all that was found."""
    found = []
    for victim in victims:
        for index in range(kills):
            with tempfile.TemporaryDirectory(prefix="hil-crash-") as folder:
                found.append(kill_once(victim, index, Path(folder)))
            print(found[-1], file=sys.stderr, flush=True)
    return HEAD + "".join(_row(v, [f for f in found if f.victim == v]) for v in victims), found


def _row(victim: str, found: Sequence[Found]) -> str:
    before, after = sum(not f.accepted for f in found), sum(f.exit in (0, 4) for f in found)
    codes = ", ".join(str(code) for code in sorted({f.exit for f in found}))
    lost, commits = max(f.lost for f in found), max(f.commits_lost for f in found)
    orphans, left = sum(len(f.orphans) for f in found), sum(len(f.left) for f in found)
    faults = "; ".join(sorted({fault for f in found for fault in f.faults})) or "none"
    return (
        f"| {victim} | {len(found)} | {before} | {after} | {codes} | {lost:,} | {commits} |"
        f" {orphans} | {left} | {faults} |\n"
    )


_COUNTS = struct.Struct("<QQ")
"""What a run counts in its mapped file: shots accepted, commits begun."""


def _child(accepted: str, arguments: list[str]) -> int:
    """The command line of ``hil`` whose recorder counts the shots that it accepts."""
    from hil.cli import main as hil_main
    from hil.trace.column import Record
    from hil.trace.live import LiveFile
    from hil.trace.writer import TraceWriter

    with Path(accepted).open("r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), _COUNTS.size)).cast("Q")
    append, write = TraceWriter.append, LiveFile._write

    def counting(writer: TraceWriter, record: Record, *, block: bool = True) -> bool:
        taken = append(writer, record, block=block)
        if taken:
            counts[0] += len(record["shots"]["shot"])
        return taken

    def beginning(live: LiveFile, records: Sequence[Record], overflow: int) -> None:
        counts[1] += 1
        write(live, records, overflow)

    TraceWriter.append = counting  # type: ignore[method-assign]
    LiveFile._write = beginning  # type: ignore[method-assign]
    return hil_main(arguments)


if __name__ == "__main__":
    raise SystemExit(_child(sys.argv[1], sys.argv[2:]))
