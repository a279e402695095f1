"""Reading: identity, columns, xarray, pandas, stim b8, records, live following, error texts."""

from __future__ import annotations

import threading
import time

import h5py
import numpy as np
import pytest
import xarray as xr
from trace_cases import META, WIDTHS, assert_same, make_record, make_writer, write_trace

import hil
from hil.errors import TraceError, UsageError
from hil.trace.extras import HopSummary, TraceExtras
from hil.trace.reader import Trace, open_trace
from hil.trace.schema import LIVE_STREAMS, MISSING_PS, STREAMS, block, code

HOP = HopSummary(
    edges_ps=np.array([0, 10, 20, 40]),
    counts=np.array([5, 0, 7], dtype=np.uint64),
    quantiles=np.array([0.5, 0.99]),
    values_ps=np.array([8, 39]),
    low_ps=np.array([7, MISSING_PS]),
    high_ps=np.array([9, MISSING_PS]),
)
EXPECT = block(
    "expect", 2, WIDTHS, id=["ler", "late"], metric=["ler.per_shot", "latency.end_to_end"],
    measured=[0.01, np.nan], verdict=[code("expect", "verdict", n) for n in ("pass", "skipped")],
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    records = [make_record(0, 40, keep=4), make_record(40, 30, keep=4)]
    records[1]["logs"] = block("logs", 1, WIDTHS, level=2, text="späť", round_row=0)
    extras = TraceExtras(expect=EXPECT, summary={"end_to_end": HOP, "queue": HOP})
    target = tmp_path_factory.mktemp("trace") / "t.h5"
    return write_trace(target, records, level="shots", extras=extras, streams=None)


@pytest.fixture
def trace(path):
    with open_trace(path) as opened:
        yield opened


def test_what_a_trace_says_about_itself(trace):
    assert isinstance(trace, Trace)
    assert hil.open_trace is open_trace
    assert trace.run_id == META.run_id
    assert trace.problem_id == META.problem_id
    assert len(trace.content_id) == 64
    assert (trace.exit_status, trace.level, trace.record_level) == ("success", "mil", "shots")
    assert (trace.measured, trace.pace, trace.n_rounds, trace.overflow) == (False, 0, 2, 0)
    assert trace.attrs["format_version"] == "1.0.0"
    assert trace.attrs["arrivals"] == "open_loop"
    assert trace.meta["resolved"] == META.resolved
    assert trace.meta["scenario_yaml"] == META.scenario_yaml
    assert trace.meta["circuit_stim"] == META.circuit_stim
    assert [link["name"] for link in trace.meta["links"]] == ["up", "down"]
    assert np.array_equal(trace.meta["detector_slot"], META.detector_slot)
    assert trace.epoch(0)["params"] == {"p": 0.003}
    assert trace.epoch(0)["dem"] == META.dem
    with pytest.raises(TraceError, match="no such epoch"):
        trace.epoch(7)


def test_columns_slices_and_blocks(trace):
    assert trace.streams == tuple(sorted([*LIVE_STREAMS, "expect"]))
    assert trace.columns("shots") == list(STREAMS["shots"].columns)
    assert trace.rows("shots") == 70
    part = trace.stream("shots", ["shot", "detectors_b8"], 10, 15)
    assert part["shot"].tolist() == [10, 11, 12, 13, 14]
    assert part["detectors_b8"].shape == (5, 3)
    assert trace.stream("shots", ["shot"], 69, 1000)["shot"].tolist() == [69]
    assert trace.stream("shots", ["shot"], 80, 90)["shot"].tolist() == []
    sizes = [len(b["shot"]) for b in trace.iter_blocks("shots", ["shot"], rows=32)]
    assert sizes == [32, 32, 6]
    assert trace.enum_names("shots", "fallback")[8] == "transport_loss"
    with pytest.raises(TraceError, match="no such stream"):
        trace.stream("pakets")
    with pytest.raises(TraceError, match="no such column"):
        trace.stream("shots", ["t_rx_ps"])
    with pytest.raises(TraceError, match="not an enum"):
        trace.enum_names("shots", "shot")


def test_expectations_and_summaries(trace):
    assert trace.expect["id"].tolist() == [b"ler", b"late"]
    assert_same({"expect": trace.expect}, {"expect": EXPECT})
    assert trace.hops == ("end_to_end", "queue")
    got = trace.summary("queue")
    for name in HopSummary.__slots__:
        assert np.array_equal(getattr(got, name), getattr(HOP, name)), name
    with pytest.raises(TraceError, match="no such hop"):
        trace.summary("teleport")


def test_records_come_back_as_the_driver_made_them(trace):
    made = [make_record(0, 40, keep=4, packets=False), make_record(40, 30, keep=4, packets=False)]
    whole = list(trace.records(shots=40))
    for got, want in zip(whole, made, strict=True):
        assert_same(got, want)
        assert set(got) == set(want)
    small = list(trace.records(shots=7))
    assert sum(len(r["shots"]["shot"]) for r in small) == 70
    joined = np.concatenate([r["rounds"]["t_rx_ps"] for r in small])
    assert np.array_equal(joined, trace.stream("rounds")["t_rx_ps"])
    for record in small:
        first = record["shots"]["first_round_row"]
        kept = first != 2**64 - 1
        rows = first[kept].astype(int)
        assert np.array_equal(record["rounds"]["shot"][rows], record["shots"]["shot"][kept])


def test_xarray_opens_every_stream_without_a_warning_and_without_rounding(path, trace):
    groups = [*trace.streams, "summary/end_to_end"]
    for group in groups:
        with xr.open_dataset(path, engine="h5netcdf", group=group) as data:
            assert "phony" not in " ".join(map(str, data.sizes))
            data.load()
            if group in trace.streams:
                assert set(data.data_vars) == set(trace.columns(group))
                for name, values in trace.stream(group).items():
                    kind = data[name].dtype.kind
                    assert values.dtype.kind in (kind, "S"), (group, name)
                    assert np.array_equal(
                        data[name].values, values, equal_nan=values.dtype.kind == "f"
                    )
    with xr.open_dataset(path, engine="h5netcdf") as root:
        assert root["commits"].shape[1] == len(LIVE_STREAMS) + 2
    data = trace.to_xarray("rounds")
    assert data["t_rx_ps"].attrs["clock"] == "nic"
    assert data["status"].attrs["flag_meanings"].startswith("ok late")
    assert data["t_pre_end_ps"].dtype == np.int64


def test_a_time_beyond_double_precision_survives_xarray(tmp_path):
    """2^53 + 1 ps is 2.5 hours; a ``_FillValue`` would make it a float and lose the 1."""
    record = make_record(0, 2)
    times = np.array([2**53 + 1, MISSING_PS] * 3)
    record["rounds"] = record["rounds"] | {"t_rx_ps": times}
    path = write_trace(tmp_path / "t.h5", [record])
    with xr.open_dataset(path, engine="h5netcdf", group="rounds") as data:
        assert data["t_rx_ps"].values.tolist() == times.tolist()
        assert str(data["t_rx_ps"].values.view("m8[ps]")[1]) == "NaT"

    def no_fill(_: str, node: object) -> None:
        assert "_FillValue" not in node.attrs

    with h5py.File(path) as file:
        file.visititems(no_fill)


def test_pandas_shows_names_and_texts(trace):
    frame = trace.to_pandas("packets")
    assert frame["kind"].tolist() == ["tx"] * 4
    assert list(frame["dir"].cat.categories) == ["up", "down"]
    assert trace.to_pandas("logs")["text"].tolist() == ["späť"]
    shots = trace.to_pandas("shots")
    assert shots["detectors_b8"][0] == make_record(0, 40)["shots"]["detectors_b8"][0].tobytes()
    assert shots["failed"].dtype == bool


def test_stim_b8_is_the_bytes_of_the_file_format(trace):
    made = [make_record(0, 40)["shots"], make_record(40, 30)["shots"]]
    want = b"".join(m["detectors_b8"].tobytes() for m in made)
    assert trace.to_stim_b8().tobytes() == want


def test_follow_yields_every_row_once_up_to_the_end(tmp_path):
    records = [make_record(f, 50) for f in range(0, 500, 50)]

    def write() -> None:
        for record in records:
            w.append(record)
            w.flush()
            time.sleep(0.02)
        w.close("success")

    w = make_writer(tmp_path / "t.h5")
    thread = threading.Thread(target=write)
    with Trace(w.part) as trace:
        thread.start()
        blocks = list(trace.follow("shots", ["shot"], poll_s=0.01))
    thread.join()
    assert len(blocks) > 1
    assert np.concatenate([b["shot"] for b in blocks]).tolist() == list(range(500))
    with open_trace(tmp_path / "t.h5") as done:
        assert sum(len(b["shot"]) for b in done.follow("shots", ["shot"])) == 500


def test_follow_gives_up_after_its_patience(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 5))
        w.flush()
        with Trace(w.part) as trace:
            assert trace.exit_status == "running"
            assert trace.content_id == ""
            assert trace.expect == {}
            sizes = [len(b["shot"]) for b in trace.follow("shots", poll_s=0.01, timeout_s=0.05)]
    assert sizes == [5]


