"""Probes of the machine: processors, clock, memory files, disk, GPU, verbs devices."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from hil.run.doctor.check import Check
from hil.run.doctor.software import compile_cache, writable

_BOTH: Final = ("mil", "sil")
_READS: Final = 20_000
_WORST_TICK_NS: Final = 1000
_LEAST_FREE_BYTES: Final = 1 << 29
_PIN: Final = (
    "import os; cpu = max(os.sched_getaffinity(0)); os.sched_setaffinity(0, {cpu}); "
    "print(cpu, len(os.sched_getaffinity(0)))"
)


def checks() -> list[Check]:
    """All of them, in order of the page."""
    return [
        processors(),
        pinning(),
        clock(),
        memory_files(),
        space("space for results", Path.cwd()),
        space("space for temporary files", Path(tempfile.gettempdir())),
        compile_cache(),
        gpu(),
        verbs(),
    ]


def processors(usable: int | None = None) -> Check:
    """Processors this process may use: rack, node and decode workers share them."""
    affinity = getattr(os, "sched_getaffinity", None)
    n = usable if usable is not None else len(affinity(0)) if affinity else os.cpu_count() or 1
    fix = "" if n >= 2 else "a live run wants two: its wall timing says little here"
    detail = f"{n} usable of {os.cpu_count()}"
    return Check("machine", "processors", "ok" if n >= 2 else "absent", detail, fix)


def pinning(command: tuple[str, ...] = (sys.executable, "-c", _PIN)) -> Check:
    """Bind a child process to one processor."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            command, capture_output=True, text=True, timeout=20, check=True
        )
        cpu, count = done.stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        text = f"a child could not bind itself: {type(error).__name__}"
        return Check("machine", "processor pinning", "absent", text)
    good = count == "1"
    detail = f"a child bound itself to processor {cpu}" if good else f"{count} left of one"
    return Check("machine", "processor pinning", "ok" if good else "absent", detail)


def clock(read_ns: Callable[[], int] = time.monotonic_ns) -> Check:
    """Smallest step that the monotonic clock shows."""
    stamps = [read_ns() for _ in range(_READS)]
    steps = [b - a for a, b in pairwise(stamps)]
    backwards = any(step < 0 for step in steps)
    least = min((step for step in steps if step > 0), default=0)
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text().strip() if source.exists() else "unknown source"
    detail = f"CLOCK_MONOTONIC ({name}): smallest step seen {least} ns in {_READS} reads"
    if backwards or not 0 < least <= _WORST_TICK_NS:
        fix = "choose a clock source with a tick below 1 us (tsc)"
        detail += "; it ran backwards" if backwards else ""
        return Check("machine", "clock", "broken", detail, fix, ("sil",))
    return Check("machine", "clock", "ok", detail, needed_by=("sil",))


def memory_files(folder: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - looked at on purpose
    """Shared memory files: stamps of a live run."""
    if writable(folder) and folder.is_dir():
        free = shutil.disk_usage(folder).free
        return Check("machine", "shared memory", "ok", f"{folder}: {_size(free)} free")
    detail = f"{folder} cannot be written: stamps of live runs go to {tempfile.gettempdir()}"
    return Check("machine", "shared memory", "absent", detail)


def space(name: str, folder: Path) -> Check:
    """Room on a disk, and whether it can be written."""
    if not writable(folder):
        return Check("machine", name, "broken", f"{folder} cannot be written",
                     "work in a folder of your own, or set TMPDIR", _BOTH)  # fmt: skip
    free = shutil.disk_usage(folder).free
    good = free >= _LEAST_FREE_BYTES
    return Check(
        "machine",
        name,
        "ok" if good else "broken",
        f"{folder}: {_size(free)} free",
        "" if good else f"free at least {_size(_LEAST_FREE_BYTES)}",
        _BOTH,
    )


def gpu(search: str | None = None, library: str = "libcuda.so.1") -> Check:
    """What can be seen of a GPU without computing on it."""
    seen = []
    try:
        ctypes.CDLL(library)
        seen.append(f"{library} loads")
    except OSError:
        pass
    command = shutil.which("nvidia-smi", path=search)
    if command is not None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell
                [command, "-L"], capture_output=True, text=True, timeout=20, check=False
            )
            listed = [line.partition(" (UUID")[0] for line in done.stdout.strip().splitlines()]
            good = done.returncode == 0 and listed
            seen.append(f"nvidia-smi lists {', '.join(listed)}" if good
                        else f"nvidia-smi ends with {done.returncode}")  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            seen.append(f"nvidia-smi does not answer: {type(error).__name__}")
    if any("lists" in text for text in seen):
        return Check("machine", "GPU", "ok", f"{'; '.join(seen)}; nothing was computed on it")
    return Check("machine", "GPU", "absent", "; ".join(seen) or f"no {library}, no nvidia-smi")


def verbs(folder: Path = Path("/sys/class/infiniband")) -> Check:
    """RDMA devices that the kernel lists."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if not names:
        return Check("machine", "RDMA device", "absent", f"{folder} lists none")
    detail = f"{folder} lists {', '.join(names)}; nothing was sent through it"
    return Check("machine", "RDMA device", "ok", detail)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
