"""A recorder in trouble (full disk, slow sink) must not touch the live loop, and must say so."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hil
from hil.run.runner import RunOptions, run_scenario
from hil.trace import live
from hil.trace.recover import recover
from hil.trace.schema import Dq
from hil.trace.validate import validate_trace

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

SHOTS = 600
ROWS = SHOTS * (1 + 6 + 6 + 1 + 14)
"""Rows of /shots, /rounds, /syndromes, /decodes and /packets of a run without loss."""


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A kind of full disk, and a folder on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":
        yield request.param, folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], check=True)
    try:
        yield request.param, folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "disk", ["limit", pytest.param("tmpfs", marks=pytest.mark.needs("tmpfs"))], indirect=True
)
def test_full_disk_does_not_stop_a_live_loop(
    disk: tuple[str, Path], scenarios: Path, tmp_path: Path, loopback: tuple[str, str]
) -> None:
    kind, folder = disk
    run = _start(scenarios, tmp_path / "clean", loopback)
    clean = _detectors(json.loads(run.communicate(timeout=120)[0]))
    run = _start(scenarios, folder / "run", loopback)
    if kind == "limit":
        _limit_file_size(run, folder / "run" / "trace.part.h5")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 3, err
    assert "Traceback" not in err
    document = json.loads(out)
    assert document["verdict"] == "RIG ERROR"
    headline = document["headline"]
    assert "the trace writer failed" in headline
    assert ("No space left on device" if kind == "tmpfs" else "File too large") in headline
    # The loop: every shot was run and answered, frames left on time.
    detectors = _detectors(document)
    assert detectors["node.shots_primary"] == SHOTS
    assert detectors["rack.reply_ok"] == SHOTS * 7
    late, frames = detectors["rack.late_sends"], detectors["rack.frames_sent"]
    assert late < clean["rack.late_sends"] + 0.25 * frames, "on time as in a run without trouble"
    # Nothing that is not whole looks whole.
    names = {p.name for p in (folder / "run").iterdir()}
    assert "trace.h5" not in names
    assert names <= {"trace.part.h5", "report.json", "junit.xml", "report.html"}
    if "report.json" in names:
        assert json.loads((folder / "run" / "report.json").read_text()) == document
    else:
        assert "the report cannot be written" in err
    # The live trace recovers, and what is not in it was counted.
    lost, offered = map(int, re.search(r"(\d+) of (\d+) rows are lost", headline).groups())
    assert offered == ROWS
    part = shutil.copy(folder / "run" / "trace.part.h5", tmp_path)
    final = recover(Path(part))
    assert validate_trace(final).ok
    with hil.open_trace(final) as trace:
        kept = sum(trace.rows(s) for s in trace.streams) - 1  # less epoch 0
        assert np.array_equal(trace.stream("shots")["shot"], np.arange(trace.rows("shots")))
    assert kept + lost == offered
    assert 0 < lost < offered


def _start(scenarios: Path, out: Path, loopback: tuple[str, str]) -> subprocess.Popen[str]:
    network = "bind.profiles.sil.network"
    command = [
        *(sys.executable, "-m", "hil", "run", str(scenarios / "surface_d5.yaml"), "--json"),
        *("--out", str(out), "--set", f"run.shots={SHOTS}"),
        *("--set", f"{network}.rack_address={loopback[0]}"),
        *("--set", f"{network}.node_address={loopback[1]}"),
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ.copy())


def _detectors(document: dict) -> dict[str, int]:
    return dict(document["facts"]["detectors"])


def _limit_file_size(run: subprocess.Popen[str], part: Path) -> None:
    """From now on the run can write no file beyond a little more than its trace has now."""
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 450_000):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    hard = resource.prlimit(run.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (part.stat().st_size + 30_000, hard))


@pytest.mark.slow
def test_slow_sink_overflow_is_counted_marked_and_a_rig_error(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that takes 0.4 s per record: the queue fills, the loop does not wait."""
    take = live.LiveFile.take

    def slow(self: live.LiveFile, record: dict) -> None:
        if "shots" in record:
            time.sleep(0.4)
        take(self, record)

    monkeypatch.setattr(live.LiveFile, "take", slow)
    network = "bind.profiles.sil.network"
    overrides = [
        *(f"{network}.rack_address={loopback[0]}", f"{network}.node_address={loopback[1]}"),
        f"run.shots={SHOTS}",
    ]
    options = RunOptions(bind="sil", out=tmp_path / "run", overrides=overrides)
    result = run_scenario(scenarios / "surface_d5.yaml", options)
    assert result.exit_code == 3
    assert dict(result.document.facts.detectors)["node.shots_primary"] == SHOTS
    assert validate_trace(result.trace).ok
    with hil.open_trace(result.trace) as trace:
        kept = sum(trace.rows(s) for s in trace.streams if s not in ("epochs", "expect"))
        overflow, shots = trace.overflow, trace.stream("shots")
    assert overflow > 0
    assert kept + overflow == ROWS
    assert f"the recorder lost {overflow} rows" in result.document.headline
    gaps = np.flatnonzero(np.diff(shots["shot"].astype(np.int64)) != 1)
    marked = shots["dq_mask"] & Dq.RECORDER_OVERFLOW.mask != 0
    assert marked[gaps + 1].all(), "the first shot behind a gap says so"
    assert not marked[0]
