"""``docs/metrics.md`` is the table of the code, and each of its examples is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hil.scenario.expect import METRICS, example, keys_of
from hil.scenario.load import load_scenario
from hil.scenario.metrics_page import main, page
from hil.scenario.system import HOPS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_fresh(tmp_path: Path) -> None:
    assert PAGE.read_text() == page(), "run `make docs`"
    assert main([str(tmp_path / "m.md")]) == 0
    assert (tmp_path / "m.md").read_text() == page()


def test_every_metric_has_one_row_with_its_definition() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(METRICS)
    assert {f"latency.{hop}" for hop in HOPS} <= set(rows)
    assert all(len(metric.what) > 15 for metric in METRICS.values())


@pytest.mark.parametrize("name", METRICS)
def test_the_example_of_each_metric_is_valid(name: str, scenarios: Path) -> None:
    text = example(METRICS[name])
    file = "streaming_d5.yaml" if METRICS[name].kind == "load" else "surface_d7_mil.yaml"
    loaded = load_scenario(scenarios / file, overrides=[f"expect={{x: {text}}}"])
    assert loaded.scenario.expect["x"].metric == name
    assert set(re.findall(r"(\w+):", text)) <= set(keys_of(METRICS[name]))
