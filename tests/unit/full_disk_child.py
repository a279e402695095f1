"""Process that writes traces while the largest file it may write shrinks (EFBIG for ENOSPC).

A process of its own: the limit is per process, and HDF5 cannot let go of a file that it cannot
flush. Prints one JSON object per trace.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import sys
from pathlib import Path

from trace_cases import make_record, make_writer

from hil.errors import RigError

SEED, RECORDS, SHOTS = 20_261_122, 40, 100


def limit(size: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def rows_of(record: dict) -> int:
    return sum(len(next(iter(columns.values()))) for columns in record.values())


def live(folder: Path, moment: int) -> dict:
    """A live loop that meets the limit at a random place; flushes make commits of all sizes."""
    writer = make_writer(folder / f"live{moment}.h5", measured=True)
    limit(writer.part.stat().st_size + random.Random(f"{SEED} {moment}").randrange(700_000))
    offered, taken, said = 0, [], ""
    for i in range(RECORDS):
        record = make_record(i * SHOTS, SHOTS)
        taken.append(writer.append(record, block=False))
        offered += rows_of(record)
        if i % 4 == 3:
            with contextlib.suppress(RigError):
                writer.flush()
    try:
        writer.close("success")
    except RigError as error:
        said = error.message
    found = {"offered": offered, "overflow": writer.overflow, "last_taken": taken[-1]}
    return {"part": str(writer.part), "said": said} | found


def virtual(folder: Path) -> dict:
    writer = make_writer(folder / "virtual.h5")
    limit(writer.part.stat().st_size + 200_000)
    done, said = 0, ""
    try:
        for i in range(RECORDS):
            writer.append(make_record(i * SHOTS, SHOTS))
            writer.flush()
            done += 1
    except RigError as error:
        said = error.message
    return {"part": str(writer.part), "said": said, "done": done}


def last(folder: Path) -> dict:
    """Room for the live file, none for the final one."""
    writer, said = make_writer(folder / "last.h5"), ""
    for i in range(RECORDS):
        writer.append(make_record(i * SHOTS, SHOTS))
    writer.flush()
    writer._stop()
    limit(100_000)
    try:
        writer.close("success")
    except RigError as error:
        said = error.message
    return {"part": str(writer.part), "said": said}


def main(folder: Path, moments: int) -> None:
    for moment in range(moments):
        sys.stdout.write(json.dumps(live(folder, moment)) + "\n")
        limit(resource.RLIM_INFINITY)
    sys.stdout.write(json.dumps(virtual(folder)) + "\n")
    limit(resource.RLIM_INFINITY)
    sys.stdout.write(json.dumps(last(folder)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
