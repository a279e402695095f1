"""The repository describes itself truthfully: map, sizes, commands, machine paths."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_readme_map_names_every_top_folder() -> None:
    folders = {name.split("/")[0] for name in _tracked() if "/" in name}
    section = (ROOT / "README.md").read_text().split("## Map")[1].split("## ")[0]
    mapped = set(re.findall(r"^\| `([^`/]+)/` \|", section, re.MULTILINE))
    assert mapped == folders


def test_readme_shows_the_two_commands_first() -> None:
    first = (ROOT / "README.md").read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == [
        "make run", "make test"
    ]  # fmt: skip


def test_no_module_is_too_long() -> None:
    long = {
        name: lines
        for name in _tracked()
        if name.endswith(".py") and (lines := len((ROOT / name).read_text().splitlines())) > 800
    }
    assert not long


@pytest.mark.parametrize("word", ["/" + "work/", "index" + "-url", "/" + "root/"])
def test_no_machine_path_or_registry_in_tracked_files(word: str) -> None:
    bad = []
    for name in _tracked():
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if word in text:
            bad.append(name)
    assert not bad


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for name in _tracked():
        if not name.endswith(".md"):
            continue
        page = ROOT / name
        broken += [
            f"{name}: {target}"
            for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
            if not target.startswith("http") and not (page.parent / target).exists()
        ]
    assert not broken


def test_names_that_say_nothing_are_not_used() -> None:
    banned = {"utils", "common", "helpers", "manager", "misc"}
    assert not [n for n in _tracked() if Path(n).stem in banned]
