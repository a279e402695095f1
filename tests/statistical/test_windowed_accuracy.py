"""Sliding windows against recorded error counts, and the bug that only such a table can see."""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.build import build_decoder
from gpu_decoder.protocol import Decoder, I64Array, U8Array
from gpu_decoder.windowed import SlidingMatching
from hil.device.circuits import CodeCircuit, surface_memory
from hil.device.sampler import StimSampler

Z_LIMIT = 5.0
"""Two-sided false-alarm rate 5.8e-7 per cell."""
SEED = 20260815
DATA = Path(__file__).resolve().parents[1] / "data" / "published" / "windowed_accuracy.csv"
FAST = ("5-30-0.006-sliding-5-5", "5-30-0.006-sliding-5-0", "5-30-0.006-global--")


class NoCarry(SlidingMatching):
    """Forgets the defects that a window hands on: no error, no syndrome, wrong answers."""

    def _carry(self, state: U8Array, detectors: I64Array, flips: U8Array) -> None:
        del state, detectors, flips


def _rows() -> list[dict[str, str]]:
    with DATA.open() as file:
        return list(csv.DictReader(file))


def _name(row: dict[str, str]) -> str:
    return "-".join(row[k] for k in ("distance", "rounds", "p", "decoder", "commit", "buffer"))


def _decoder(row: dict[str, str], code: CodeCircuit) -> Decoder:
    if row["decoder"] == "global":
        return build_decoder("pymatching", code.dem_text)
    kind = NoCarry if row["decoder"] == "no_carry" else SlidingMatching
    return kind(code.dem_text, commit=int(row["commit"]), buffer=int(row["buffer"]))


@cache
def _shots(distance: int, rounds: int, p: float, n: int) -> tuple[CodeCircuit, U8Array, U8Array]:
    code = surface_memory(distance=distance, rounds=rounds, basis="Z", p=p)
    batches = list(StimSampler(code, SEED).batches(n))
    return (
        code,
        np.concatenate([b.detectors_b8 for b in batches]),
        np.concatenate([b.observables_b8 for b in batches]),
    )


def _z(row: dict[str, str], against: dict[str, str] | None = None) -> float:
    """z of our count with the decoder of ``row`` against the recorded count of ``against``."""
    n, theirs = int(row["shots"]), int((against or row)["errors"])
    code, detectors, truth = _shots(int(row["distance"]), int(row["rounds"]), float(row["p"]), n)
    predictions = _decoder(row, code).decode_batch(detectors).predictions_b8
    ours = int((predictions != truth).any(axis=1).sum())
    pooled = (ours + theirs) / (2 * n)
    return (ours - theirs) / n / math.sqrt(pooled * (1 - pooled) * 2 / n)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=_name(row), marks=[] if _name(row) in FAST else [pytest.mark.slow])
        for row in _rows()
    ],
)
def test_errors_equal_the_recorded_ones(row: dict[str, str]) -> None:
    """``no_carry`` rows too: the broken peer is as wrong as the recorded one."""
    assert abs(_z(row)) < Z_LIMIT


@pytest.mark.parametrize("distance", ["5", pytest.param("3", marks=pytest.mark.slow)])
def test_forgotten_carried_defects_are_caught(distance: str) -> None:
    """The gate of the sliding rows must fail on a decoder without carried defects."""
    rows = [r for r in _rows() if r["distance"] == distance and r["p"] == "0.006"]
    (broken,) = (r for r in rows if r["decoder"] == "no_carry")
    (sound,) = (r for r in rows if r["decoder"] == "sliding" and r["buffer"] == broken["buffer"])
    assert _z(broken, against=sound) > 3 * Z_LIMIT


def test_too_short_a_buffer_is_seen() -> None:
    """The gate has the power to tell a buffer of 1 from a buffer of d."""
    rows = {r["buffer"]: r for r in _rows() if r["distance"] == "5" and r["decoder"] == "sliding"
            and r["p"] == "0.006"}  # fmt: skip
    assert _z(rows["1"], against=rows["5"]) > Z_LIMIT
