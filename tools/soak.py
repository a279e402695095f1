"""Long acceptance runs. Writes ``docs/soak.md``; commit it with the change that it belongs to.

* a virtual run of 1e7 rounds at record level ``shots``: its peak memory;
* ``hil bench model``: all ratios.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 10_000_000
LIMIT_BYTES = 1_000_000_000
GOALS = {5: 0.55, 7: 0.70, 13: 0.85}


def long_run() -> dict[str, float]:
    """Run 1e7 rounds in a process of its own; returns wall time and peak memory."""
    with tempfile.TemporaryDirectory(prefix="hil-soak-") as folder:
        command = [
            sys.executable, "-m", "hil", "run", str(ROOT / "scenarios" / "surface_d5.yaml"),
            "--bind", "mil", "--out", f"{folder}/run", "--quiet",
            "--set", f"run.shots={ROUNDS // 5}", "--set", "run.record.level=shots",
        ]  # fmt: skip
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _pid, status, usage = os.wait4(process.pid, 0)
        return {
            "seconds": time.monotonic() - begin,
            "peak_bytes": usage.ru_maxrss * 1024,
            "exit": os.waitstatus_to_exitcode(status),
            "trace_bytes": Path(folder, "run", "trace.h5").stat().st_size,
        }


def bench() -> dict[str, object]:
    """All rows of ``hil bench model``."""
    done = subprocess.run(
        [sys.executable, "-m", "hil", "bench", "model", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    data: dict[str, object] = json.loads(done.stdout)
    return data


HEAD = """\
# Long acceptance runs

Written by `make soak` on {date}: {machine}, {cores} cores, Python {python}. Ratios are measured
side by side in one run; rates are of this machine.

## 1e7 rounds, virtual, record level shots

`scenarios/surface_d5.yaml --bind mil`, {shots:,} shots of 5 rounds: exit {exit:.0f},
{seconds:.0f} s, peak memory {peak:.0f} MB (limit {limit:.0f} MB: {met}), trace {trace:.0f} MB.

## Speed of the model

One core, p = 0.003, rounds = distance, finite ring, deadline, about 1 % fallbacks, primary
`pymatching_corr` on both sides. a: bare detector sampler + `decode_batch`; b: virtual run at level
`shots` with close, rewrite and verdict; c: the same at level `rounds`.

| d | shots | a, shots/s | b / a | goal | c / a | overhead, us/shot | fallbacks |
|---|---|---|---|---|---|---|---|
"""


def page(run: dict[str, float], rows: list[dict[str, float]]) -> str:
    """The document."""
    head = HEAD.format(
        date=f"{datetime.now(tz=UTC):%Y-%m-%d}",
        machine=platform.machine(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        shots=ROUNDS // 5,
        exit=run["exit"],
        seconds=run["seconds"],
        peak=run["peak_bytes"] / 1e6,
        limit=LIMIT_BYTES / 1e6,
        met="met" if run["peak_bytes"] <= LIMIT_BYTES and run["exit"] == 0 else "NOT met",
        trace=run["trace_bytes"] / 1e6,
    )
    return head + "".join(_row(row) for row in rows)


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


def main() -> int:
    """Run everything and write the page."""
    run = long_run()
    rows = bench()["rows"]
    text = page(run, rows)  # type: ignore[arg-type]
    (ROOT / "docs" / "soak.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
