"""Plain matching on Ising circuits against the rows of ``accuracy_anchors.csv``, at full size.

``python tools/ising_anchors.py`` prints a Markdown table; exit 1 if a row is 5 or more standard
deviations away. About three minutes of one core.
"""

from __future__ import annotations

import csv
import math
import sys
from functools import cache
from pathlib import Path

from gpu_decoder.build import build_decoder
from hil.device.families import build_models
from hil.device.sampler import StimSampler, event_counts
from hil.scenario.options import device_from_options

ANCHORS = Path(__file__).resolve().parents[1] / "tests/data/published/accuracy_anchors.csv"
MODELS = {
    "25-parameter": "ising25",
    "scalar p": "ising_scalar",
    "scalar p (--simple-noise)": "ising_scalar",
}
Z_LIMIT = 5.0
SEED = 20260702


@cache
def measured(
    noise: str, distance: int, rounds: int, p: float, basis: str, shots: int
) -> tuple[int, int]:
    """Failed shots of plain matching, and detection events of all shots."""
    circuit = {
        "family": "ising_memory",
        "distance": distance,
        "rounds": rounds,
        "basis": basis,
        "orientation": "XV",
    }
    (code,) = build_models(device_from_options(circuit, {"model": noise, "p": p}))
    matching = build_decoder("pymatching", code.dem_text)
    failed = events = 0
    for batch in StimSampler(code, SEED).batches(shots):
        predictions = matching.decode_batch(batch.detectors_b8).predictions_b8
        failed += int((predictions != batch.observables_b8).any(axis=1).sum())
        events += int(event_counts(batch.detectors_b8).sum())
    return failed, events


def rows() -> list[dict[str, str]]:
    """Logical error rates of plain matching on circuits of the family."""
    with ANCHORS.open() as file:
        return [
            row
            for row in csv.DictReader(file)
            if row["circuit"].startswith("Ising-Decoding")
            and row["decoder"] == "pymatching"
            and row["metric"] == "logical_error_per_shot"
        ]


def compare(row: dict[str, str]) -> tuple[str, float]:
    """One line of the table, and how many standard deviations the row is away."""
    bases = "XZ" if row["basis"] == "X+Z mean" else row["basis"]
    n_theirs = int(row["shots"])
    theirs = int(row["errors"]) if row["errors"] else round(float(row["value"]) * n_theirs)
    each = 262_144 if int(row["distance"]) < 13 else 20_000
    noise, distance, rounds = MODELS[row["noise"]], int(row["distance"]), int(row["rounds"])
    found = [measured(noise, distance, rounds, float(row["p"]), basis, each) for basis in bases]
    failed, n = sum(f for f, _ in found), each * len(bases)
    pooled = (failed + theirs) / (n + n_theirs)
    z = (failed / n - theirs / n_theirs) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / n_theirs))
    events = sum(e for _, e in found) / n
    cells = (
        f"d = {distance}, T = {rounds}, {noise}, {row['basis']}, {row['evidence']}",
        f"{theirs} of {n_theirs:,}",
        f"{failed} of {n:,}",
        f"{z:+.1f}",
        f"{events:.2f}",
    )
    return f"| {' | '.join(cells)} |", z


def table() -> tuple[str, float]:
    """The whole table, and the largest distance in standard deviations."""
    lines = ["| row | theirs | ours | z | events per shot |", "|---|---|---|---|---|"]
    worst = 0.0
    for row in rows():
        line, z = compare(row)
        lines.append(line)
        worst = max(worst, abs(z))
    return "\n".join(lines) + "\n", worst


if __name__ == "__main__":
    text, furthest = table()
    sys.stdout.write(text)
    sys.exit(furthest >= Z_LIMIT)
