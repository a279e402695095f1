"""Files of a user's circuit: what they may do to the reader, and what follows from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stim

from hil.scenario.load import Loaded, load_scenario
from hil.scenario.problems import Problem, ScenarioErrors
from hil.scenario.user_circuit import MAX_NESTING, noise_of, parse_layout

ROOT = Path(__file__).parents[2]
CIRCUIT = "R 0\nM 0 0\nDETECTOR(0) rec[-2]\nDETECTOR(1) rec[-1]\nOBSERVABLE_INCLUDE(0) rec[-1]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "scenarios" / "user_circuit.yaml", tmp_path)
    (tmp_path / "c.stim").write_text(CIRCUIT)
    return tmp_path


def load(folder: Path, keys: str = "rounds: 1", file: str = "c.stim", **noise: str) -> Loaded:
    circuit = f"system.qpu.circuit={{family: user_stim, file: '{file}', {keys}}}"
    changes = [circuit, *(f"system.qpu.noise={{model: {model}}}" for model in noise.values())]
    return load_scenario(folder / "user_circuit.yaml", overrides=changes)


def problem(folder: Path, keys: str = "rounds: 1", file: str = "c.stim") -> Problem:
    with pytest.raises(ScenarioErrors) as info:
        load(folder, keys, file)
    return info.value.problems[0]


def test_sha256_is_stated_in_what_was_resolved(folder: Path) -> None:
    free = load(folder).resolved["system"]["qpu"]["circuit"]
    pinned = load(folder, f"rounds: 1, sha256: {free['sha256']}").resolved
    assert pinned["system"]["qpu"]["circuit"] == free
    (folder / "c.stim").write_text(CIRCUIT + "# another\n")
    assert problem(folder, f"rounds: 1, sha256: {free['sha256']}").code == "E403"
    assert load(folder).resolved["system"]["qpu"]["circuit"] != free


def test_noise_of_the_file_is_left_alone(folder: Path) -> None:
    (folder / "c.stim").write_text(CIRCUIT.replace("M 0 0", "M(0.125) 0 0"))
    circuit = load(folder, noise="from_circuit").scenario.system.qpu.circuit
    assert circuit.bases == ("Z",)
    assert circuit.code == "c.stim"


def test_pipes_devices_and_folders_are_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    begun = time.monotonic()
    for name in ("pipe", "/dev/zero", "sub", "gone/c.stim", "a" * 300):
        found = problem(folder, file=name)
        assert (found.code, found.dotted) == ("E403", "system.qpu.circuit.file")
    assert time.monotonic() - begun < 5


def test_a_huge_file_is_not_read(folder: Path) -> None:
    with (folder / "c.stim").open("r+b") as file:
        file.truncate((16 << 20) + 1)
    found = problem(folder)
    assert (found.code, found.got) == ("E403", "more than 16 MiB")


NESTED = {
    "plain": ("REPEAT 2 {\n", "}\n"),
    "hidden-by-comments": ("REPEAT 2 {\n#}}}}\x0b}\u2028}\n", "}\n"),
    "hidden-by-tags": ("REPEAT[}}#] 2 {\n", "}\n"),
    "hidden-by-crlf": ("REPEAT 2 {\r\n# }\r}\n", "}\n"),
}


@pytest.mark.parametrize("name", NESTED)
def test_deep_blocks_do_not_overrun_the_stack(folder: Path, name: str) -> None:
    """100,000 levels end a process inside stim's parser: seen from outside."""
    begin, end = NESTED[name]
    (folder / "c.stim").write_text(begin * 100_000 + "M 0\n" + end * 100_000, newline="")
    change = "system.qpu.circuit={family: user_stim, file: c.stim, rounds: 1}"
    command = [sys.executable, "-m", "hil", "check", "user_circuit.yaml", "--set", change]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "too many REPEAT blocks" in done.stderr
    assert f"at most {MAX_NESTING}" in done.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("M 70000\n", "too many qubits in the circuit"),
        ("REPEAT 2000000 {\n    DETECTOR(0) rec[-1]\n}\n", "too many detectors in the circuit"),
        ("OBSERVABLE_INCLUDE(4000000000)\n", "too many observables in the circuit"),
        ("REPEAT 20000 {\n    DETECTOR(0) rec[-1]\n}\n", "too many detectors in one round"),
        ("# a line\n" * (1 << 20), "too many lines in the circuit"),
        (
            "SHIFT_COORDS(" + ",".join("0" * 17) + ")\n",
            "too many coordinates of one detector or shift in the circuit",
        ),
        (
            "REPEAT 2 {\nDETECTOR(" + ",".join("1" * 300) + ") rec[-1]\n}\n",
            "too many coordinates of one detector or shift in the circuit",
        ),
    ],
)
def test_too_large(folder: Path, text: str, what: str) -> None:
    (folder / "c.stim").write_text(CIRCUIT + text)
    found = problem(folder)
    assert (found.code, found.what) == ("E507", what)


@pytest.mark.parametrize("line", ["[" * (1 << 20), "R[" * (1 << 19), "M 0 " + "[\\n" * (1 << 18)])
def test_open_tags_take_no_time_and_no_memory(folder: Path, line: str) -> None:
    (folder / "c.stim").write_text(CIRCUIT + line)
    begun = time.monotonic()
    assert problem(folder).code == "E507"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_an_empty_file_is_no_circuit(folder: Path, text: str) -> None:
    (folder / "c.stim").write_text(text)
    found = problem(folder)
    assert (found.code, found.what) == ("E507", "the circuit gives a decoder nothing to do")


def test_rounds_have_an_upper_limit(folder: Path) -> None:
    assert problem(folder, "rounds: 1000001").code == "E205"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("detector,board\n0,ro0\n1,ro1\n", (("ro0", ""), ("ro1", ""))),
        ("1, ro1 ,east\n\n0,ro0,\"a, b\"\r\n", (("ro0", "a, b"), ("ro1", "east"))),
    ],
)  # fmt: skip
def test_layouts(text: str, rows: tuple[tuple[str, str], ...]) -> None:
    assert parse_layout(text, "l.csv", 2) == rows


def test_first_noise_of_a_circuit() -> None:
    assert noise_of(stim.Circuit(CIRCUIT)) == ""
    assert noise_of(stim.Circuit("H 0\nREPEAT 2 {\n    DEPOLARIZE1(0.1) 0\n}\nX_ERROR(1) 0")) == (
        "DEPOLARIZE1(0.1) 0"
    )
    assert noise_of(stim.Circuit("M(0) 0\nE(0.1) X0")) == "E(0.1) X0"
