"""``content_id``: the byte rule with its published self-checks, and what it does not depend on."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from trace_cases import make_record, write_trace

from hil.errors import TraceError
from hil.trace.content import content_id, file_sha256, manifest_path, read_manifest

# Self-checks of the byte rule: regression-and-users, section 1.
PUBLISHED = "89ff42bb61bda0fcfbf52f2974a0cc9c72d788d2d2198998da52cf399e655fdf"
PUBLISHED_CHANGED = "9a5ae0db2ca190481f1133c58de774825ea544146f301fe0708aa0c8ee4f30c0"


def small(path, *, last: int = 3, order: str = "<", **create):
    with h5py.File(path, "w") as file:
        seq = np.array([0, 1, 2, last], dtype=f"{order}u4")
        file.create_dataset("rounds/seq", data=seq, **create)
        bits = np.array([[1, 0], [0, 128]], dtype=np.uint8)
        file.create_dataset("syndromes/detectors_b8", data=bits)
    return path


def identity(path) -> str:
    with h5py.File(path) as file:
        return content_id(file)


def test_published_self_checks(tmp_path):
    assert identity(small(tmp_path / "a.h5")) == PUBLISHED
    assert identity(small(tmp_path / "b.h5", last=5)) == PUBLISHED_CHANGED


def test_byte_order_chunks_and_compression_do_not_matter(tmp_path):
    assert identity(small(tmp_path / "big.h5", order=">")) == PUBLISHED
    packed = small(tmp_path / "packed.h5", chunks=(3,), compression="gzip", shuffle=True)
    assert identity(packed) == PUBLISHED


def test_volatile_columns_logs_ledger_and_scales_stay_out(tmp_path):
    path = small(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["rounds/t_rx_ps"] = np.arange(4)
        file["rounds/t_rx_ps"].attrs["volatile"] = np.uint8(1)
        file["logs/text"] = np.array([b"x"])
        file["commits"] = np.zeros((1, 3))
        file["rounds/row"] = np.arange(4)
        file["rounds/row"].make_scale("row")
        file["meta/host_json"] = "{}"
    assert identity(path) == PUBLISHED
    with h5py.File(path, "r+") as file:
        file["rounds/other"] = np.arange(4)
    assert identity(path) != PUBLISHED


@pytest.mark.parametrize("level", ["rounds", "shots"])
def test_rewrite_and_recomputation_agree(tmp_path, level):
    path = write_trace(tmp_path / "t.h5", [make_record(0, 500), make_record(500, 50)], level=level)
    with h5py.File(path) as file:
        assert content_id(file) == file.attrs["content_id"]


def test_same_rows_give_the_same_identity_however_they_were_cut_into_records(tmp_path):
    whole = make_record(0, 400, packets=False)
    pieces = []
    for first in range(0, 400, 100):
        cut = {}
        for stream, columns in whole.items():
            shot = whole["rounds"]["shot"] if stream == "syndromes" else columns["shot"]
            inside = (shot >= first) & (shot < first + 100)
            cut[stream] = {c: v[inside].copy() for c, v in columns.items()}
        cut["shots"]["first_round_row"] -= np.uint64(first * 3)
        pieces.append(cut)
    a = write_trace(tmp_path / "a.h5", [whole])
    b = write_trace(tmp_path / "b.h5", pieces)
    assert identity(a) == identity(b)


@pytest.mark.parametrize("column", ["shots/detectors_b8", "rounds/status", "decodes/weight"])
def test_a_flipped_byte_changes_the_identity(tmp_path, column):
    path = write_trace(tmp_path / "t.h5", [make_record(0, 100)])
    with h5py.File(path, "r+") as file:
        before = file.attrs["content_id"]
        values = file[column][:]
        values.view(np.uint8).reshape(-1)[17] ^= 1
        file[column][:] = values
        assert content_id(file) != before


def test_measured_times_do_not_enter_but_modelled_ones_do(tmp_path):
    def trace(name: str, shift: int, *, measured: bool) -> str:
        record = make_record(0, 50)
        rounds = record["rounds"]
        record["rounds"] = rounds | {"t_rx_ps": rounds["t_rx_ps"] + shift}
        return identity(write_trace(tmp_path / name, [record], measured=measured))

    assert trace("a.h5", 0, measured=True) == trace("b.h5", 1, measured=True)
    assert trace("c.h5", 0, measured=False) != trace("d.h5", 1, measured=False)


def test_manifest_holds_the_hash_of_the_file_and_foreign_ones_are_refused(tmp_path):
    path = write_trace(tmp_path / "t.h5", [make_record(0, 20)])
    manifest = read_manifest(path)
    assert manifest["sha256"] == file_sha256(path)
    assert manifest["bytes"] == path.stat().st_size
    assert manifest["content_id"] == identity(path)
    for text in ("{", "[]", '{"format": "other"}'):
        manifest_path(path).write_text(text)
        with pytest.raises(TraceError, match="manifest"):
            read_manifest(path)
    manifest_path(path).unlink()
    assert read_manifest(path) is None
