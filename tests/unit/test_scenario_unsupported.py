"""Parts of the format that are not built are refused by name, apart from typing errors."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from hil.scenario import load
from hil.scenario.load import load_scenario
from hil.scenario.problems import Problem, ScenarioErrors
from hil.scenario.text import read_document
from hil.scenario.unsupported import KEYS, VALUES

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "scenario"
BASE = DATA / "base.yaml"
IDS = {
    "system.rack.clocks.*": "fpga",
    "system.rack.boards.*": "agg",
    "bind.profiles.*": "live",
    "faults.*": "slow",
    "expect.*": "tail",
}

KEY_PATHS = [f"{parent}.{key}".lstrip(".") for parent, keys in KEYS.items() for key in keys]
VALUE_PATHS = [(pattern, value) for pattern, values in VALUES.items() for value in values]


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading YAML is the slow part, and all tests here change the same file by options."""
    monkeypatch.setattr(load, "read_document", lambda text, name: deepcopy(_parsed(text, name)))


_parsed = cache(read_document)


def concrete(pattern: str) -> str:
    for known, name in IDS.items():
        if (pattern + ".").startswith(known + "."):
            return known.replace("*", name) + pattern.removeprefix(known)
    return pattern


def problems_of(path: Path, *overrides: str) -> list[Problem]:
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path, overrides=overrides)
    assert info.value.exit_code == 2
    return info.value.problems


@pytest.mark.parametrize("pattern", KEY_PATHS)
def test_key(pattern: str) -> None:
    dotted = concrete(pattern)
    key = dotted.rpartition(".")[2]
    (problem,) = problems_of(BASE, f"{dotted}={{}}")
    assert (problem.code, problem.dotted) == ("E207", dotted)
    assert problem.what == f"not yet supported: {key}"


@pytest.mark.parametrize(("pattern", "value"), VALUE_PATHS)
def test_value(pattern: str, value: str) -> None:
    dotted = concrete(pattern)
    key = dotted.rpartition(".")[2]
    is_list = key in {"when", "streams"}
    written = f"[{value}]" if is_list else value
    (problem,) = problems_of(BASE, f"{dotted}={written}")
    assert problem.code == "E207"
    assert problem.dotted == (f"{dotted}.0" if is_list else dotted)
    assert problem.what == f"not yet supported: {key}: {value}"
    assert problem.allowed, "the values that are built are named"
    assert value not in problem.allowed.split(", ")


def test_requirements_are_not_yet_supported() -> None:
    (problem,) = problems_of(BASE, "requires=[gpu]")
    assert (problem.code, problem.what) == ("E207", "not yet supported: requires")


def test_closed_loop_without_a_latency_is_not_yet_supported() -> None:
    (problem,) = problems_of(BASE, "run.arrivals=closed_loop", "expect={}")
    assert (problem.code, problem.dotted) == ("E207", "run.arrivals")


def test_profile_named_after_a_level_that_is_not_built() -> None:
    body = "{rack: {backend: simpy}, network: {backend: virtual}, decoder: {node: in_process}}"
    (problem,) = problems_of(BASE, f"bind.profiles.rtl={body}")
    assert (problem.code, problem.dotted) == ("E207", "bind.profiles.rtl")


@pytest.mark.parametrize(
    "override",
    [
        "system.decoder.drift={}",
        "system.decoder.physics={}",
        "system.decoder.faults={}",
        "system.rack.drift={}",
        "system.faults={}",
        "faults.slow.drift={}",
        "conceal=hold_measurement",
        "looks=5",
        "bind.profiles.live.drift={}",
        "bind.profiles.live.faults={}",
    ],
)
def test_a_part_in_the_wrong_place_is_an_unknown_key(override: str) -> None:
    """Truth given to the decoder, the rack or a profile never passes, whatever it contains."""
    (problem,) = problems_of(BASE, override)
    assert problem.code == "E201"
    assert "belongs to" in problem.fix or "did you mean" in problem.fix or problem.fix


def test_the_reference_example_is_refused_by_name() -> None:
    problems = problems_of(DATA / "reference_example.yaml")
    assert {problem.code for problem in problems} == {"E207", "E202"}
    refused = {problem.dotted for problem in problems if problem.code == "E207"}
    assert {
        "system.qpu.physics",
        "system.qpu.drift",
        "system.rack.clocks.nic.kind",
        "system.rack.boards.agg.timeout",
        "system.decoder.conceal",
        "system.decoder.predecoder.model",
        "system.decoder.global",
        "system.decoder.fallback.to",
        "system.calibration",
        "bind.profiles.rtl",
        "bind.profiles.hil",
        "run.looks",
        "budgets",
        "sweep",
        "expect.vs-raw.metric",
        "expect.ler.when",
    } <= refused
    missing = {problem.dotted for problem in problems if problem.code == "E202"}
    assert missing == {
        "system.decoder.primary",
        "system.decoder.fallback.policy",
        "bind.profiles.mil.decoder.service.by_events",
    }


def test_supported_and_unsupported_do_not_overlap() -> None:
    from hil.scenario.keys import all_keys

    built = {".".join(key.path) for key in all_keys()}
    assert not built & set(KEY_PATHS)


def test_page_names_every_refused_section() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text().partition("## Not yet supported")[2]
    for key in ("physics", "drift", "calibration", "budgets", "sweep", "conceal"):
        assert f"`{key}`" in page
