"""Long acceptance runs. Each one writes its section of ``docs/soak.md``; commit it with its change.

``python tools/soak.py`` runs all, ``--only NAME`` (any number of times) some of them:

* ``memory``: 1e7 rounds, virtual, record level ``shots``: peak memory;
* ``clean``: 1e8 rounds without a fault in ``mil``: no alarm, flat memory;
* ``crash``: SIGKILL of every process of a run at 20 random moments each;
* ``fuzz``: 1e6 mutated frames through the node's door (UC), 1e6 at an RC queue pair;
* ``ising``: plain matching on Ising circuits against published and recorded error rates;
* ``bench``: ``hil bench model``, all ratios;
* ``predecoder``: shipped networks against plain matching (page: ``docs/predecoder-results.md``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "soak.md"
SCENARIO = ROOT / "scenarios" / "surface_d5.yaml"
ROUNDS_PER_SHOT = 5
LIMIT_BYTES = 1_000_000_000
FLAT = 0.05
GOALS = {5: 0.55, 7: 0.70, 13: 0.85}
KILLS = 20
FUZZED, FUZZ_SEED = 1_000_000, 1


@dataclass(frozen=True)
class LongRun:
    """A virtual run in a process of its own.

    Attributes:
        exit: exit code.
        seconds: wall time.
        peak_bytes: largest resident size.
        rss_bytes: resident size, sampled every half second.
        trace_bytes: size of the trace.
        report: its ``report.json``.
    """

    exit: int
    seconds: float
    peak_bytes: int
    rss_bytes: Sequence[int]
    trace_bytes: int
    report: dict[str, object]


def long_run(rounds: int) -> LongRun:
    """Run ``rounds`` rounds at record level ``shots``."""
    with tempfile.TemporaryDirectory(prefix="hil-soak-") as folder:
        command = [
            sys.executable, "-m", "hil", "run", str(SCENARIO),
            "--bind", "mil", "--out", f"{folder}/run", "--quiet",
            "--set", f"run.shots={rounds // ROUNDS_PER_SHOT}",
            "--set", "run.record.level=shots", "--set", "run.wall=2h",
        ]  # fmt: skip
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        samples = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            samples.append(_resident_bytes(process.pid))
            time.sleep(0.5)
        process.returncode = os.waitstatus_to_exitcode(status)
        return LongRun(
            exit=process.returncode,
            seconds=time.monotonic() - begin,
            peak_bytes=usage.ru_maxrss * 1024,
            rss_bytes=samples,
            trace_bytes=Path(folder, "run", "trace.h5").stat().st_size,
            report=json.loads(Path(folder, "run", "report.json").read_text()),
        )


def _resident_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def memory() -> str:
    """Peak memory of 1e7 rounds."""
    run = long_run(10_000_000)
    met = _met(run.peak_bytes <= LIMIT_BYTES and run.exit == 0)
    return _paragraph(
        f"`{SCENARIO.name} --bind mil`, 2,000,000 shots of 5 rounds: exit {run.exit},",
        f"{run.seconds:.0f} s, peak memory {_mb(run.peak_bytes)} (limit {_mb(LIMIT_BYTES)}:",
        f"{met}), trace {_mb(run.trace_bytes)}.",
    )


def clean() -> str:
    """1e8 rounds without a fault: verdict, counts, memory at 20 % and later."""
    run = long_run(100_000_000)
    n = len(run.rss_bytes)
    early, late = run.rss_bytes[n // 5], run.rss_bytes[n * 9 // 10]
    most = max(run.rss_bytes[n // 5 : n * 9 // 10])
    listed = run.report["counts"]  # a value is None where mil has nothing that could count it
    counts = [c["value"] for c in listed if c["value"] is not None]  # type: ignore[attr-defined]
    alarms = sum(counts)
    met = _met(run.exit == 0 and not alarms and most / early - 1 <= FLAT)
    return _paragraph(
        f"`{SCENARIO.name} --bind mil`, 20,000,000 shots of 5 rounds, record level `shots`:",
        f"exit {run.exit}, verdict {run.report['verdict']}, {run.seconds:.0f} s. Alarms (sum of",
        f"{len(counts)} counts that a sound chain keeps at 0): {alarms}. Resident memory:",
        f"{_mb(early)} at 20 % of the time, {_mb(late)} at 90 %, at most {_mb(most)} in between;",
        f"peak of the whole run, rewrite included, {_mb(run.peak_bytes)}. Goal (exit 0, no alarm,",
        f"growth <= {100 * FLAT:.0f} %): {met}.",
    )


def crashes() -> str:
    """Every victim killed at ``KILLS`` random moments."""
    import crash

    table, found = crash.table(KILLS)
    bad = [f for f in found if f.faults or f.orphans or f.left or f.commits_lost > 1]
    prose = _paragraph(
        "SIGKILL at random moments (seeded) between the creation of the trace and its end.",
        "`writer` is a virtual run at full speed: shots in memory are those that its queue held.",
        "Where the runner died, its live trace was recovered; where it lived, it ended with exit",
        "3, a trace",
        "of every shot that its recorder had accepted, and a report that names the victim and the",
        "number of shots that were not run. The bits of every trace are compared with",
        "the sampler's.",
        f"Kills that broke a rule: {len(bad)} of {len(found)}.",
    )
    return f"{prose}\n{table}"


def fuzzed() -> str:
    """Mutated frames through receiver, intake and session, and at an RC queue pair."""
    import fuzz
    import fuzz_rc

    begin = time.monotonic()
    tally = fuzz.campaign(FUZZED, FUZZ_SEED)
    seconds = time.monotonic() - begin
    prose = _paragraph(
        f"{tally.frames:,} mutations (seed {FUZZ_SEED}; {tally.sealed:,} with a repaired ICRC)",
        f"among {tally.client_frames:,} valid frames in {seconds:.0f} s: no exception, every fate",
        "as an independent oracle says, memory and canaries as they must be, no change of the",
        f"session by a refused frame. {tally.intact_shots:,} shots assembled in the rounds without",
        "forged CRCs, all with the client's bits. Fates, first at the link, then at the session:",
    )
    begin = time.monotonic()
    reliable = fuzz_rc.campaign(FUZZED, FUZZ_SEED)
    seconds = time.monotonic() - begin
    more = _paragraph(
        f"Reliable connection: {reliable.frames:,} mutations (seed {FUZZ_SEED}) of requests and",
        f"acknowledgements in {seconds:.0f} s: no exception, every fate as the rule says, memory",
        "and canaries as they must be, no change of a pair by a refused datagram, every message",
        'of the client delivered. "mine": the packet in turn, changed, at a pair of its own:',
    )
    return f"{prose}\n{_fates(tally.fates)}\n{more}\n{_fates(reliable.fates)}"


def _fates(counts: dict[str, int]) -> str:
    fates = sorted(counts.items(), key=lambda item: -item[1])
    rows = "".join(f"| {name} | {count:,} |\n" for name, count in fates if name)
    return f"| fate | frames |\n|---|---|\n{rows}"


def _paragraph(*parts: str) -> str:
    return textwrap.fill(" ".join(parts), 100, break_on_hyphens=False) + "\n"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _met(condition: bool) -> str:
    return "met" if condition else "NOT met"


def ising() -> str:
    """Error rates of plain matching at full size, d = 13 with 104 rounds included."""
    import ising_anchors

    table, worst = ising_anchors.table()
    met = _met(worst < ising_anchors.Z_LIMIT)
    text = _paragraph(
        "Rows of `accuracy_anchors.csv` (p = .003), failed shots of plain PyMatching, theirs and",
        f"ours; largest distance {worst:.1f} standard deviations (limit {ising_anchors.Z_LIMIT:g}:",
        f"{met}). Acceptance at d = 13: 930.5 +- 1.2 events per shot (ising25), 928.2 +- 1.2",
        "(ising_scalar).",
    )
    return f"{text}\n{table}"


def bench() -> str:
    """All rows of ``hil bench model``."""
    done = subprocess.run(
        [sys.executable, "-m", "hil", "bench", "model", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows: list[dict[str, float]] = json.loads(done.stdout)["rows"]
    return _BENCH + "".join(_row(row) for row in rows)


_BENCH = """\
One core, p = 0.003, rounds = distance, finite ring, deadline, about 1 % fallbacks, primary
`pymatching_corr` on both sides. a: bare detector sampler + `decode_batch`; b: virtual run at level
`shots` with close, rewrite and verdict; c: the same at level `rounds`.

