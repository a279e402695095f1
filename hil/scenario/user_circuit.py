"""A circuit and a readout layout that a user brings along: read and checked, not yet built.

The stim circuit must say for every detector in which round it is known: its last coordinate is a
whole number 0..rounds, where ``rounds`` is the final data readout. The layout is a CSV file
``detector,board`` or ``detector,board,channel`` that names one readout board per detector.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Final

from hil.scenario.fields import problem

if TYPE_CHECKING:
    import stim

MAX_NESTING: Final = 8
"""REPEAT blocks inside one another: a walk holds a copy per level, stim's parser one of its stack
frames (100,000 levels overrun it)."""

MAX_LINES: Final = 1 << 20
MAX_COORDINATES: Final = 16
"""Of one DETECTOR or SHIFT_COORDS."""

MAX_QUBITS: Final = 1 << 16
MAX_DETECTORS: Final = 1 << 20
MAX_ROUND_DETECTORS: Final = 1 << 14
MAX_OBSERVABLES: Final = 1024
MAX_TARGETS: Final = 10**8
"""Targets of all instructions with REPEAT blocks unrolled: beyond, sampling would never end."""

_NO_CODE: Final = re.compile(r"\[[^\]\n]*\]?|#[^\n]*")
"""Tags, open ones to the end of their line (else many "[" take quadratic time), and comments."""

_INTEGER: Final = "a whole number"


def decoded(raw: bytes, name: str, key: str) -> str:
    """The text of a file.

    Raises:
        PydanticCustomError: E507 not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        line = raw[: err.start].count(b"\n") + 1
        raise problem(
            "E507",
            f"file '{name}' is not text",
            got=f"line {line} is not UTF-8",
            allowed="UTF-8",
            fix="save the file as UTF-8",
            at=key,
        ) from err


def parse_circuit(text: str, name: str) -> stim.Circuit:
    """The circuit of a text, bounded in size.

    Raises:
        PydanticCustomError: E507 not a stim circuit, or too large to be sampled.
    """
    import stim

    if "\0" in text:  # stim would carry it in a tag into a model that it cannot read again
        raise problem(
            "E507",
            f"file '{name}' is not text",
            got=f"a NUL character in line {text[: text.index(chr(0))].count(chr(10)) + 1}",
            allowed="text without NUL characters",
            fix="save the file as text",
            at="file",
        )
    depth, lines = _nesting(text), text.count("\n") + 1
    if depth > MAX_NESTING:
        raise _unusable("too many REPEAT blocks inside one another", depth, MAX_NESTING)
    if lines > MAX_LINES:
        raise _unusable("too many lines in the circuit", lines, MAX_LINES)
    try:
        # A tag that is open where the text ends makes stim (1.16) fill the memory; at the end of a
        # line it is an error.
        circuit = stim.Circuit(text + "\n")
    except (ValueError, IndexError) as err:
        raise problem(
            "E507",
            f"file '{name}' is not a stim circuit",
            got=str(err).strip().partition("\n")[0],
            allowed="what stim.Circuit reads",
            fix="see the stim file format",
            at="file",
        ) from err
    for what, got, most in (
        ("qubits", circuit.num_qubits, MAX_QUBITS),
        ("detectors", circuit.num_detectors, MAX_DETECTORS),
        ("observables", circuit.num_observables, MAX_OBSERVABLES),
        ("coordinates of one detector or shift", _coordinates(circuit), MAX_COORDINATES),
        ("targets, REPEAT blocks unrolled,", _targets(circuit), MAX_TARGETS),
    ):
        if got > most:
            raise _unusable(f"too many {what} in the circuit", got, most)
    return circuit


def _nesting(text: str) -> int:
    """Depth of the braces of a text, those in tags and comments left out."""
    depth = deepest = 0
    for brace in re.findall(r"[{}]", _NO_CODE.sub("", text)):
        depth += 1 if brace == "{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unusable(what: str, got: int, most: int) -> Exception:
    return problem(
        "E507",
        what,
        got=str(got),
        allowed=f"at most {most}",
        fix="use a smaller circuit",
        at="file",
    )


def _targets(circuit: stim.Circuit) -> int:
    """Targets of all instructions, blocks unrolled; an instruction counts once at least."""
    total = 0
    for step in circuit:
        body = getattr(step, "body_copy", None)
        if body is None:
            total += max(1, len(step.targets_copy()))
        else:
            total += int(step.repeat_count) * _targets(body())
    return total


def _coordinates(circuit: stim.Circuit) -> int:
    """Most coordinates of a DETECTOR or SHIFT_COORDS."""
    most = 0
    for step in circuit:
        body = getattr(step, "body_copy", None)
        if body is not None:
            most = max(most, _coordinates(body()))
        elif step.name in {"DETECTOR", "SHIFT_COORDS"}:
            most = max(most, len(step.gate_args_copy()))
    return most


