"""Whatever stands in a circuit file or a layout: a checked scenario or clear errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hil.scenario.fields import TextContext
from hil.scenario.qpu import UserCircuit

CIRCUITS = Path(__file__).parents[2] / "scenarios" / "user_circuit"
GOOD = (CIRCUITS / "memory.stim").read_bytes()
LAYOUT = (CIRCUITS / "layout.csv").read_bytes()
CODES = {"E203", "E404", "E507", "E508"}

lines = st.sampled_from(
    [
        "R 0 1", "M 0", "MR(0.1) 1", "MPP X0*Z1", "H 0", "CX 0 1", "CX rec[-1] 0", "TICK",
        "DETECTOR(0) rec[-1]", "DETECTOR(1, 1) rec[-1]", "DETECTOR rec[-1]", "DETECTOR(-1)",
        "DETECTOR(1e300)", "SHIFT_COORDS(0, 1)", "SHIFT_COORDS(1e308)", "OBSERVABLE_INCLUDE(0)",
        "OBSERVABLE_INCLUDE(0) rec[-1]", "X_ERROR(0.1) 0", "E(0.5) X0", "REPEAT 3 {", "}",
        "REPEAT 99999999999 {", "QUBIT_COORDS(1) 0", "M 99999", "FOO", "MPAD 0", "# {", "H[{] 0",
        "H[", "DETECTOR[a", "R[\\", "TICK[\0]", "REPEAT[", "REPEAT 3 {M 0",
        "SHIFT_COORDS(" + "1," * 99 + "1)",
    ]
)  # fmt: skip
texts = st.lists(lines, max_size=30).map("\n".join).map(str.encode)


def _mutated(good: bytes) -> st.SearchStrategy[bytes]:
    def change(seed: int) -> bytes:
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 30)]
            elif kind == 2:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.randint(1, 40)]
            else:
                data[at:at] = rng.choice(
                    [b"-", b"{", b"}", b"9", b"\n", b"\0", b"\xff", b"(", b","]
                )
        return bytes(data)

    return st.integers(0, 2**32).map(change)


def _read(folder: Path, circuit: bytes, layout: bytes) -> UserCircuit | set[str]:
    (folder / "c.stim").write_bytes(circuit)
    (folder / "l.csv").write_bytes(layout)
    data: dict[str, Any] = {
        "family": "user_stim", "file": "c.stim", "rounds": 6, "layout": "l.csv"
    }  # fmt: skip
    try:
        return UserCircuit.model_validate(data, context=TextContext(folder))
    except ValidationError as error:
        entries = error.errors(include_url=False)
        assert all(entry["type"] == "scenario" for entry in entries), entries
        return {entry["ctx"]["code"] for entry in entries}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_the_originals_are_read(folder: Path) -> None:
    assert isinstance(_read(folder, GOOD, LAYOUT), UserCircuit)


@settings(max_examples=400, deadline=None)
@example(b"R[")  # a tag open at the end: stim 1.16 fills the memory
@example(b"DETECTOR[a")
@example(GOOD.replace(b"(0) rec[-1]", b"[-1").rstrip())
@example(GOOD + b"TICK[\0]")
@example(b"REPEAT 2 {" * 9 + b"M 0\n" + b"}\n" * 9)
@given(st.one_of(texts, _mutated(GOOD), st.binary(max_size=60)))
def test_any_circuit_file_is_read_or_refused(folder: Path, text: bytes) -> None:
    found = _read(folder, text, LAYOUT)
    if isinstance(found, UserCircuit):
        assert found.text.encode() == text
        assert len(found.readout) == 28
    else:
        assert found <= CODES


@settings(max_examples=300, deadline=None)
@given(st.one_of(_mutated(LAYOUT), st.binary(max_size=60)))
def test_any_layout_is_read_or_refused(folder: Path, text: bytes) -> None:
    found = _read(folder, GOOD, text)
    if isinstance(found, UserCircuit):
        assert len(found.readout) == 28
        assert all(board for board, _ in found.readout)
    else:
        assert found <= CODES
