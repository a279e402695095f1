"""Process that writes a trace until it is killed: ``trace_child.py FILE LEVEL SHOTS``.

The commit period is shortened, so that kills hit regular and extra commits of all kinds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trace_cases import make_record, make_writer

from hil.trace import writer

SHOTS = 701


def batches() -> range:
    return range(0, 10_000_000, SHOTS)


if __name__ == "__main__":
    writer.COMMIT_AFTER_NS = 3_000_000  # type: ignore[misc]
    trace = make_writer(Path(sys.argv[1]), level=sys.argv[2])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for first in batches():
        trace.append(make_record(first, SHOTS))
