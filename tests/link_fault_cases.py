"""Faults of links at three sizes each, as tests write them into a scenario."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from hil.scenario import load
from hil.scenario.load import Loaded, load_scenario
from hil.scenario.text import read_document

SCENARIO = Path(__file__).parents[1] / "scenarios" / "surface_d5.yaml"

SIZES = {
    "loss": ("p: 0.004", "p: 0.02", "p: 0.2, burst: {frames: 12}"),
    "duplicate": ("p: 0.004", "p: 0.02, after: 3", "p: 0.3, after: 20"),
    "reorder": ("p: 0.004, window: 1", "p: 0.02, window: 4", "p: 0.3, window: 30"),
    "bit_flip": ("p: 0.004", "p: 0.02", "p: 0.3"),
    "icrc": ("p: 0.004", "p: 0.02", "p: 0.3"),
    "truncate": ("p: 0.004, value: 4B", "p: 0.02, value: 16B", "p: 0.3, value: 64B"),
    "wrong_qp": ("p: 0.004", "p: 0.02", "p: 0.3"),
    "pause": ("value: 10us", "value: 50us, every: 1ms", "value: 5ms, every: 200ms"),
}
"""Kind -> the smallest size that hits a frame of so short a run, a typical one, a gross one."""

CASES = [
    *((kind, size, "up") for kind in SIZES for size in SIZES[kind]),
    *((kind, SIZES[kind][2], "down") for kind in SIZES),
]


def faulty(kind: str, size: str, link: str, *more: str) -> str:
    """Override that injects one fault, named ``bad``."""
    text = ", ".join((f"kind: {kind}", f"target: links.{link}", size, *more))
    return f"faults={{bad: {{{text}}}}}"


def loaded(*overrides: str, shots: int = 1000) -> Loaded:
    """The d=5 scenario, virtual, without warm-up."""
    only = "expect={order: {metric: rounds.out_of_order_commits, equals: 0}}"
    sizes = (f"run.shots={shots}", "run.warmup.shots=0", only)
    return load_scenario(SCENARIO, bind="mil", overrides=(*sizes, *overrides))


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading YAML is the slow part, and all cases change the same file by options."""
    monkeypatch.setattr(load, "read_document", lambda text, name: deepcopy(_parsed(text, name)))


_parsed = cache(read_document)
