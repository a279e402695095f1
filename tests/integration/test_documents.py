"""Every command shown in a document is run, in the order of the document, and must succeed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
            found.append([sys.executable, "-m", "hil", *shlex.split(line, comments=True)[1:]])
    return found


def test_documents_show_commands() -> None:
    assert sum(len(_commands(page)) for page in PAGES) >= 4


def _case(page: Path):
    """A page whose commands run the live profile wants the machine for itself."""
    words = {word for command in _commands(page) for word in command}
    live = "sil" in words or any(word.startswith("bind.profiles.sil.") for word in words)
    marks = [pytest.mark.live] if live else []
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [_case(p) for p in PAGES if _commands(p)])
def test_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    for command in _commands(page):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command[2:])}\n{done.stdout}\n{done.stderr}"
