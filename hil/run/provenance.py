"""Where a run came from: host, software, git, command. Facts only; nothing here is judged."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import hil

_PACKAGES = ("h5py", "numba", "numpy", "onnxruntime", "pymatching", "scipy", "simpy", "stim")


def software() -> dict[str, str]:
    """Versions of this distribution, Python and what computes."""
    versions = {"hil": hil.__version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}


def host() -> dict[str, str]:
    """Machine, operating system, usable processors, clock."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processors": str(len(affinity(0)) if affinity else os.cpu_count()),
        "clock": "CLOCK_MONOTONIC",
    }


def git() -> dict[str, str]:
    """Commit and state of the source tree; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell
                ["git", "-C", str(here), *words],  # noqa: S607 - git as the user has it
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = ask("rev-parse", "HEAD")
    if sha is None:
        return {}
    return {"sha": sha, "dirty": "yes" if ask("status", "--porcelain") else "no"}


def command() -> list[str]:
    """The command line as typed, program name shortened."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def as_pairs(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Facts as the report takes them."""
    return tuple(facts.items())
