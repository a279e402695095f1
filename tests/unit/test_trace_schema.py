"""The schema as code: blocks, checks of records, agreement with other rooms and the document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trace_cases import WIDTHS, make_meta, make_record

from gpu_decoder.protocol import Backend, GlobalDecoder, Precision, Reason
from hil.errors import TraceError
from hil.rack import timeline
from hil.trace import schema
from hil.trace.document import BEGIN, END, schema_table
from hil.trace.schema import MISSING_PS, STREAMS, block, check_record, clip, code
from hil.trace.streams import SUMMARY

DOCS = Path(__file__).parents[2] / "docs" / "trace.md"


def packets(n: int = 3, **changes: object) -> schema.Block:
    values = {"link": 0, "dir": 0, "kind": 0, "opcode": 0x2A, "psn": 0, "seq": 0, "request_id": 0}
    return block("packets", n, WIDTHS, **(values | {"len": 40} | changes))


def test_unstated_columns_are_constants_without_memory():
    rows = packets()
    assert rows["t_ps"].tolist() == [MISSING_PS] * 3
    assert rows["round_row"].tolist() == [-1] * 3
    assert rows["t_ps"].strides == (0,)
    assert rows["psn"].strides == (0,)
    check_record({"packets": rows}, WIDTHS)


def test_scalars_arrays_texts_and_wider_integers_are_cast_exactly():
    rows = packets(psn=np.array([0, 1, 2**24 - 1]), t_ps=2**53 + 1)
    assert rows["psn"].dtype == np.dtype("<u4")
    assert rows["t_ps"].tolist() == [2**53 + 1] * 3
    texts = block("logs", 2, WIDTHS, level=1, text=["a", "ä"], logger="hil.x")
    assert texts["text"].tolist() == [b"a", "ä".encode()]
    assert texts["logger"].dtype == np.dtype("S32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"psn": [0, 1, 2**32]}, "do not fit"),
        ({"psn": [0, 1, -1]}, "do not fit"),
        ({"psn": [0.5, 1.0, 2.0]}, "do not fit"),
        ({"psn": [0, 1]}, "another shape"),
        ({"ps": 0}, "unknown column"),
        ({"link": None}, "not stated"),
    ],
)
def test_block_refuses_what_the_schema_cannot_hold(changes, message):
    with pytest.raises(TraceError, match=message):
        packets(**changes)


def test_text_that_is_too_long_is_refused_and_clip_cuts_it_visibly():
    with pytest.raises(TraceError, match="do not fit"):
        block("logs", 1, WIDTHS, level=1, text="x" * 257)
    cut = clip("logs", "text", "ä" * 200)
    assert len(cut) <= 256
    assert cut.decode().endswith("...")
    assert clip("logs", "text", "short") == b"short"


def test_code_knows_members_and_refuses_others():
    assert code("packets", "kind", "rnr_nak") == 8
    assert code("shots", "fallback", "transport_loss") == Reason.TRANSPORT_LOSS
    with pytest.raises(TraceError, match="no such enum member"):
        code("packets", "kind", "teleported")
    with pytest.raises(TraceError, match="unknown stream"):
        code("pakets", "kind", "tx")


def _without(record, stream, column):
    return record | {stream: {c: v for c, v in record[stream].items() if c != column}}


def _with(record, stream, column, values):
    return record | {stream: record[stream] | {column: values}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: _without(r, "shots", "failed"), "columns differ"),
        (lambda r: _with(r, "shots", "extra", r["shots"]["shot"]), "columns differ"),
        (lambda r: _with(r, "shots", "shot", r["shots"]["shot"].astype("i8")), "another type"),
        (lambda r: _with(r, "shots", "shot", r["shots"]["shot"].astype(">u4")), "another type"),
        (lambda r: _with(r, "shots", "epoch", r["shots"]["epoch"][:-1]), "another type or shape"),
        (lambda r: _with(r, "rounds", "shot", r["rounds"]["shot"][::-1]), "ascending"),
        (
            lambda r: r | {"syndromes": {c: v[:-1] for c, v in r["syndromes"].items()}},
            "row-aligned",
        ),
        (lambda r: r | {"pakets": r["packets"]}, "unknown stream"),
    ],
)
def test_check_record_refuses_broken_records(spoil, message):
    record = make_record(0, 5)
    check_record(record, WIDTHS)
    with pytest.raises(TraceError, match=message):
        check_record(spoil(record), WIDTHS)


def test_enums_agree_with_the_rooms_that_own_them():
    assert {s.name: int(s) for s in schema.Status} == {s.name: int(s) for s in timeline.Status}
    owned = {
        ("shots", "fallback"): Reason,
        ("decodes", "backend_executed"): Backend,
        ("decodes", "precision_executed"): Precision,
        ("decodes", "global_executed"): GlobalDecoder,
        ("rounds", "status"): timeline.Status,
    }
    for (stream, column), cls in owned.items():
        members = STREAMS[stream].columns[column].enum
        assert members == {m.name.lower(): int(m) for m in cls}


def test_every_column_is_described_and_times_name_their_clock():
    for spec in [*STREAMS.values(), SUMMARY]:
        for column in spec.columns.values():
            where = f"/{spec.name}/{column.name}"
            assert column.long_name, where
            assert column.units, where
            assert (column.units == "ps") == column.name.endswith("_ps"), where
            if column.name.startswith("t_"):
                assert column.clock, where
                assert column.units == "ps", where
            assert column.numpy_dtype.kind in "uib fS".replace(" ", ""), where
            assert column.numpy_dtype != np.float16, where


def test_measured_times_are_volatile_only_in_measured_runs_and_the_schedule_never_is():
    rounds = STREAMS["rounds"].columns
    for name, column in rounds.items():
        is_time = column.units == "ps" and name != "t_intended_ps"
        assert column.is_volatile(measured=True) == is_time, name
        assert not column.is_volatile(measured=False), name


def test_schema_json_is_canonical_and_complete():
    document = json.loads(schema.schema_json())
    assert schema.schema_json() == schema.schema_json()
    assert sorted(document["streams"]) == sorted(STREAMS)
    named = [c["name"] for c in document["streams"]["rounds"]["columns"]]
    assert named == list(STREAMS["rounds"].columns)


def test_document_is_fresh():
    text = DOCS.read_text()
    table = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert table == schema_table(), "run `python -m hil.trace.document docs/trace.md`"


def test_meta_refuses_tables_of_another_length_and_ids_depend_on_the_problem():
    with pytest.raises(TraceError, match="another length"):
        make_meta(n_detectors=3)
    meta = make_meta()
    assert meta.problem_id == make_meta(run_id="x", argv=[]).problem_id
    for change in ({"dem": "error(0.2) D0"}, {"noise": {}}, {"decoder": {}}, {"circuit_stim": ""}):
        assert make_meta(**change).problem_id != meta.problem_id
    assert (WIDTHS.shot_detectors, WIDTHS.round_detectors, WIDTHS.observables) == (3, 2, 1)
