"""Weights that ship: small, with their origin beside them, and what the record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gpu_decoder.ising.network import REGISTRY
from gpu_decoder.ising.weights import SHIPPED, load_weights

FILES = sorted(SHIPPED.glob("*.safetensors"))


def test_there_are_some() -> None:
    assert [path.stem for path in FILES] == ["hil-surface-1"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_record_beside_the_file_tells_where_it_comes_from(path: Path) -> None:
    weights = load_weights(path)
    record = json.loads(path.with_suffix(".json").read_text())
    config = yaml.safe_load(path.with_suffix(".yaml").read_text())
    assert path.stat().st_size <= 4 << 20
    assert record["sha256"] == weights.sha256
    assert record["threshold"] == weights.threshold_data == weights.threshold_syndrome
    assert record["steps"] == config["steps"]
    assert {key: record["config"][key] for key in config} == config
    assert REGISTRY[weights.architecture.model_id] == weights.architecture
    assert weights.metadata["name"] == path.stem == config["name"]
    assert weights.metadata["orientation"] == config["orientation"]