def test_errors_say_what_to_do(tmp_path, path):
    with pytest.raises(UsageError, match="no such trace"):
        open_trace(tmp_path / "none.h5")
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 5))
    with pytest.raises(UsageError, match=r"hil trace recover \S*t\.part\.h5"):
        open_trace(tmp_path / "t.h5")
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(TraceError, match=r"cannot open the trace(.|\n)*hil trace recover"):
        open_trace(tmp_path / "x.h5")
    w.part.rename(tmp_path / "killed.h5")
    (tmp_path / "killed.h5").touch()
    for attribute, value, message in (
        ("format", "other", "not a trace"),
        ("format_version", "2.0.0", "unknown major version"),
        ("format_version", "?", "unknown major version"),
    ):
        copy = tmp_path / "copy.h5"
        copy.write_bytes(path.read_bytes())
        with h5py.File(copy, "r+") as file:
            file.attrs[attribute] = value
        with pytest.raises(TraceError, match=message):
            open_trace(copy)


def test_a_newer_minor_version_is_read_and_its_columns_too(tmp_path, path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file.attrs["format_version"] = "1.7.0"
        file["shots/novelty"] = np.arange(70)
    with open_trace(copy) as trace:
        assert trace.columns("shots")[-1] == "novelty"
        assert trace.stream("shots", ["novelty"])["novelty"][-1] == 69
