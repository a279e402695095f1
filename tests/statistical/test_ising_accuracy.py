"""Ising circuits against published and recorded figures: sizes, density of events, error rates.

Rows of ``accuracy_anchors.csv`` that need somebody else's network are left out; those of d = 13,
T = 104 with a logical error rate are too long for here (``tools/soak.py --only ising``).
"""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import pymatching
import pytest
import stim

from gpu_decoder.build import build_decoder
from hil.device.circuits import CodeCircuit
from hil.device.families import build_models
from hil.device.sampler import StimSampler, event_counts
from hil.scenario.options import device_from_options

FALSE_ALARM_RATE = 5.8e-7  # two-sided tail of |z| < 5
Z_LIMIT = 5.0
SEED = 20260701
DATA = Path(__file__).resolve().parents[1] / "data" / "published" / "accuracy_anchors.csv"
MODELS = {"25-parameter": "ising25", "scalar p": "ising_scalar"}
SHOTS_PER_BASIS = 60_000


def _rows(metric: str) -> list[dict[str, str]]:
    with DATA.open() as file:
        rows = [row for row in csv.DictReader(file) if row["circuit"].startswith("Ising-Decoding")]
    return [row for row in rows if row["metric"] == metric]


@cache
def _code(noise: str, distance: int, rounds: int, p: float, basis: str = "X") -> CodeCircuit:
    circuit = {
        "family": "ising_memory",
        "distance": distance,
        "rounds": rounds,
        "basis": basis,
        "orientation": "XV",
    }
    (code,) = build_models(device_from_options(circuit, {"model": noise, "p": p}))
    return code


@cache
def _failures(noise: str, distance: int, p: float, basis: str, shots: int) -> int:
    """Shots that plain matching gets wrong."""
    code = _code(noise, distance, distance, p, basis)
    matching = build_decoder("pymatching", code.dem_text)
    failed = 0
    for batch in StimSampler(code, SEED).batches(shots):
        predictions = matching.decode_batch(batch.detectors_b8).predictions_b8
        failed += int((predictions != batch.observables_b8).any(axis=1).sum())
    return failed


def _z(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Two proportions (events, shots), pooled."""
    (a, n), (b, m) = first, second
    pooled = (a + b) / (n + m)
    return (a / n - b / m) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def _size_rows() -> list[tuple[str, dict[str, str]]]:
    """Rows of exact sizes, each for both noise models: both give the same graph."""
    rows = _rows("num_detectors") + _rows("num_edges")
    return [(noise, row) for row in rows for noise in MODELS.values()]


@pytest.mark.parametrize(
    ("noise", "row"), _size_rows(), ids=lambda x: x if isinstance(x, str) else x["metric"]
)
def test_sizes(noise: str, row: dict[str, str]) -> None:
    code = _code(noise, int(row["distance"]), int(row["rounds"]), float(row["p"]))
    graph = pymatching.Matching.from_detector_error_model(stim.DetectorErrorModel(code.dem_text))
    found = {"num_detectors": code.n_detectors, "num_edges": graph.num_edges}
    assert found[row["metric"]] == int(row["value"])


def _ler_rows() -> list[dict[str, str]]:
    rows = [row for row in _rows("logical_error_per_shot") if row["decoder"] == "pymatching"]
    return [row for row in rows if row["rounds"] == row["distance"]]


@pytest.mark.parametrize("row", _ler_rows(), ids=lambda row: f"{row['noise']}-{row['evidence']}")
def test_error_rate_of_matching(row: dict[str, str]) -> None:
    """Both bases pooled, as the rows are."""
    assert row["basis"] == "X+Z mean"
    n_theirs = int(row["shots"])
    theirs = int(row["errors"]) if row["errors"] else round(float(row["value"]) * n_theirs)
    noise, distance, p = MODELS[row["noise"]], int(row["distance"]), float(row["p"])
    ours = sum(_failures(noise, distance, p, basis, SHOTS_PER_BASIS) for basis in "XZ")
    assert abs(_z((ours, 2 * SHOTS_PER_BASIS), (theirs, n_theirs))) < Z_LIMIT


def test_two_noise_models_of_one_p_are_told_apart() -> None:
    """Negative control: d = 5, p = .006 gives .0350 and .0308."""
    shots = 200_000
    full, scalar = (_failures(noise, 5, 0.006, "X", shots) for noise in MODELS.values())
    assert _z((full, shots), (scalar, shots)) > Z_LIMIT
    assert abs(full / shots - 0.0350) < 0.0035
    assert abs(scalar / shots - 0.0308) < 0.0031


def test_there_are_rows_of_every_kind() -> None:
    assert {row["noise"] for row in _ler_rows()} == set(MODELS)
    assert len(_ler_rows()) == 3
    assert [int(row["value"]) for _, row in _size_rows()[:2]] == [17472, 17472]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("noise", "mean"), [("ising25", 930.5), ("ising_scalar", 928.2)])
def test_detection_events_per_shot(noise: str, mean: float) -> None:
    """Stated: +- 1.2, more than three times the standard error of 20,000 shots of ours (.35)."""
    events = shots = 0
    for batch in StimSampler(_code(noise, 13, 104, 0.003), SEED).batches(20_000):
        events += int(event_counts(batch.detectors_b8).sum())
        shots += batch.n_shots
    assert shots == 20_000
    assert abs(events / shots - mean) < 1.2
