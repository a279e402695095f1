"""Every command shown in a document is run, in the order of the document, and must succeed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hil.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = {"", "sh", "bash", "console"}


def _commands(page: Path) -> list[list[str]]:
    """Command lines of ``hil`` in the page's fenced shell blocks, continued lines joined."""
    found: list[list[str]] = []
    language: str | None = None
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            language = None if language is not None else line.removeprefix("```").strip()
        elif language in SHELL and re.match(r"(\.venv/bin/)?hil ", line):
            found.append(shlex.split(line, comments=True)[1:])
    return found


def test_documents_show_commands() -> None:
    assert sum(len(_commands(page)) for page in PAGES) >= 4


def _case(page: Path):
    """A page whose commands run the live profile wants the machine for itself."""
    words = {word for command in _commands(page) for word in command}
    live = "sil" in words or any(word.startswith("bind.profiles.sil.") for word in words)
    marks = [pytest.mark.live] if live else []
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [_case(p) for p in PAGES if _commands(p)])
def test_commands_of_a_page_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process: what starts a process and what that prints has tests of its own."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(tmp_path)
    for command in _commands(page):
        code = main(command)
        printed = capfd.readouterr()
        assert code == 0, f"hil {shlex.join(command)}\n{printed.out}\n{printed.err}"
