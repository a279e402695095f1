"""The writer: what goes in comes out, commits are whole, overflow is exact, errors surface."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from trace_cases import (
    BLOCKS,
    OVERFLOW_BIT,
    WIDTHS,
    assert_same,
    expected,
    make_meta,
    make_record,
    make_writer,
    one_fault,
    write_trace,
)

from hil.errors import RigError, TraceError, UsageError
from hil.trace import layout, live, writer
from hil.trace.reader import Trace, open_trace
from hil.trace.recover import recover
from hil.trace.schema import Dq, block
from hil.trace.validate import validate_trace


def read_all(path) -> dict:
    with open_trace(path) as trace:
        return {s: trace.stream(s) for s in trace.streams}


@pytest.mark.parametrize(("level", "keep"), [("rounds", 1), ("shots", 7)])
def test_everything_comes_back_with_absolute_references(tmp_path, level, keep):
    records = [make_record(first, 300, keep=keep) for first in range(0, 1500, 300)]
    records.append(one_fault())
    path = write_trace(tmp_path / "t.h5", records, level=level, streams=None)
    assert_same(read_all(path), expected(records))
    assert validate_trace(path).ok
    assert not path.with_name("t.part.h5").exists()


def test_regular_commits_hold_whole_chunks_of_every_fixed_rate_stream(tmp_path):
    records = [make_record(first, 3000) for first in range(0, 30_000, 3000)]
    path = write_trace(tmp_path / "t.h5", records)
    shots = layout.commit_shots("rounds", 2, WIDTHS)
    with h5py.File(path) as file:
        ledger = file["commits"][:]
        columns = json.loads(file["commits"].attrs["columns"])
        by_name = dict(zip(columns, ledger.T, strict=True))
        assert file["rounds/t_rx_ps"].chunks == (shots * BLOCKS,)
        assert file["shots/shot"].chunks == (shots,)
        assert file["decodes/shot"].chunks == (shots,)
    regular = slice(1, -1)
    assert len(ledger) == 2 + 30_000 // shots
    assert np.all(by_name["/shots"][regular] % shots == 0)
    assert np.all(by_name["/rounds"][regular] == by_name["/shots"][regular] * BLOCKS)
    assert np.all(by_name["/decodes"][regular] == by_name["/shots"][regular])
    assert by_name["/shots"][-1] == 30_000


def test_a_fault_is_committed_at_once_and_flush_commits_the_rest(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 10))
        w.append(one_fault())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with Trace(w.part) as trace:
                if trace.rows("faults"):
                    assert trace.rows("shots") == 10
                    break
        else:
            pytest.fail("no commit after a fault")
        w.append(make_record(10, 5))
        w.flush()
        with Trace(w.part) as trace:
            assert trace.rows("shots") == 15


def test_rows_never_wait_longer_than_the_limit_for_a_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_AFTER_NS", 50_000_000)
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 10))
        deadline = time.monotonic() + 10
        with Trace(w.part) as trace:
            while trace.refresh().rows["shots"] != 10:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_unselected_streams_are_left_out_and_references_to_them_are_missing(tmp_path):
    path = write_trace(tmp_path / "t.h5", [make_record(0, 20)], streams=["packets"])
    with open_trace(path) as trace:
        assert trace.streams == ("epochs", "expect", "packets", "shots")
        assert trace.stream("packets", ["round_row"])["round_row"].tolist() == [-1, -1]
        assert set(trace.stream("shots")["first_round_row"].tolist()) == {2**64 - 1}
    assert validate_trace(path).ok
    brought = write_trace(tmp_path / "u.h5", [make_record(0, 20)], streams=["syndromes"])
    with open_trace(brought) as trace:
        assert "rounds" in trace.streams
    with pytest.raises(TraceError, match="unknown stream"):
        make_writer(tmp_path / "v.h5", streams=["pakets"])


class Gate:
    """Holds the writer thread inside ``take`` until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        original = live.LiveFile.take

        def take(this: live.LiveFile, record: object) -> None:
            if "shots" in record:
                self.inside.release()
                assert self.open.wait(30)
            original(this, record)

        monkeypatch.setattr(live.LiveFile, "take", take)


