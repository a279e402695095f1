"""Process that writes a trace until it is killed.

The commit period is shortened, so that kills hit regular and extra commits of all kinds.
"""

from __future__ import annotations

from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

from trace_cases import make_record, make_writer

from hil.trace import writer

SHOTS = 301


STREAMS = ("decodes", "packets", "rounds", "shots", "syndromes")


def main(path: Path, level: str, go: Event, appended: Synchronized) -> None:
    """Write for ever once told to ``go``; ``appended`` counts records, from 1 for the open file."""
    go.wait()
    writer.COMMIT_AFTER_NS = 3_000_000  # type: ignore[misc]
    trace = make_writer(path, level=level, streams=STREAMS)
    appended.value = 1
    for first in range(0, 10_000_000, SHOTS):
        trace.append(make_record(first, SHOTS))
        appended.value += 1
