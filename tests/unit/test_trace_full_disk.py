"""A disk that fills up: what was committed is whole, what was lost is counted to the row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk_child import RECORDS, SHOTS
from trace_cases import assert_same, expected, make_record

from hil.trace.reader import open_trace
from hil.trace.recover import recover
from hil.trace.validate import validate_trace

HERE = Path(__file__).parent
MOMENTS = 12


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("full")
    command = [sys.executable, str(HERE / "full_disk_child.py"), str(folder), str(MOMENTS)]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(told: dict) -> tuple[int, int]:
    """Recover what is left; rows that are ours, and shots."""
    part = Path(told["part"])
    assert "the trace writer failed" in told["said"]
    assert "File too large" in told["said"]
    assert told["said"].count("\n") == 2, "one message, three lines"
    assert not part.with_name(part.name.replace(".part", "")).exists(), "nothing looks whole"
    final = recover(part)
    assert validate_trace(final).ok
    with open_trace(final) as trace:
        found = {s: trace.stream(s) for s in trace.streams}
        shots = trace.rows("shots")
        rows = sum(trace.rows(s) for s in trace.streams)
    kept = [make_record(i * SHOTS, SHOTS) for i in range(shots // SHOTS)]
    assert_same(found, expected(kept))
    return rows - 1, shots  # the epoch is the writer's own


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_live_loop_goes_on_and_every_lost_row_is_counted(told: list[dict], moment: int) -> None:
    rows, shots = check(told[moment])
    assert rows + told[moment]["overflow"] == told[moment]["offered"]
    assert (
        f"{told[moment]['overflow']} of {told[moment]['offered']} rows are lost"
        in (told[moment]["said"])
    )
    assert not told[moment]["last_taken"]
    assert shots < RECORDS * SHOTS


def test_a_virtual_loop_stops_at_once(told: list[dict]) -> None:
    _, shots = check(told[MOMENTS])
    assert shots == told[MOMENTS]["done"] * SHOTS < RECORDS * SHOTS


def test_a_disk_too_full_for_the_final_file_keeps_the_live_one(told: list[dict]) -> None:
    _, shots = check(told[MOMENTS + 1])
    assert shots == RECORDS * SHOTS
