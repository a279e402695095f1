"""What survives a crash: kills at random points, torn rows, readers beside a running writer."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import h5py
import numpy as np
import pytest
import trace_child
from trace_cases import WIDTHS, assert_same, expected, make_record, make_writer, write_trace

from hil.errors import TraceError, UsageError
from hil.trace import layout, ledger
from hil.trace import recover as recovery
from hil.trace.live import LiveFile
from hil.trace.reader import Trace, open_trace
from hil.trace.recover import recover
from hil.trace.validate import validate_trace

SEED = 20_261_122


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hil.trace.writer"])


def prepare(path: Path, level: str) -> tuple[BaseProcess, Event, Synchronized]:
    """Process that is about to write (starting one takes longer than all the rest)."""
    go, appended = CONTEXT.Event(), CONTEXT.Value("q", 0)
    child = CONTEXT.Process(target=trace_child.main, args=(path, level, go, appended), daemon=True)
    child.start()
    return child, go, appended


def start(path: Path, level: str = "rounds") -> BaseProcess:
    return let_go(*prepare(path, level), records=0)


def let_go(child: BaseProcess, go: Event, appended: Synchronized, *, records: int) -> BaseProcess:
    """Let it write until it has handed over some records."""
    go.set()
    while appended.value <= records:
        assert child.is_alive()
        time.sleep(0.0005)
    return child


def kill(child: BaseProcess) -> None:
    child.kill()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


def wanted(shots: int) -> dict:
    records = [make_record(f, trace_child.SHOTS) for f in range(0, shots, trace_child.SHOTS)]
    return expected(records)


def assert_is_prefix_of_the_run(path: Path) -> int:
    with open_trace(path) as trace:
        want = wanted(trace.rows("shots"))
        for stream in trace_child.STREAMS:
            n = trace.rows(stream)
            got = trace.stream(stream)
            head = {c: v[:n] for c, v in want.get(stream, {}).items()}
            assert (
                n == 0
                or len(
                    head[
                        "round_row"
                        if stream == "packets"
                        else "epoch"
                        if stream != "syndromes"
                        else "n_bits"
                    ]
                )
                == n
            )
            if n:
                assert_same({stream: got}, {stream: head})
        return trace.rows("shots")


@pytest.mark.parametrize("level", ["rounds", "shots"])
def test_a_killed_run_recovers_exactly_to_its_ledger(tmp_path, level):
    rng = random.Random(f"{SEED} {level}")
    recovered = []
    following = prepare(tmp_path / "t0.h5", level)
    for i in range(6):
        child = let_go(*following, records=rng.randrange(5, 60))
        following = prepare(tmp_path / f"t{i + 1}.h5", level)
        time.sleep(rng.uniform(0.0, 0.01))
        kill(child)
        part = tmp_path / f"t{i}.part.h5"
        with Trace(part) as live:
            rows = {s: live.rows(s) for s in live.streams}
        final = recover(part)
        assert not part.exists()
        with open_trace(final) as trace:
            assert {s: trace.rows(s) for s in rows} == rows
            assert trace.exit_status == "recovered"
        recovered.append(assert_is_prefix_of_the_run(final))
        assert i % 4 or validate_trace(final).ok
        final.unlink()
    following[0].kill()
    following[0].join()
    assert sum(n > 0 for n in recovered) >= 2, recovered


def test_a_live_reader_sees_whole_commits_only(tmp_path):
    child = start(tmp_path / "t.h5")
    try:
        polls, seen = 0, set()
        with Trace(tmp_path / "t.part.h5") as trace:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                rows = trace.refresh().rows
                polls += 1
                seen.add(rows["shots"])
                for stream in trace_child.STREAMS:
                    block = trace.stream(stream)
                    assert {len(v) for v in block.values()} == {rows[stream]}
                shot = trace.stream("shots", ["shot"])["shot"]
                assert np.array_equal(shot, np.arange(len(shot)))
                assert rows["rounds"] == rows["syndromes"] == 3 * rows["shots"]
                assert rows["decodes"] == rows["shots"]
        assert polls > 5
        assert len(seen) > 3
        assert not is_free(tmp_path / "t.part.h5")
        with pytest.raises(TraceError, match="still being written"):
            recover(tmp_path / "t.part.h5")
    finally:
        kill(child)
    assert is_free(tmp_path / "t.part.h5")
    assert_is_prefix_of_the_run(recover(tmp_path / "t.part.h5"))


def test_two_readers_of_one_process_see_the_same_rows(tmp_path):
    """HDF5 returns wrong values after a refresh while a second handle is open: so there is one."""
    child = start(tmp_path / "t.h5")
    try:
        with Trace(tmp_path / "t.part.h5") as a, Trace(tmp_path / "t.part.h5") as b:
            n, polls, end = 0, 0, time.monotonic() + 20.0
            enough = 2 * layout.commit_shots("rounds", 2, WIDTHS)
            while time.monotonic() < end and (n <= enough or polls < 20):
                polls += 1
                for trace in (a, b):
                    n = trace.refresh().rows["shots"]
                    shot = trace.stream("shots", ["shot"])["shot"]
                    assert np.array_equal(shot, np.arange(n))
            assert n > enough
            with pytest.raises(TraceError, match="still being written"):
                recover(tmp_path / "t.part.h5")
            kill(child)
            with pytest.raises(TraceError, match="close the open trace"):
                recover(tmp_path / "t.part.h5")
    finally:
        child.kill()
    recover(tmp_path / "t.part.h5")


def is_free(part: Path) -> bool:
    return not ledger.is_held(part)


@pytest.fixture
def torn(tmp_path, monkeypatch) -> Path:
    """Live file whose last commit was cut off before its ledger row."""
    w = make_writer(tmp_path / "t.h5")
    w.append(make_record(0, 30))
    w.flush()
    real = LiveFile._write

    def cut(self: LiveFile, records: list, overflow: int) -> None:
        monkeypatch.setattr(self, "_ledger", self._file["commit_column"])
        with pytest.raises(TypeError):
            real(self, records, overflow)

    monkeypatch.setattr(LiveFile, "_write", cut)
    w.append(make_record(30, 20))
    w._stop()
    monkeypatch.undo()
    return w.part


def test_rows_past_the_ledger_are_neither_read_nor_recovered(torn):
    with h5py.File(torn, "r", swmr=True) as file:
        assert len(file["shots/shot"]) == 50
    with Trace(torn) as trace:
        assert trace.rows("shots") == 30
        assert len(trace.stream("rounds")["shot"]) == 90
    assert validate_trace(torn).has("past-ledger")
    final = recover(torn)
    with open_trace(final) as trace:
        assert_same({s: trace.stream(s) for s in trace.streams}, expected([make_record(0, 30)]))
    assert not validate_trace(final).has("past-ledger")


def test_a_ledger_row_that_was_cut_off_is_ignored(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 30))
        w.flush()
    with h5py.File(w.part, "r+") as file:
        rows = file["commits"]
        n = len(rows)
        rows.resize((n + 2, rows.shape[1]))
        rows[n] = [10**6] * (rows.shape[1] - 1) + [0]
    with h5py.File(w.part) as file:
        got = ledger.read_ledger(file["commits"])
    assert got.rows["shots"] == 30
    assert got.commits == n


def test_a_partial_chunk_never_takes_the_place_of_its_predecessor(tmp_path):
    """Equal sizes would be overwritten in place; a kill in between would tear committed rows."""
    with make_writer(tmp_path / "t.h5") as w:
        column = w._live._sinks["shots"]._columns["detectors_b8"]
        places = []
        for first in range(0, 40, 10):
            w.append(make_record(first, 10, packets=False) | zeros(first))
            w.flush()
            info = column._id.get_chunk_info(0)
            places.append(info.byte_offset)
    assert len(set(places)) == len(places)


def zeros(first: int) -> dict:
    record = make_record(first, 10, packets=False)
    bits = np.zeros_like(record["shots"]["detectors_b8"])
    return {"shots": record["shots"] | {"detectors_b8": bits}}


def test_recovery_refuses_what_it_must_not_touch(tmp_path):
    done = write_trace(tmp_path / "t.h5", [make_record(0, 5)])
    with pytest.raises(UsageError, match="not the name of a live trace"):
        recover(done)
    with pytest.raises(TraceError, match="no such live trace"):
        recover(tmp_path / "u.part.h5")
    with make_writer(tmp_path / "u.h5") as w:
        w.append(make_record(0, 5))
    (tmp_path / "u.h5").write_bytes(done.read_bytes())
    with pytest.raises(TraceError, match="exists already"):
        recover(w.part)
    assert w.part.exists()


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_file_without_content_is_refused_with_a_reason(tmp_path, monkeypatch, content):
    part = tmp_path / "t.part.h5"
    part.write_bytes(content)
    with pytest.raises(TraceError, match="cannot open the live trace"):
        recover(part)
    assert part.exists()


@pytest.mark.parametrize("column", ["shots/detectors_b8", "rounds/t_intended_ps"])
def test_a_damaged_chunk_stops_the_rewrite_and_is_named(tmp_path, column):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 500))
    with h5py.File(w.part) as file:
        place = file[column].id.get_chunk_info(0)
    with w.part.open("r+b") as file:
        file.seek(place.byte_offset + place.size // 2)
        file.write(b"\xff" * 40)
    with pytest.raises(TraceError, match=f"{column}(.|\n)*damaged chunk"):
        recover(w.part)
    assert [p.name for p in tmp_path.iterdir()] == ["t.part.h5"]


@pytest.mark.parametrize("step", ["write_manifest", "sync_file"])
def test_a_crash_during_the_rewrite_leaves_the_live_file(tmp_path, monkeypatch, step):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 50))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recovery, step, crash)
        with pytest.raises(KeyboardInterrupt):
            recover(w.part)
    assert not (tmp_path / "t.h5").exists()
    (tmp_path / "t.h5.tmp").write_bytes(b"left over by a power cut")
    with open_trace(recover(w.part)) as trace:
        assert trace.rows("shots") == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.h5", "t.h5.manifest.json"]


def test_the_live_file_is_of_the_promised_version(tmp_path):
    with make_writer(tmp_path / "t.h5") as w, w.part.open("rb") as file:
        file.seek(8)
        assert file.read(1) == b"\x03"
    assert layout.LIBVER == ("v110", "v110")
