"""YAML traps: what tools read in two ways is refused; what is accepted is read alike by all."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hil.scenario.text import read_document
from hil.scenario.yaml_versions import yaml_1_1

SCALARS = [
    "1e-3", "1.0e-3", "1.0e3", "1.0e+3", "1E5", ".5", "5.", "-1.5", "+3", "010", "0o14", "0x1F",
    "0b11", "1_000", "1_0.5", "12:30", "1:30.5", "190:20:30", "yes", "No", "on", "OFF", "true",
    "True", "TRUE", "y", "n", "1.10", "12e4567", ".inf", "-.inf", "08", "0", "-0", "00", "0.0",
    "1.1us", "x_check", "2026", "127.0.0.1", "1e5us", "abc", "e3", "1e", "--1", "1,5", "4096B",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("p: 1e-3", "E101", "write 1.0e-3"),
        ("p: 1.0e3", "E101", "write 1.0e+3"),
        ("on: x", "E101", "quote it: 'on'"),
        ("title: off", "E101", "quote it: 'off'"),
        ("time: 12:30", "E101", "quote it: '12:30'"),
        ("a: 1\na: 2", "E102", "remove one of them"),
        ("a: 010", "E101", "write 10, or quote a text: '010'"),
        ("a: 0o14", "E101", "write 12, or quote a text: '0o14'"),
        ("sha256: 12e4567", "E101", "quote it: '12e4567'"),
        ("a: 2026-99-99", "E101", "quote it: '2026-99-99'"),
        ("{x: 1,5}", "E104", "write 1.5, not 1,5; quote the key if it is a name"),
        ("{shot:20000}", "E104", "write a space after the colon: shot: 20000"),
        ("file: {distance}.onnx", "E101", "quote texts with : { } [ ] # and indent with spaces"),
        ("a: !tag x", "E103", "remove the tag; quote a text that looks like a number"),
        ("a: !!float 1", "E103", "remove the tag; quote a text that looks like a number"),
        ("a: &x {b: 1}\nc: {<<: *x}", "E103", "write it out"),
        ("a: &x {b: *x}", "E103", "write it out"),
        ("a: 1\n---\nb: 2", "E103", "split the file"),
        ("%YAML 1.1\n---\na: 1", "E101", "remove the directive"),
        ("a: ~", "E104", "write a value or remove the key"),
        ("a:", "E104", "write a value or remove the key"),
        ("a: [1, null]", "E104", "write a value or remove the key"),
        ("5: x", "E104", "quote the key"),
        ("true: x", "E104", "quote the key"),
        ("? [a, b]\n: x", "E104", "quote texts that contain { } [ ]"),
        ("", "E104", "write schema: hil.scenario/1"),
    ],
)
def test_trap(text: str, code: str, fix: str) -> None:
    document = read_document(text, "f")
    assert [(problem.code, problem.fix) for problem in document.problems] == [(code, fix)]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: 1.10", {"a": 1.1}),
        ('a: "1.10"', {"a": "1.10"}),
        ("a: 'yes'\n'on': \"010\"", {"a": "yes", "on": "010"}),
        ("a: 2026-11-22", {"a": dt.date(2026, 11, 22)}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("a: ''", {"a": ""}),
        ("by_events: {0: 4us, 20: 9us}", {"by_events": {0: "4us", 20: "9us"}}),
        ("a: 1 # yes: 010", {"a": 1}),
        ("%YAML 1.2\n---\na: 1", {"a": 1}),
    ],
)
def test_accepted(text: str, data: object) -> None:
    document = read_document(text, "f")
    assert document.problems == []
    assert document.data == data == yaml.safe_load(text.replace("%YAML 1.2", "%YAML 1.1"))


@pytest.mark.parametrize("raw", SCALARS)
def test_scalar_is_read_as_the_1_1_reader_does(raw: str) -> None:
    assert repr(yaml_1_1(raw)) == repr(yaml.safe_load(raw))


def _read(reader: Callable[[str], object], text: str) -> str:
    try:
        return repr(reader(text))
    except Exception as error:  # noqa: BLE001 readers raise many kinds
        return f"refused: {type(error).__name__} {reader}"


@settings(max_examples=1000, deadline=None)
@given(st.text(alphabet="0123456789abefnosxyOEN+-._:=~", min_size=1, max_size=8))
@example("=")
@example("2026-13-45")
@example("1__0")
@example("+.inf")
def test_accepted_exactly_when_all_readers_agree(raw: str) -> None:
    text = f"k: {raw}"
    document = read_document(text, "f")
    old = _read(yaml.safe_load, text)
    new = _read(YAML(typ="safe", pure=True).load, text)
    if document.problems:
        assert old != new or new in {"{'k': None}", "None"}
    else:
        assert old == new == repr(document.data)


def test_positions() -> None:
    document = read_document('a:\n  b: {c: 1.50, "d": [x, y]}\n', "f")
    assert document.keys == {
        ("a",): (1, 1),
        ("a", "b"): (2, 3),
        ("a", "b", "c"): (2, 7),
        ("a", "b", "d"): (2, 16),
    }
    assert document.values[("a", "b", "d", "1")] == (2, 25)
    assert document.raw[("a", "b", "c")] == "1.50"
    assert document.place(("a", "b", "nothing")) == ("f", 2, 3)
    assert document.place(("nothing",)) == ("f", 1, 1)


def test_special_numbers_are_data_here_and_refused_by_the_model() -> None:
    data = read_document("a: .nan", "f").data
    assert isinstance(data, dict)
    assert math.isnan(data["a"])