def test_overflow_is_exact_marked_and_never_blocks_a_live_loop(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    records = [make_record(first, 10, packets=False) for first in range(0, 200, 10)]
    with make_writer(tmp_path / "t.h5", queue_blocks=3) as w:
        began = time.monotonic()
        assert w.append(records[0], block=False)
        assert gate.inside.acquire(timeout=10)
        taken = [w.append(r, block=False) for r in records[1:10]]
        assert taken == [True] * 3 + [False] * 6
        assert time.monotonic() - began < 5
        assert w.overflow == 6 * 10 * (1 + BLOCKS + BLOCKS + 1)  # shots, rounds, syndromes, decodes
        gate.open.set()
        w.flush()
        assert w.append(records[10], block=False)
        w.flush()
        assert w.append(records[11], block=False)
        path = w.close("success")
    kept = [*records[:4], *records[10:12]]
    got, want = read_all(path), expected(kept)
    for stream in ("shots", "rounds"):
        marked = got[stream].pop("dq_mask")
        want[stream].pop("dq_mask")
        after_gap = (got[stream]["shot"] >= 100) & (got[stream]["shot"] < 110)
        assert np.all((marked & OVERFLOW_BIT != 0) == after_gap)
    assert_same(got, want)
    report = validate_trace(path)
    assert report.ok
    assert [f.got for f in report.notes if f.rule == "overflow"] == ["10", "480"]


def test_a_virtual_loop_waits_for_room_and_loses_nothing(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    records = [make_record(first, 10) for first in range(0, 100, 10)]
    with make_writer(tmp_path / "t.h5", queue_blocks=2) as w:
        threading.Timer(0.2, gate.open.set).start()
        for record in records:
            assert w.append(record)
        assert w.overflow == 0
        path = w.close("success")
    assert_same(read_all(path), expected(records))


def test_a_full_disk_surfaces_and_what_was_committed_stays(tmp_path, monkeypatch):
    records = [make_record(0, 10), make_record(10, 10)]
    w = make_writer(tmp_path / "t.h5")
    w.append(records[0])
    w.flush()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(live.ColumnSink, "_put", no_space)
    w.append(records[1])
    with pytest.raises(RigError, match=r"No space left(.|\n)*hil trace recover"):
        w.flush()
    with pytest.raises(RigError, match="No space left"):
        w.append(records[1])
    with pytest.raises(RigError, match="No space left"):
        w.close("success")
    monkeypatch.undo()
    assert not (tmp_path / "t.h5").exists()
    assert_same(read_all(recover(w.part)), expected(records[:1]))


def test_a_full_disk_while_rewriting_keeps_the_live_file(tmp_path, monkeypatch):
    records = [make_record(0, 10)]
    w = make_writer(tmp_path / "t.h5")
    w.append(records[0])

    def no_space(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hil.trace.recover.sync_file", no_space)
    with pytest.raises(RigError, match="No space left"):
        w.close("success")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["t.part.h5"]
    assert_same(read_all(recover(w.part)), expected(records))


LIMITED = """
    import resource, signal, sys
    sys.path.insert(0, sys.argv[2])
    from pathlib import Path
    from trace_cases import make_record, make_writer
    from hil.errors import RigError

    w = make_writer(Path(sys.argv[1]))
    w.append(make_record(0, 5000))
    w.flush()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = w.part.stat().st_size + 100_000 if sys.argv[3] == "run" else 200_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for first in range(5000, 1_000_000 if sys.argv[3] == "run" else 0, 5000):
            w.append(make_record(first, 5000))
        w.close("success")
    except RigError as error:
        print("RIG", error.what)
"""


@pytest.mark.parametrize("when", ["run", "close"])
def test_a_real_write_error_of_the_system_surfaces_and_the_trace_recovers(tmp_path, when):
    code = textwrap.dedent(LIMITED)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.h5", Path(__file__).parent, when],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "RIG the trace writer failed\n", done.stderr
    assert done.returncode == 0
    final = recover(tmp_path / "t.part.h5")
    with open_trace(final) as trace:
        n = trace.rows("shots")
        assert n == 5000 if when == "close" else n >= 5000
        assert trace.stream("shots", ["shot"])["shot"].tolist() == list(range(n))
    assert validate_trace(final).ok


LEFT = """
    import sys
    sys.path.insert(0, sys.argv[2])
    from pathlib import Path
    from trace_cases import make_record, make_writer

    w = make_writer(Path(sys.argv[1]))
    for first in range(0, 30_000, 3000):
        w.append(make_record(first, 3000))
    raise SystemExit(5)
"""


def test_a_process_that_ends_without_closing_ends_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LEFT), tmp_path / "t.h5", Path(__file__).parent],
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    with open_trace(recover(tmp_path / "t.part.h5")) as trace:
        assert trace.rows("shots") == 30_000


def test_a_live_file_that_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "create_ledger", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_writer(tmp_path / "t.h5")
    assert not list(tmp_path.iterdir())


def test_the_thread_reports_a_record_that_breaks_it(tmp_path, monkeypatch):
    with make_writer(tmp_path / "t.h5") as w:
        monkeypatch.setattr(live.LiveFile, "take", lambda *_: 1 / 0)
        w.append(make_record(0, 10))
        with pytest.raises(RigError, match="ZeroDivisionError"):
            w.flush()


def test_an_error_that_no_call_has_reported_comes_out_at_the_end(tmp_path, monkeypatch):
    w = make_writer(tmp_path / "t.h5")
    monkeypatch.setattr(live.LiveFile, "take", lambda *_: 1 / 0)
    with pytest.raises(RigError, match="ZeroDivisionError"), w:
        w.append(make_record(0, 10))


def test_names_levels_and_states_are_checked(tmp_path):
    with pytest.raises(UsageError, match="record level"):
        make_writer(tmp_path / "t.h5", level="packets")
    for name in ("t.hdf5", "t.part.h5"):
        with pytest.raises(UsageError, match=r"NAME\.h5"):
            make_writer(tmp_path / name)
    with pytest.raises(RigError, match="cannot create"):
        make_writer(tmp_path / "nowhere" / "t.h5")
    w = make_writer(tmp_path / "t.h5")
    with pytest.raises(UsageError, match="exit status"):
        w.close("running")
    w.close("aborted")
    with pytest.raises(RigError, match="closed"):
        w.append(make_record(0, 1))
    with pytest.raises(UsageError, match="exists already"):
        make_writer(tmp_path / "t.h5")
    with make_writer(tmp_path / "t.h5", overwrite=True) as again:
        again.close("success")
    with open_trace(tmp_path / "t.h5") as trace:
        assert trace.exit_status == "success"


def test_a_record_against_the_schema_is_refused_at_once_and_the_writer_lives_on(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        record = make_record(0, 5)
        with pytest.raises(TraceError, match="another type"):
            w.append({"shots": record["shots"] | {"shot": record["shots"]["shot"].astype("f4")}})
        w.append(record)
        path = w.close("success")
    assert_same(read_all(path), expected([record]))


def test_leaving_by_an_exception_keeps_a_committed_live_file(tmp_path):
    record = make_record(0, 5)
    w = make_writer(tmp_path / "t.h5")

    def drive() -> None:
        with w:
            w.append(record)
            raise KeyError("driver")

    with pytest.raises(KeyError):
        drive()
    final = recover(w.part)
    with open_trace(final) as trace:
        assert trace.exit_status == "recovered"
    assert_same(read_all(final), expected([record]))


def test_epochs_born_during_the_run_are_expanded_into_meta(tmp_path):
    texts = [b'{"p":0.004}', b"error(0.2) D0 L0"]
    digests = [hashlib.sha256(t).hexdigest() for t in texts]
    record = {
        "blobs": block("blobs", sum(map(len, texts)), WIDTHS,
                       data=np.frombuffer(b"".join(texts), np.uint8)),
        "blob_index": block("blob_index", 2, WIDTHS, offset=[0, len(texts[0])],
                            length=[len(t) for t in texts], sha256=digests, name=["params", "dem"],
                            mime="text/plain"),
        "epochs": block("epochs", 1, WIDTHS, epoch=1, parent=0, first_shot=5, reason=3,
                        params_sha256=digests[0], dem_sha256=digests[1], n_detectors=18,
                        n_observables=1, blob_params=0, blob_dem=1, t_activated_ps=5),
    }  # fmt: skip
    records = [make_record(0, 5), {**record}, {**record}]
    records[2]["epochs"] = record["epochs"] | {"epoch": np.array([2], "u4")}
    path = write_trace(tmp_path / "t.h5", records, streams=None)
    assert_same(read_all(path), expected(records))
    with open_trace(path) as trace:
        assert trace.stream("epochs", ["blob_dem"])["blob_dem"].tolist() == [-1, 1, 3]
        for number in (1, 2):
            assert trace.epoch(number)["params"] == {"p": 0.004}
            assert trace.epoch(number)["dem"] == texts[1].decode()
    assert validate_trace(path).ok


def test_wide_shots_make_smaller_commits_and_long_shots_smaller_chunks():
    wide = make_meta(
        n_detectors=30_000, detector_coords=np.zeros((30_000, 1)),
        detector_round=np.zeros(30_000, "u2"), detector_slot=np.zeros(30_000, "u2"),
    ).widths  # fmt: skip
    assert layout.commit_shots("shots", 31, WIDTHS) == 65_536
    assert layout.commit_shots("shots", 31, wide) == 4096
    assert layout.commit_shots("rounds", 5, WIDTHS) == 20_480 // 6
    assert layout.commit_shots("rounds", 30_000, WIDTHS) == 1
    assert layout.chunk_rows("rounds", "rounds", 5, WIDTHS) == 20_480 // 6 * 6
    long = layout.chunk_rows("rounds", "rounds", 99_999, WIDTHS)
    assert 100_000 % long == 0
    assert long <= 65_536


def test_no_data_bit_is_shared():
    assert len({b.mask for b in Dq}) == len(Dq)
