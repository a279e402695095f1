"""Process that writes a trace until it is killed.

The commit period is shortened, so that kills hit regular and extra commits of all kinds.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from trace_cases import make_record, make_writer

from hil.trace import writer

SHOTS = 701


def main(path: Path, level: str, ready: Connection) -> None:
    writer.COMMIT_AFTER_NS = 3_000_000  # type: ignore[misc]
    trace = make_writer(path, level=level)
    ready.send("ready")
    for first in range(0, 10_000_000, SHOTS):
        trace.append(make_record(first, SHOTS))
