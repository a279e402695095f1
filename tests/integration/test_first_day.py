"""The first hour with the command line: init, list, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hil.cli import main
from hil.run import catalogue

FIRST = "first.yaml"


def _table(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[dict[str, str]]]:
    assert main(["list", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_starter_runs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "new"
    assert main(["init", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / FIRST)
    assert all(f"hil {word}" in said.err for word in ("check", "run", "doctor", "list"))
    assert [p.name for p in folder.iterdir()] == [FIRST]
    for profile in ("mil", "sil"):
        assert main(["check", str(folder / FIRST), "--bind", profile]) == 0
    begin = time.monotonic()
    assert main(["run", str(folder / FIRST), "--out", str(tmp_path / "run"), "-q"]) == 0
    assert time.monotonic() - begin < 60, "it takes about two seconds; compiling once takes longer"
    first = (folder / FIRST).read_text()
    assert sum("#" in line for line in first.splitlines()) > 15, "it explains itself"


@pytest.mark.live
def test_the_starter_runs_live(tmp_path: Path, loopback: tuple[str, str]) -> None:
    main(["init", str(tmp_path / "new")])
    network = "bind.profiles.sil.network"
    code = main(
        ["run", str(tmp_path / "new" / FIRST), "--bind", "sil", "-q", "--out", str(tmp_path / "r"),
         "--set", f"{network}.rack_address={loopback[0]}",
         "--set", f"{network}.node_address={loopback[1]}",
         "--set", "run.shots=1000", "--set", "run.warmup.shots=0"]
    )  # fmt: skip
    assert code == 0


def test_init_leaves_everything_alone_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("x")
    for target in (tmp_path, tmp_path / "mine"):
        assert main(["init", str(target)]) == 2
        assert "there is something already" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mine", "x")]
    assert main(["init", str(tmp_path / "mine" / "below")]) == 3
    (tmp_path / "empty").mkdir()
    assert main(["init", str(tmp_path / "empty")]) == 0


def test_scenarios_are_listed_broken_ones_too(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (scenarios / "surface_d5.yaml").read_text()
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "bad.yaml").write_text(text.replace("distance: 5", "distance: 4"))
    (tmp_path / "ugly.yaml").write_bytes(b"\xff\xfe: [")
    bad, good, ugly = _table(capsys, "scenarios", "--folder", str(tmp_path))["scenarios"]
    assert (good["id"], good["problem"], good["use"]) == ("surface-d5", "", "sil")
    assert good["profiles"] == ["mil", "sil"]
    assert "E501" in bad["problem"]
    assert "E101" in ugly["problem"]
    assert main(["list", "scenarios", "--folder", str(tmp_path)]) == 0
    assert "broken" in capsys.readouterr().out
    assert main(["list", "--folder", str(tmp_path / "absent")]) == 2


def test_shipped_things_are_listed(scenarios: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _table(capsys, "--folder", str(scenarios))
    assert {row["id"] for row in found["scenarios"]} >= {"surface-d5", "surface-d7-mil"}
    assert not [row for row in found["scenarios"] if row["problem"]]
    assert {"pymatching", "pymatching_corr"} <= {row["name"] for row in found["decoders"]}
    assert all(row["version"] for row in found["decoders"])
    assert {row["name"] for row in found["links"]} >= {"virtual", "soft_roce"}
    racks = {row["name"]: row["evidence"] for row in found["profiles"]}
    assert racks["generic-fpga"] == [["assumed", 3], ["rtl", 1]]


def test_evidence_stands_weakest_first() -> None:
    data = {"a": [{"evidence": "measured"}], "b": {"evidence": "doc"}, "c": {"evidence": "rtl"}}
    assert sorted(catalogue._evidence(data), key=catalogue.WEAKEST_FIRST.index) == [
        "assumed", "rtl", "measured"
    ]  # fmt: skip


def _complete(shell: str, words: str, cwd: Path) -> str:
    """What a shell's completion asks, and what it is told (typer's protocol)."""
    variables = {"_HIL_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        variables |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    else:
        variables |= {"_TYPER_COMPLETE_ARGS": words}
    done = subprocess.run(
        [sys.executable, "-c", "from hil.cli import script; script()"],
        env=os.environ | variables, capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_profiles(shell: str, scenarios: Path) -> None:
    folder = scenarios.parent
    assert {"doctor", "init", "list", "run", "wire"} <= {
        word for word in ("doctor", "init", "list", "run", "wire", "absent")
        if word in _complete(shell, "hil ", folder)
    }  # fmt: skip
    assert "decode" in _complete(shell, "hil wire d", folder)
    assert "profiles" in _complete(shell, "hil list p", folder)
    found = _complete(shell, "hil run scenarios/surface_d5.yaml --bind ", folder)
    assert "mil" in found
    assert "sil" in found
    assert "mil" not in _complete(shell, "hil run scenarios/surface_d5.yaml --bind s", folder)
    assert "nvqlink" in _complete(shell, "hil rack show nv", folder)
    assert "mil" not in _complete(shell, "hil run no.yaml --bind ", folder), "and no error either"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_is_for_that_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from hil.cli import script; script()"],
        env=os.environ | {"_HIL_COMPLETE": f"source_{shell}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ("complete -o default -F" if shell == "bash" else "#compdef hil") in done.stdout
