"""Each error code has a broken file and its exact message: messages are part of the interface."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hil.scenario.load import load_scenario
from hil.scenario.problems import Problem, ScenarioErrors

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "scenario"
BASE = (DATA / "base.yaml").read_text()
CASES = YAML(typ="safe", pure=True).load((DATA / "errors.yaml").read_text())
ONLY_BY_OPTION = {"E402"}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_broken_file_gives_exact_message(case: dict[str, Any], tmp_path: Path) -> None:
    assert BASE.count(case["old"]) == 1
    for name, text in case.get("files", {}).items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    path = tmp_path / "scenario.yaml"
    path.write_text(BASE.replace(case["old"], case["new"]))
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path)
    assert str(info.value).replace(str(path), "FILE") == case["message"]
    assert info.value.exit_code == 2
    code = case["name"].partition("-")[0]
    assert code in {problem.code for problem in info.value.problems}


def test_every_documented_code_has_a_case() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text()
    documented = set(re.findall(r"^\| (E\d{3}) \|", page, re.MULTILINE))
    shown = {case["name"].partition("-")[0] for case in CASES}
    assert documented == shown | ONLY_BY_OPTION


def test_every_code_of_the_source_is_documented() -> None:
    source = "".join(path.read_text() for path in (ROOT / "hil" / "scenario").glob("*.py"))
    used = set(re.findall(r'"(E\d{3})"', source)) | {"E301", "E302", "E303"}
    page = (ROOT / "docs" / "scenario.md").read_text()
    assert used == set(re.findall(r"^\| (E\d{3}) \|", page, re.MULTILINE))


def test_all_problems_are_listed_sorted_by_line(tmp_path: Path) -> None:
    text = BASE.replace("p: 0.002", "p: 0.7").replace("slots: 64", "slots: 64.0")
    text = text.replace("at: {shot: 2000}", "at: {shot: 9000}").replace(
        "rack:\n    c", "rak:\n    c"
    )
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path)
    found = [(problem.line, problem.code, problem.dotted) for problem in info.value.problems]
    assert found == [
        (6, "E202", "system.rack"),
        (9, "E205", "system.qpu.noise.p"),
        (12, "E201", "system.rak"),
        (31, "E203", "system.decoder.ring.slots"),
        (63, "E505", "faults.stall.at.shot"),
    ]


def test_a_refused_place_is_not_reported_twice(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(BASE.replace("round_period: 1.1us", "round_period:"))
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path)
    assert [problem.code for problem in info.value.problems] == ["E104"]


def test_problem_without_line_names_the_option_only() -> None:
    problem = Problem("--set run.shots=x", 0, 0, "E203", "run.shots", "wrong type", got="x")
    assert str(problem) == ("--set run.shots=x: error[E203]: run.shots: wrong type\n    got:     x")


def test_errors_survive_pickling() -> None:
    import pickle

    error = ScenarioErrors(
        [Problem("f", 2, 1, "E201", "a", "b"), Problem("f", 1, 1, "E201", "c", "d")]
    )
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert [problem.line for problem in copy.problems] == [1, 2]
