"""Compares the tests that were skipped with ``tests/expected_skips.toml``.

A skip that nobody expects is a failure: it can hide breakage. Expected are the tests listed for the
lane, and tests that need an optional part that is really missing. Reads JUnit files.
Usage: ``python tools/check_skips.py junit.xml ...``.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

ALLOWED = Path(__file__).resolve().parent.parent / "tests" / "expected_skips.toml"


def skipped(junit: Path) -> dict[str, str]:
    """Test name -> reason of every skipped test of one file."""
    found = {}
    for case in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - our own file
        skip = case.find("skipped")
        if skip is not None:
            found[f"{case.get('classname')}::{case.get('name')}"] = skip.get("message") or ""
    return found


def missing(what: str) -> bool:
    """Whether a module, ``command:``, ``library:`` or ``cache:`` file cannot be found here."""
    kind, _, name = what.rpartition(":")
    if kind == "command":
        return shutil.which(name) is None
    if kind == "cache":
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return not (Path(cache) / name).exists()
    if kind == "library":
        try:
            ctypes.CDLL(name)
        except OSError:
            return True
        return False
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:  # its parent package
        return True


def expected(name: str, why: str, tests: list[str], optional: dict[str, str]) -> bool:
    """Whether a skip is one of the lane's, or of a test whose optional part is missing."""
    need = re.match(r"needs (\w+): ", why)
    part = optional.get(need[1]) if need else None
    return name in tests or (part is not None and missing(part))


def main() -> int:
    """Exit code 0 if every skip is expected in this lane."""
    lane = "root" if os.name == "posix" and os.geteuid() == 0 else "user"
    listed = tomllib.loads(ALLOWED.read_text())
    found = {name: why for file in sys.argv[1:] for name, why in skipped(Path(file)).items()}
    unexpected = {
        name: why
        for name, why in found.items()
        if not expected(name, why, listed[lane]["tests"], listed["optional"])
    }
    for name, why in unexpected.items():
        print(f"unexpected skip: {name}: {why}")
    return 1 if unexpected else 0


if __name__ == "__main__":
    raise SystemExit(main())
