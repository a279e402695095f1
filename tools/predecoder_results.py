"""Write ``docs/predecoder-results.md``: every shipped network on every cell, also the lost ones.

``python tools/predecoder_results.py`` takes hours; it goes on where it was stopped (``--work``).
With ``--store`` each network's threshold is chosen anew, on shots of its own, and stored first.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gpu_decoder.ising.weights import SHIPPED, load_weights
from gpu_decoder.protocol import Backend
from hil.errors import HilError
from hil.run.trial import run as trial
from hil.run.trial.cells import Cell, Tally, chosen_cells, subject
from hil.run.trial.result import (
    CHOICE_CONFIDENCE,
    CONFIDENCE,
    DENSITY_GOAL,
    MARGIN,
    Row,
    accuracy_table,
    choice_table,
    work_table,
)
from hil.verdict.judge import Verdict

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "predecoder-results.md"

HEAD = """\
# Shipped networks on trial

Written by `python tools/predecoder_results.py` (`make soak` runs it); own weights:
`hil decoder judge FILE`. Per cell: memory experiment of d rounds, orientation XV, plain PyMatching
and the chain network + plain PyMatching on the *same* shots.

* worse / better: shots that only the chain, or only plain matching, gets wrong.
* upper bound: one-sided bound (Tango, CONFIDENCE) of the chain's error rate minus plain matching's,
  this cell alone, as a share of plain matching's rate. The margin is MARGIN of that rate as
  observed.
* Holm p: of "inferior by the margin or more", adjusted over the cells of the table. PASS: at most
  ALPHA. FAIL: inferior beyond the margin at CONFIDENCE, this cell alone. Else INCONCLUSIVE.
* against plain: exact McNemar, two-sided, Holm over the cells.
* density: fired detectors before, over those left. Detectors of the other basis in the last round
  count nowhere, as the reference drops them undecoded. ratio: left by the isolated-pair rule, over
  left by the network; goal DENSITY_GOAL.
* matching time: CPU time of plain matching on raw detectors, over that on what is left, both in
  batches in the same process. The network's own time is not in it.
* LER correlated: correlated PyMatching alone, for comparison.

The threshold of a network: of those that reach the density goal for every (d, p), the one whose
largest bound is smallest (of the difference, one-sided at CHOICE, both noises and bases pooled);
shots of this choice are never judged on.
"""

NUMBERS = {
    "CONFIDENCE": f"{CONFIDENCE:.0%}",
    "MARGIN": f"{MARGIN:.0%}",
    "ALPHA": f"{1 - CONFIDENCE:.2f}",
    "DENSITY_GOAL": f"{DENSITY_GOAL:g}",
    "CHOICE": f"{CHOICE_CONFIDENCE:.0%}",
}
"""Words of the head and what the code says they are."""


def summary(rows: Sequence[Row]) -> str:
    """What a reader should know first, lost cells by name."""
    lost = [f"{row.cell.name} ({row.verdict})" for row in rows if row.verdict != Verdict.PASS]
    thin = [row.cell.name for row in rows if row.density_ratio < DENSITY_GOAL]
    sums = Counter(row.compared for row in rows)
    return _paragraph(
        f"Not inferior in {len(rows) - len(lost)} of {len(rows)} cells; not shown in:"
        f" {', '.join(lost) or 'none'}.",
        f"Against plain matching: better in {sums['better']}, worse in"
        f" {sums['worse']}, no significant difference in {sums['equal']}.",
        f"Density at least {DENSITY_GOAL} times that of the isolated-pair rule in"
        f" {len(rows) - len(thin)} of {len(rows)} cells; not in: {', '.join(thin) or 'none'}.",
    )


def section(weights: Path, options: argparse.Namespace) -> str:
    """Choose, judge and describe one network."""
    cells = chosen_cells(options.cells)
    backend = Backend[options.runtime.upper()]
    work = options.work / weights.stem

    def run(
        names: Mapping[str, tuple[float | None, float | None]], purpose: str, share: float
    ) -> dict[Cell, Tally]:
        return trial.run_trial(
            subject(str(weights), names, backend=backend),
            trial.shots_of(cells, scale=options.scale * share, shots=None),
            purpose, work, processes=options.processes, seed=options.seed, tell=_tell,
        )  # fmt: skip

    grid = {f"{t:g}": (t, t) for t in trial.THRESHOLDS}
    tallies = run(grid, "choose", trial.CHOICE_SHARE)
    table, best = trial.chosen(tallies)
    if options.store and best is not None:
        trial.store_threshold(weights, best, weights)
    loaded = load_weights(weights)
    rows = trial.judged(run({trial.CHAIN: (None, None)}, "judge", 1.0))
    facts = _paragraph(
        f"Network {loaded.architecture.model_id}, {loaded.architecture.parameters:,} parameters,",
        f"SHA-256 `{loaded.sha256}`. Thresholds {loaded.threshold_data:g} (data) and",
        f"{loaded.threshold_syndrome:g} (measurements); the rule chooses",
        f"{'none' if best is None else format(best, 'g')}.",
        f"{options.runtime} fp32, seed {options.seed}, {_shots(tallies)} shots to choose on;",
        f"{datetime.now(tz=UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores,",
        f"Python {platform.python_version()}.",
    )
    return "\n".join(
        [
            f"## {weights.stem}\n", facts, summary(rows), accuracy_table(rows), work_table(rows),
            "Choice of the threshold (upper bounds):\n", choice_table(table),
        ]
    )  # fmt: skip


def _shots(tallies: Mapping[Cell, Tally]) -> str:
    return f"{sum(t.shots for t in tallies.values()):,}"


def _paragraph(*parts: str) -> str:
    return textwrap.fill(" ".join(parts), 100, break_on_hyphens=False) + "\n"


def _tell(text: str) -> None:
    print(f"{datetime.now(tz=UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all shipped networks, or those named; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", nargs="*", type=Path, help="files; by default all shipped ones")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "predecoder")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--cells", action="append", default=[])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runtime", choices=("ort_cpu", "openvino"), default="ort_cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args(arguments)
    files = options.weights or sorted(SHIPPED.glob("*.safetensors"))
    if not files:
        print(f"no weights in {SHIPPED}", file=sys.stderr)
        return 2
    try:
        sections = [section(path, options) for path in files]
    except HilError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    head = re.sub(r"[A-Z_]{5,}", lambda m: NUMBERS.get(m[0], m[0]), HEAD)
    options.page.write_text("\n".join([head, *sections]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
