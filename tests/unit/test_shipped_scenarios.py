"""Shipped scenarios and rack profiles are valid, portable and say what their names promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from hil.scenario.load import load_scenario
from hil.scenario.model import HOPS, ByEvents, Const
from hil.scenario.rack_profile import profile_names, read_profile
from hil.scenario.text import read_document

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "scenarios").glob("*.yaml"))
RACKS = sorted((ROOT / "hil" / "rack" / "profiles").glob("*.yaml"))
CASES = [
    (path, name)
    for path in FILES
    for name in YAML(typ="safe", pure=True).load(path.read_text())["bind"]["profiles"]
]


def test_the_promised_files_exist() -> None:
    assert {"surface_d5", "surface_d7_mil", "known_delay"} <= {path.stem for path in FILES}
    assert "generic-fpga" in profile_names() == tuple(path.stem for path in RACKS)


@pytest.mark.parametrize(("path", "name"), CASES, ids=[f"{p.stem}-{n}" for p, n in CASES])
def test_valid_for_every_profile(path: Path, name: str) -> None:
    loaded = load_scenario(path, bind=name)
    assert loaded.warnings == ()
    assert loaded.profile is loaded.scenario.bind.profiles[name]
    assert loaded.scenario.id == path.stem.replace("_", "-")


@pytest.mark.parametrize("path", [*FILES, *RACKS], ids=lambda path: path.stem)
def test_yaml_1_1_and_1_2_agree(path: Path) -> None:
    text = path.read_text()
    new = YAML(typ="safe", pure=True).load(text)
    assert yaml.safe_load(text) == new == read_document(text, path.name).data


@pytest.mark.parametrize("name", profile_names())
def test_rack_profile_names_a_source_for_each_latency(name: str) -> None:
    for stage in read_profile(name)["stages"].values():
        assert isinstance(stage, dict)
        assert stage["evidence"] in {"measured", "rtl", "modelled", "assumed"}
        assert stage["source"]


def test_surface_d5_gates_function_and_accuracy_at_sil() -> None:
    loaded = load_scenario(ROOT / "scenarios" / "surface_d5.yaml")
    assert loaded.scenario.bind.use == "sil"
    assert (loaded.profile.level, loaded.profile.live) == ("sil", True)
    assert loaded.profile.rack.pace > 1, "wall timing is informational"
    kinds = {expectation.kind for expectation in loaded.scenario.expect.values()}
    assert kinds == {"rate", "count"}
    assert loaded.scenario.run.record.level == "rounds"


def test_surface_d7_judges_time() -> None:
    loaded = load_scenario(ROOT / "scenarios" / "surface_d7_mil.yaml")
    metrics = {expectation.metric for expectation in loaded.scenario.expect.values()}
    assert {"latency.end_to_end", "deadline.miss_rate", "decoder.fallback_rate"} <= metrics
    service = loaded.profile.decoder.service
    assert service is not None
    assert isinstance(service.model, ByEvents)
    assert (loaded.scenario.run.shots, loaded.profile.live) == (100_000, False)


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("name", ["mil", "sil", "sil100"])
def test_known_delay_takes_a_delay_at_each_hop(hop: str, name: str) -> None:
    fault = f"faults.extra={{kind: delay, target: {hop}, value: 20us}}"
    loaded = load_scenario(ROOT / "scenarios" / "known_delay.yaml", bind=name, overrides=[fault])
    assert loaded.scenario.faults["extra"].value_ps == 20_000_000
    assert loaded.profile.rack.pace == (100 if name == "sil100" else 1)
    assert loaded.profile.level == ("mil" if name == "mil" else "sil")
    rack = loaded.scenario.system.rack
    assert rack.stages["demod"].latency == Const(ps=110_000)
    assert loaded.scenario.system.decoder.deadline_ps > 100 * 10**9
