"""Logical error rates against published and recorded anchors, through our circuits and decoders."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import pytest

from gpu_decoder.build import build_decoder
from hil.device.circuits import surface_memory
from hil.device.sampler import StimSampler

FALSE_ALARM_RATE = 5.8e-7  # two-sided tail of |z| < 5
Z_LIMIT = 5.0
SEED = 20260701
DATA = Path(__file__).resolve().parents[1] / "data" / "published" / "accuracy_anchors.csv"
OURS = {"pymatching": "pymatching", "pymatching-correlated": "pymatching_corr"}


def _rows() -> list[dict[str, str]]:
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    return [
        row
        for row in rows
        if row["decoder"] in OURS
        and row["circuit"].startswith("surface_code:rotated_memory")
        and row["rounds"] == row["distance"]
        and int(row["errors"] or 0) > 0
    ]


def _negative(row: dict[str, str]) -> bool:
    return "negative control" in row["note"] or row["noise"] != "uniform4"


@cache
def _count(basis: str, distance: int, p: float, decoder: str, shots: int) -> int:
    code = surface_memory(distance=distance, rounds=distance, basis=basis, p=p)
    matching = build_decoder(decoder, code.dem_text)
    failures = 0
    for batch in StimSampler(code, SEED).batches(shots):
        predictions = matching.decode_batch(batch.detectors_b8).predictions_b8
        failures += int((predictions != batch.observables_b8).any(axis=1).sum())
    return failures


def _z(row: dict[str, str]) -> float:
    p = float(row["p"])
    n_ours = 1_000_000 if p < 0.002 else 200_000
    n_theirs, theirs = int(row["shots"]), int(row["errors"])
    basis = row["circuit"][-1].upper()
    ours = _count(basis, int(row["distance"]), p, OURS[row["decoder"]], n_ours)
    pooled = (ours + theirs) / (n_ours + n_theirs)
    return (ours / n_ours - theirs / n_theirs) / math.sqrt(
        pooled * (1 - pooled) * (1 / n_ours + 1 / n_theirs)
    )


def _name(row: dict[str, str]) -> str:
    return f"{row['circuit'][-1]}-d{row['distance']}-p{row['p']}-{row['decoder']}-{row['errors']}"


def _cost(row: dict[str, str]) -> tuple[int, bool, float]:
    """Grows with the time of a row; the dearest goes first, or one worker would end up alone."""
    return (int(row["distance"]), "correlated" in row["decoder"], float(row["p"]))


def _slow(row: dict[str, str]) -> object:
    slow = _cost(row) >= (7, True, 0.006)
    marks = [pytest.mark.slow, pytest.mark.timeout(340)] if slow else []
    return pytest.param(row, id=_name(row), marks=marks)


DEAREST_FIRST = sorted(_rows(), key=_cost, reverse=True)


@pytest.mark.parametrize("row", [_slow(r) for r in DEAREST_FIRST if not _negative(r)])
def test_matches_anchor(row: dict[str, str]) -> None:
    assert abs(_z(row)) < Z_LIMIT


@pytest.mark.parametrize("row", [_slow(r) for r in _rows() if _negative(r)])
def test_does_not_match_negative_control(row: dict[str, str]) -> None:
    assert abs(_z(row)) > Z_LIMIT


def test_there_are_rows_of_both_kinds() -> None:
    kinds = [_negative(row) for row in _rows()]
    assert kinds.count(False) >= 15
    assert kinds.count(True) >= 4