def check_rounds(circuit: stim.Circuit, rounds: int) -> None:
    """Every detector has its round, every round a detector, and something is decoded.

    Raises:
        PydanticCustomError: E507, naming the first detector or round at fault.
    """
    if circuit.num_detectors == 0 or circuit.num_observables == 0:
        raise problem(
            "E507",
            "the circuit gives a decoder nothing to do",
            got=f"{circuit.num_detectors} detectors, {circuit.num_observables} observables",
            allowed="at least one of each",
            fix="add DETECTOR and OBSERVABLE_INCLUDE",
            at="file",
        )
    coordinates = circuit.get_detector_coordinates()
    in_round = [0] * (rounds + 1)
    for i in range(circuit.num_detectors):
        place = coordinates[i]
        if not place or not float(place[-1]).is_integer() or not 0 <= place[-1] <= rounds:
            shown = ", ".join(f"{c:g}" for c in place)
            raise problem(
                "E507",
                f"detector D{i} lies in no round",
                got=f"coordinates ({shown})" if place else "no coordinates",
                allowed=f"last coordinate {_INTEGER}, 0 to {rounds} = rounds",
                fix="give every DETECTOR its round as last coordinate, or correct rounds",
                at="file",
            )
        in_round[int(place[-1])] += 1
    if 0 in in_round:
        raise problem(
            "E507",
            f"no detector lies in round {in_round.index(0)}",
            got=f"rounds: {rounds}",
            allowed=f"at least one detector in each of the rounds 0 to {rounds}",
            fix="correct rounds, or the last coordinates of the detectors",
            at="file",
        )
    if max(in_round) > MAX_ROUND_DETECTORS:
        raise _unusable("too many detectors in one round", max(in_round), MAX_ROUND_DETECTORS)


def noise_of(circuit: stim.Circuit) -> str:
    """The first noisy instruction of a circuit as stim writes it; empty if it has no noise."""
    import stim

    for step in circuit:
        body = getattr(step, "body_copy", None)
        if body is not None:
            found = noise_of(body())
            if found:
                return found
            continue
        gate = stim.gate_data(step.name)
        if gate.produces_measurements:  # noisy by an argument: M(0.01), HERALDED_ERASE(0.1)
            if any(step.gate_args_copy()):
                return str(step)
        elif gate.is_noisy_gate:
            return str(step)
    return ""


def parse_layout(text: str, name: str, n_detectors: int) -> tuple[tuple[str, str], ...]:
    """Board and channel label (may be empty) of every detector, in order.

    Args:
        text: the CSV file, with or without a first line ``detector,board``.
        name: its name, for messages.
        n_detectors: D of the circuit.

    Raises:
        PydanticCustomError: E203 malformed line, E404 no such detector, E508 a detector twice or
            not at all.
    """
    lines = [line for line in csv.reader(text.splitlines()) if line]
    if lines and lines[0][0].strip() == "detector":
        lines = lines[1:]
    rows: dict[int, tuple[str, str]] = {}
    for number, cells in enumerate(lines, 1):
        where = f"file '{name}': data line {number}"
        detector, board, channel = _layout_row([cell.strip() for cell in cells], where)
        if detector >= n_detectors:
            raise problem(
                "E404",
                f"{where} names a detector outside",
                got=f"D{detector}",
                allowed=f"0 to {n_detectors - 1}",
                fix="correct the index",
                at="layout",
            )
        if detector in rows:
            raise _not_once(
                f"detector D{detector} claimed twice",
                f"{rows[detector][0]} and {board}",
                "remove one of the lines",
            )
        rows[detector] = board, channel
    missing = [i for i in range(n_detectors) if i not in rows]
    if missing:
        raise _not_once(
            f"detector D{missing[0]} claimed by nobody",
            f"{len(missing)} of {n_detectors} detectors without a board",
            f"add a line for detector {missing[0]}",
        )
    return tuple(rows[i] for i in range(n_detectors))


def _layout_row(cells: list[str], where: str) -> tuple[int, str, str]:
    index = cells[0]
    number = index.isascii() and index.isdigit() and len(index) < 10
    if number and len(cells) in {2, 3} and cells[1]:
        return int(index), cells[1], cells[2] if len(cells) == 3 else ""
    raise problem(
        "E203",
        f"{where} is not detector,board or detector,board,channel",
        got=",".join(cells),
        allowed=f"{_INTEGER}, the id of a readout board, a label if you like",
        fix="write for example 0,ro0",
        at="layout",
    )


def _not_once(what: str, got: str, fix: str) -> Exception:
    allowed = "each detector on exactly one readout board"
    return problem("E508", what, got=got, allowed=allowed, fix=fix, at="layout")