| d | shots | a, shots/s | b / a | goal | c / a | overhead, us/shot | fallbacks |
|---|---|---|---|---|---|---|---|
"""


def _row(row: dict[str, float]) -> str:
    goal = GOALS[int(row["distance"])]
    cells = (
        f"{row['distance']}",
        f"{row['shots']:,}",
        f"{row['rate_bare']:,.0f}",
        f"{row['ratio']:.2f}",
        f"{goal:.2f} {'met' if row['ratio'] >= goal else 'NOT met'}",
        f"{row['ratio_rounds']:.2f}",
        f"{row['overhead_us']:.2f}",
        f"{100 * row['fallback_rate']:.2f} %",
    )
    return f"| {' | '.join(cells)} |\n"


def predecoder() -> str:
    """The trial of the shipped networks, which writes a page of its own."""
    done = subprocess.run([sys.executable, ROOT / "tools" / "predecoder_results.py"], check=False)
    if done.returncode:
        return _paragraph(f"`tools/predecoder_results.py` failed, exit {done.returncode}: no page.")
    return _paragraph("See [predecoder-results.md](predecoder-results.md).")


def interop() -> str:
    """All interoperation tests; some of them wait long for the emulated guest."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "tests/interop"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (.+)$", done.stdout, flags=re.MULTILINE)
    lines = [f"| `{what.rpartition('::')[2]}` | {fate.lower()} |\n" for fate, what in rows]
    head = (
        "Against rdma_rxe of a stock Debian kernel in an emulated guest.\n\n| test | |\n|---|---|\n"
    )
    end = done.stdout.rstrip().rpartition("\n")[2].strip("= ")
    return f"{head}{''.join(lines)}\n{end}\n"


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "memory": ("1e7 rounds, virtual, record level shots", memory),
    "clean": ("1e8 clean rounds", clean),
    "crash": ("Killed at random moments", crashes),
    "fuzz": ("Hostile frames", fuzzed),
    "ising": ("Ising circuits against recorded error rates", ising),
    "bench": ("Speed of the model", bench),
    "interop": ("Interoperation with Linux rdma_rxe", interop),
    "predecoder": ("Shipped networks on trial", predecoder),
}
"""Name -> title and what makes the body, in the order of the page."""

HEAD = """\
# Long acceptance runs

Written by `make soak`; one section alone: `python tools/soak.py --only NAME`. Ratios are measured
side by side in one run; rates are of the machine named.
"""


def section(name: str) -> str:
    """Run one section; its text with title and machine."""
    title, make = SECTIONS[name]
    body = make()
    machine = (
        f"{datetime.now(tz=UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}."
    )
    return f"## {title}\n\n{machine}\n\n{body}"


def page(before: str, new: dict[str, str]) -> str:
    """The page with the sections ``new`` (by title) put in or replaced."""
    parts = re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]
    old = {part[3:].partition("\n")[0]: part.rstrip() + "\n" for part in parts}
    titles = [title for title, _ in SECTIONS.values()]
    found = old | new
    return "\n".join([HEAD, *(found[title] for title in titles if title in found)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for; each is written as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="NAME")
    for name in parser.parse_args(arguments).only or SECTIONS:
        text = section(name)
        PAGE.write_text(page(PAGE.read_text() if PAGE.exists() else "", {SECTIONS[name][0]: text}))
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
