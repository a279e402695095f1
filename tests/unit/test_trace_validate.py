"""Validation: a sound trace passes; one deliberately broken trace per rule is caught by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from trace_cases import BLOCKS, WIDTHS, make_record, make_writer, write_trace

from hil.errors import UsageError
from hil.trace.content import content_id, manifest_path
from hil.trace.schema import MISSING_PS, Dq, block
from hil.trace.validate import validate_trace

N = 60
SEED = 20_261_122


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    records = [make_record(0, 40), make_record(40, 20)]
    path = tmp_path_factory.mktemp("sound") / "t.h5"
    return write_trace(path, records)


def test_a_sound_trace_has_nothing_refused_and_nothing_to_note(sound):
    report = validate_trace(sound)
    assert report.refused == []
    assert report.notes == []
    with pytest.raises(UsageError):
        validate_trace(sound.with_name("none.h5"))


def broken(sound, tmp_path, spoil, *, seal=True):
    """Copy of the sound trace with one thing wrong; hashes are made to fit unless told not to."""
    path = tmp_path / "broken.h5"
    shutil.copy(sound, path)
    with h5py.File(path, "r+") as file:
        spoil(file)
        if seal:
            file.attrs["content_id"] = content_id(file)
    return validate_trace(path)


def put(file, column, row, value):
    file[column][row] = value


def retype(file, path, values, **attributes):
    old = dict(file[path].attrs)
    del file[path]
    file[path] = values
    for name, value in (old | attributes).items():
        if name not in ("DIMENSION_LIST",):
            file[path].attrs[name] = value


def shift(column, row, by):
    def spoil(file):
        file[column][row] = file[column][row] + by

    return spoil


def drop_attribute(path, name):
    return lambda file: file[path].attrs.__delitem__(name)


def set_attribute(path, name, value):
    return lambda file: file[path].attrs.__setitem__(name, value)


def shorten(file):
    values = file["rounds/status"][:-3]
    retype(file, "rounds/status", values.astype(file["rounds/status"].dtype))


def tie_shots(file):
    file["shots/shot"][1] = 0


def second_epoch(file):
    file["rounds/epoch"][4] = 1


def both_orders(file):
    shots = file["rounds/shot"][:]
    shots[4 * BLOCKS : 5 * BLOCKS], shots[5 * BLOCKS : 6 * BLOCKS] = 5, 4
    file["rounds/shot"][:] = shots


REFUSED = [
    ("open", "attribute format_version", set_attribute("/", "format_version", "2.0.0")),
    ("open", "attribute format", set_attribute("/", "format", "tarball")),
    ("open", "/commits", lambda f: f.__delitem__("commits")),
    ("open", "static content", lambda f: f["meta"].__delitem__("scenario_yaml")),
    ("root", "attribute pace", lambda f: f.attrs.__delitem__("pace")),
    ("root", "attribute exit_status", set_attribute("/", "exit_status", "great")),
    ("column", "/decodes", lambda f: f.__delitem__("decodes")),
    ("column", "/rounds/t_rx_ps", lambda f: f["rounds"].__delitem__("t_rx_ps")),
    ("dtype", "/rounds/shot", lambda f: retype(f, "rounds/shot", f["rounds/shot"][:].astype("f8"))),
    ("dtype", "/packets/dir", lambda f: retype(f, "packets/dir", f["packets/dir"][:].astype("u1"))),
    ("attribute", "/rounds/t_rx_ps", drop_attribute("rounds/t_rx_ps", "units")),
    ("attribute", "/rounds/t_rx_ps", drop_attribute("rounds/t_rx_ps", "clock")),
    ("attribute", "/shots/shot", drop_attribute("shots/shot", "long_name")),
    ("attribute", "/rounds/t_rx_ps", set_attribute("rounds/t_rx_ps", "units", "ns")),
    ("attribute", "/rounds/t_rx_ps", set_attribute("rounds/t_rx_ps", "clock", "rack")),
    ("attribute", "/shots/shot", set_attribute("shots/shot", "_FillValue", np.uint32(0))),
    ("length", "/rounds/status", shorten),
    ("row", "/shots/row", lambda f: put(f, "shots/row", 7, 8)),
    ("shots-ascend", "/shots/shot", tie_shots),
    ("shots-ascend", "/rounds/shot", both_orders),
    ("rounds-ascend", "/rounds/round", lambda f: put(f, "rounds/round", 4, 0)),
    ("windows", "/decodes/window_first", lambda f: put(f, "decodes/window_last", 4, 10**6)),
    ("windows", "/decodes/window_first", lambda f: put(f, "decodes/window_first", 4, 10**5)),
    ("one-epoch", "/rounds/epoch", second_epoch),
    ("one-epoch", "/decodes/epoch", lambda f: put(f, "decodes/epoch", 4, 1)),
    ("orphan-rows", "/decodes/shot", lambda f: put(f, "decodes/shot", N - 1, N)),
    ("first-row", "/shots/first_round_row", shift("shots/first_round_row", 9, np.uint64(1))),
    ("first-row", "/shots/first_round_row", lambda f: put(f, "shots/first_round_row", 9, 10**6)),
    ("grid", "/rounds/t_intended_ps", shift("rounds/t_intended_ps", 30, 1)),
    ("grid", "/shots/t_start_intended_ps", shift("shots/t_start_intended_ps", 30, -1)),
    ("times-ordered", "/rounds/t_tx_ps", shift("rounds/t_tx_ps", 3, -(10**10))),
    ("times-ordered", "/rounds/t_applied_ps", shift("rounds/t_reply_rx_ps", 30, 10**7)),
    ("times-ordered", "/rounds/t_reply_tx_ps", shift("rounds/t_reply_tx_ps", 5, -150)),
    ("latency-sum", "/rounds/latency_ps", shift("rounds/latency_ps", 5, 1)),
    ("failed", "/shots/failed", lambda f: put(f, "shots/failed", 5, not f["shots/failed"][5])),
    ("enum-name", "/shots/status", lambda f: put(f, "shots/status", 5, 77)),
    ("hash", "/meta/model/circuit", lambda f: put(f, "meta/model/circuit_stim", (), "H 1")),
    ("hash", "/meta/epochs/0/dem", lambda f: put(f, "meta/epochs/0/dem", (), "error(1) D0")),
    ("hash", "/meta/epochs/0/params", lambda f: put(f, "meta/epochs/0/params_json", (), "{}")),
    ("hash", "/epochs/dem_sha256", lambda f: put(f, "epochs/dem_sha256", 0, b"0" * 64)),
]


ORDER_RULES = {"shots-ascend", "rounds-ascend"}  # what they name moves rows off the grid as well


@pytest.mark.parametrize(("rule", "where", "spoil"), REFUSED)
def test_each_broken_trace_is_refused_by_its_rule_only(sound, tmp_path, rule, where, spoil):
    report = broken(sound, tmp_path, spoil)
    assert not report.ok
    found = [f for f in report.refused if f.rule == rule]
    others = {f.rule for f in report.refused} - {rule}
    assert not others or rule in ORDER_RULES, [str(f) for f in report.refused]
    assert found
    assert all(where in f"{f.where} {f.what}" for f in found), found


def test_a_time_that_decreases_from_row_to_row_is_refused_and_a_clock_step_excuses_it(
    sound, tmp_path
):
    def late_row(file, dq=0):
        file["rounds/t_syndrome_ps"][10] += 50_000_000
        for later in ("t_tx_ps", "t_reply_rx_ps", "t_applied_ps"):
            file[f"rounds/{later}"][10] = MISSING_PS
        file["rounds/dq_mask"][10] = dq

    report = broken(sound, tmp_path, late_row)
    assert [f.where for f in report.refused] == ["/rounds/t_syndrome_ps"]
    assert "row 11" in report.refused[0].got
    report = broken(sound, tmp_path, lambda f: late_row(f, Dq.CLOCK_STEP.mask))
    assert report.ok


def test_a_flipped_value_that_breaks_no_rule_is_caught_by_the_identity(sound, tmp_path):
    def flip(file):
        file["shots/detectors_b8"][5, 0] ^= 1

    report = broken(sound, tmp_path, flip, seal=False)
    assert [f.rule for f in report.refused] == ["content"]


def test_a_file_that_differs_from_its_manifest_is_refused(sound, tmp_path):
    path = tmp_path / sound.name
    shutil.copy(sound, path)
    shutil.copy(manifest_path(sound), manifest_path(path))
    assert validate_trace(path).ok
    with h5py.File(path, "r+") as file:
        file.attrs["created_utc"] = "2020"
    assert [f.rule for f in validate_trace(path).refused] == ["manifest"]
    manifest_path(path).write_text("{}")
    assert [f.rule for f in validate_trace(path).refused] == ["manifest"]
    manifest_path(path).unlink()
    report = validate_trace(path)
    assert report.ok
    assert [f.rule for f in report.notes] == ["no-manifest"]


def rows_with(record, stream, **changes):
    old = record[stream]
    new = {c: np.array(v, dtype=old[c].dtype) for c, v in changes.items()}
    return record | {stream: old | {c: np.broadcast_to(v, old[c].shape) for c, v in new.items()}}


def test_things_worth_knowing_are_reported_and_refuse_nothing(tmp_path):
    changes = [
        {"shots": {"fallback": 1}},
        {"shots": {"dq_mask": Dq.HOLDOVER.mask}},
        {"shots": {"dq_mask": Dq.RECORDER_OVERFLOW.mask}},
        {"decodes": {"backend_executed": 3}},
        {"decodes": {"precision_requested": 2}},
        {"decodes": {"global_executed": 1}},
        {"decodes": {"epoch_echo": 4}},
    ]
    records = []
    for first, change in enumerate(changes):
        record = make_record(10 * first, 10)
        for stream, columns in change.items():
            record = rows_with(record, stream, **columns)
        records.append(record)
    report = validate_trace(write_trace(tmp_path / "t.h5", records))
    assert report.ok
    assert {f.rule: f.got for f in report.notes} == {
        "fallback": "10", "holdover": "10", "overflow": "10", "backend-mismatch": "30",
        "epoch-echo": "10",
    }  # fmt: skip


def test_live_and_recovered_traces_say_so(tmp_path):
    with make_writer(tmp_path / "t.h5") as w:
        w.append(make_record(0, 10))
    report = validate_trace(w.part)
    assert report.ok
    assert [f.rule for f in report.notes] == ["status"]


def test_a_damaged_blob_and_a_missing_epoch_are_refused(tmp_path):
    blob = {
        "blobs": block("blobs", 4, WIDTHS, data=np.arange(4)),
        "blob_index": block(
            "blob_index", 1, WIDTHS, offset=0, length=4, sha256="0" * 64, name="x", mime="x"
        ),
    }
    path = write_trace(tmp_path / "t.h5", [make_record(0, 5), blob], streams=["blobs"])
    report = validate_trace(path)
    assert [(f.rule, f.where) for f in report.refused] == [("hash", "/blobs, row 0 of /blob_index")]
    epoch = block("epochs", 1, WIDTHS, epoch=3, first_shot=9, reason=1, params_sha256="0",
                  dem_sha256="0", n_detectors=18, n_observables=1)  # fmt: skip
    report = validate_trace(write_trace(tmp_path / "u.h5", [make_record(0, 5), {"epochs": epoch}]))
    assert [(f.rule, f.where) for f in report.refused] == [("epoch", "/meta/epochs/3")]


@pytest.mark.parametrize("column", ["rounds/t_rx_ps", "shots/detectors_b8", "shots/row"])
def test_a_damaged_chunk_is_named(sound, tmp_path, column):
    path = tmp_path / "t.h5"
    shutil.copy(sound, path)
    with h5py.File(path) as file:
        place = file[column].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(place.byte_offset + place.size // 2)
        file.write(b"\xff" * 8)
    report = validate_trace(path)
    assert [(f.rule, f.where) for f in report.refused] == [("damaged", f"/{column}")]


FUZZ = """
    import random, sys
    from pathlib import Path
    from hil.trace.validate import validate_trace

    path, seed, flips = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng, whole, missed = random.Random(seed), path.read_bytes(), 0
    for _ in range(flips):
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        data = bytearray(whole)
        data[at] ^= bit
        path.write_bytes(data)
        missed += validate_trace(path).ok
    print(missed)
"""


def test_random_flips_are_always_refused_and_never_crash_the_validator(sound, tmp_path):
    path = tmp_path / sound.name
    shutil.copy(sound, path)
    shutil.copy(manifest_path(sound), manifest_path(path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FUZZ), path, str(SEED), "12"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


def test_findings_read_as_one_line():
    from hil.trace.findings import Finding

    text = str(Finding("grid", "/rounds/t_intended_ps", "not on the grid", "row 3: got 5", "6"))
    assert text == "/rounds/t_intended_ps: not on the grid; got row 3: got 5; allowed 6 [grid]"
