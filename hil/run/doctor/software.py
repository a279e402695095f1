"""Probes of what is installed: packages, extras, simulators, browser, compile cache."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import hil
from hil.run.doctor.check import Check

_BOTH: Final = ("mil", "sil")
_REQUIREMENT: Final = re.compile(r"\s*([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_TOOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "verilator": ("verilator",),
    "iverilog": ("iverilog",),
    "browser": ("chromium", "chromium-browser", "google-chrome", "firefox"),
}
_VERSION_FLAG: Final = {"iverilog": "-V"}


def packages(requires: Iterable[str] | None = None) -> list[Check]:
    """Python and the packages that every run needs."""
    found = [
        Check("installed", "python", "ok", platform.python_version(), needed_by=_BOTH),
        Check("installed", "hil", "ok", f"{hil.__version__} in {Path(hil.__file__).parent}"),
    ]
    listed = _requirements() if requires is None else list(requires)
    if not listed:
        fix = "install it: pip install -e ."
        what = "hil is not installed as a package; what it needs is not known"
        return [*found, Check("installed", "requirements", "absent", what, fix)]
    core = [line for line in listed if not _EXTRA.search(line)]
    missing = [problem for line in core if (problem := _problem(line))]
    if missing:
        fix = f"pip install {' '.join(repr(line) for line in missing)}"
        detail = f"missing or too old: {', '.join(missing)}"
        return [*found, Check("installed", "core packages", "broken", detail, fix, _BOTH)]
    versions = ", ".join(f"{_name(line)} {_version(_name(line))}" for line in core)
    return [*found, Check("installed", "core packages", "ok", versions, needed_by=_BOTH)]


def extras(
    requires: Iterable[str] | None = None, names: Iterable[str] | None = None
) -> list[Check]:
    """Every optional part: what it brings, and how to get it."""
    listed = _requirements() if requires is None else list(requires)
    known = _extras() if names is None else list(names)
    return [_extra(name, listed) for name in known]


def _extra(name: str, listed: list[str]) -> Check:
    lines = [
        line.partition(";")[0].strip()
        for line in listed
        if (match := _EXTRA.search(line)) and match[1] == name
    ]
    parts = [line for line in lines if _name(line) != "hil"]
    if not parts:
        return Check("installed", f"extra {name}", "absent", "not built yet: brings nothing")
    missing = [_name(line) for line in parts if _problem(line)]
    there = ", ".join(f"{_name(p)} {_version(_name(p))}" for p in parts if not _problem(p))
    if missing:
        detail = f"without {', '.join(missing)}" + (f"; has {there}" if there else "")
        return Check("installed", f"extra {name}", "absent", detail, f"pip install 'hil[{name}]'")
    return Check("installed", f"extra {name}", "ok", there)


def tools(search: str | None = None) -> list[Check]:
    """Simulators and a browser: not needed by the levels that are built.

    Args:
        search: folders to look in instead of ``PATH``.
    """
    return [_tool(name, commands, search) for name, commands in _TOOLS.items()]


def _tool(name: str, commands: tuple[str, ...], search: str | None) -> Check:
    for command in commands:
        found = shutil.which(command, path=search)
        if found is None:
            continue
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell
                [found, _VERSION_FLAG.get(command, "--version")],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check("tools", name, "absent", f"{found} does not start: {error}")
        said = (done.stdout or done.stderr).strip().splitlines()
        if done.returncode != 0:
            return Check("tools", name, "absent", f"{found} ends with {done.returncode}")
        return Check("tools", name, "ok", f"{said[0] if said else 'no version'} ({found})")
    return Check("tools", name, "absent", f"none of {', '.join(commands)} on PATH")


def compile_cache(places: Iterable[Path] | None = None) -> Check:
    """Numba keeps compiled kernels beside the sources or in the user's cache."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    sources = Path(hil.__file__).parent / "rack" / "__pycache__"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    candidates = list(places or ([Path(own)] if own else [sources, user]))
    for place in candidates:
        if writable(place):
            return Check("machine", "compile cache", "ok", str(place), needed_by=_BOTH)
    return Check(
        "machine",
        "compile cache",
        "broken",
        f"not writable: {', '.join(map(str, candidates))}",
        "set NUMBA_CACHE_DIR to a folder that can be written",
        _BOTH,
    )


def writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, or in the nearest folder above that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _requirements() -> list[str]:
    try:
        return metadata.requires("hil") or []
    except metadata.PackageNotFoundError:
        return []


def _extras() -> list[str]:
    try:
        return metadata.metadata("hil").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _name(line: str) -> str:
    match = _REQUIREMENT.match(line)
    return match[1] if match else line


def _problem(line: str) -> str:
    """The requirement if it is not met, else an empty text."""
    match = _REQUIREMENT.match(line)
    version = _version(_name(line))
    least = match[2] if match else None
    old = version and least and _numbers(version) < _numbers(least)
    return line.partition(";")[0].strip() if not version or old else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
