"""Captures as CSV: stamps or durations of the stages, or the FPGA's ``ptp_latency.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

import numpy as np

from hil.errors import UsageError
from hil.rack.fit.capture import Capture, Refusals, check_order, read_bytes
from hil.rack.timeline import I64
from hil.scenario.problems import did_you_mean
from hil.timebase import PS_PER_NS, PS_PER_S

_UNITS: Final = {"ps": 0, "ns": 3, "us": 6}
"""Decimal places of each unit down to ps."""
_TIME: Final = re.compile(r"(?P<stamp>t_)?(?P<name>[A-Za-z][A-Za-z0-9_-]*)_(?P<unit>ps|ns|us)")
_KEYS: Final = ("shot", "round", "events")
_FPGA: Final = (
    "request_id", "shot", "local", "kind", "send_sec", "send_nsec", "recv_sec", "recv_nsec",
    "delta_ns",
)  # fmt: skip
_HEADERS: Final = (
    "shot, round, [events], then t_NAME_ns stamps or NAME_ns durations; "
    "or the columns of ptp_latency.csv"
)
_MOST_EVENTS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000

HOP_OF_STAMP: Final = {
    "syndrome": "acquire",
    "tx": "packetize",
    "rx": "uplink",
    "visible": "deliver",
    "decode_start": "queue",
    "decode_end": "decode",
    "reply_tx": "reply",
    "reply_rx": "downlink",
    "applied": "apply",
}
"""Names of our own trace's stamps (``t_tx_ps``) -> the hop that ends there."""


def read_csv(path: Path) -> Capture:
    """Read a CSV capture; its header tells which kind it is (``docs/rack.md``).

    Raises:
        UsageError: not readable, no header of either kind, or bad rows (all reasons are named).
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("not UTF-8 text", where=str(path), fix="give a CSV file") from error
    try:
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise UsageError("not CSV", where=str(path), got=str(error)) from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header and all(_ps(cell, 0) is not None for cell in header):
        raise UsageError(
            "the first line names no columns",
            where=f"{path}: line 1",
            got=", ".join(header),
            allowed=_HEADERS,
            fix="write the names above the numbers",
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError("column twice", where=f"{path}: line 1", got=twice, fix="rename one")
    if {"request_id", "delta_ns"} <= set(header):
        return _fpga(path, header, rows)
    return _stages(path, header, rows)


# --------------------------------------------------------------------- stamps or durations


def _stages(path: Path, header: list[str], rows: list[list[str]]) -> Capture:
    names, stamps, digits, columns = _columns(path, header)
    refusals = Refusals(str(path))
    table, lines = _table(rows, len(header), refusals)
    number = {key: header.index(key) for key in _KEYS if key in header}
    keys = {key: _counts(table, lines, column, key, refusals) for key, column in number.items()}
    times = _times(table, lines, columns, digits, refusals, stamps=stamps)
    refusals.check()
    if keys.get("events", np.zeros(1)).max(initial=0) > _MOST_EVENTS:
        refusals.add("event count out of range", f"line {lines[int(keys['events'].argmax())]}")
    if stamps:
        names, durations = names[1:], np.diff(times, axis=0)
        names = [HOP_OF_STAMP.get(name, name) for name in names]
    else:
        durations = times
    for name, values in zip(names, durations, strict=True):
        bad = np.flatnonzero(values < 0)
        if bad.size:
            got = f"{name} = {values[bad[0]]} ps"
            refusals.add(
                f"negative duration of {name}", f"line {lines[bad[0]]}", got, int(bad.size)
            )
    start, stop, per_shot = check_order(keys["shot"], keys["round"], lines, "line", refusals)
    refusals.check()
    notes = [
        f"{'stamps' if stamps else 'durations'} of {', '.join(names)}: each is told apart",
        "event counts recorded: durations may depend on them"
        if "events" in keys
        else "no event counts: durations cannot follow the events of the simulated rounds",
    ]
    if stop - start < len(lines):
        notes.append(f"{len(lines) - stop + start} row(s) of incomplete shots at the ends left out")
    whole = Capture(path.name, tuple(names), durations, keys.get("events"), per_shot, tuple(notes))
    return whole.part(start, stop)


def _columns(path: Path, header: list[str]) -> tuple[list[str], bool, list[int], list[int]]:
    """Names, whether they are stamps, decimal places to ps and column of each time."""
    where = f"{path}: line 1"
    missing = [key for key in ("shot", "round") if key not in header]
    if missing:
        raise UsageError(
            f"column '{missing[0]}' is missing",
            where=where,
            got=", ".join(header) or "an empty file",
            allowed=_HEADERS,
            fix=did_you_mean(missing[0], header) or f"add '{missing[0]}'",
        )
    found = []
    for column, name in enumerate(header):
        if name in _KEYS:
            continue
        match = _TIME.fullmatch(name)
        if match is None:
            raise UsageError(
                f"column '{name}' names no unit",
                where=where,
                got=name,
                allowed="a name that ends with _ps, _ns or _us",
                fix=f"rename it {name}_ns if these are nanoseconds",
            )
        found.append((match, column))
    kinds = {bool(match["stamp"]) for match, _ in found}
    need = 2 if kinds == {True} else 1
    if len(kinds) > 1 or len(found) < need:
        raise UsageError(
            "stamps and durations are mixed" if len(kinds) > 1 else "too few columns of times",
            where=where,
            got=", ".join(header),
            allowed="two or more stamps t_NAME_ns, or one or more durations NAME_ns",
            fix="keep one kind",
        )
    return (
        [match["name"] for match, _ in found],
        kinds == {True},
        [_UNITS[match["unit"]] for match, _ in found],
        [column for _, column in found],
    )


def _table(rows: list[list[str]], width: int, refusals: Refusals) -> tuple[list[list[str]], I64]:
    """Rows of the right width, and the line of each (the header is line 1)."""
    table, lines = [], []
    for line, row in enumerate(rows[1:], 2):
        if len(row) == width:
            table.append(row)
            lines.append(line)
        elif row:
            refusals.add("wrong number of columns", f"line {line}", f"{len(row)} of {width}")
    return table, np.array(lines, dtype=np.int64)


def _counts(
    table: Sequence[Sequence[str]], lines: I64, column: int, name: str, refusals: Refusals
) -> I64:
    """int64 [n]: whole numbers >= 0 of one column; others are noted and read as 0."""
    out = np.zeros(len(table), dtype=np.int64)
    for i, row in enumerate(table):
        cell = row[column].strip()
        if cell.isascii() and cell.isdigit() and len(cell) < 19:
            out[i] = int(cell)
        else:
            refusals.add(f"{name} is not a count", f"line {lines[i]}", cell or "empty")
    return out


def _times(
    table: Sequence[Sequence[str]],
    lines: I64,
    columns: list[int],
    digits: list[int],
    refusals: Refusals,
    *,
    stamps: bool,
) -> I64:
    """int64 [k, n] in ps, rounded to the nearest ps; stamps count from the first of their row."""
    out = np.zeros((len(columns), len(table)), dtype=np.int64)
    for i, row in enumerate(table):
        start = 0
        for k, (column, places) in enumerate(zip(columns, digits, strict=True)):
            cell = row[column].strip()
            ps = _ps(cell, places)
            if ps is None:
                refusals.add("not a number", f"line {lines[i]}", cell or "empty")
                break
            if stamps and k == 0:
                start = ps
            ps -= start
            if abs(ps) >= 1 << 62:
                refusals.add("time out of range", f"line {lines[i]}", cell)
                break
            out[k, i] = ps
    return out


def _ps(cell: str, places: int) -> int | None:
    """A decimal number with its point moved by ``places``, to the nearest whole; else ``None``."""
    if len(cell) > 40:
        return None
    whole, _, rest = cell.partition(".")
    if len(rest) <= places and cell.isascii() and (whole + rest).isdigit():
        return int(whole + rest.ljust(places, "0"))
    try:
        value = Decimal(cell)
    except InvalidOperation:
        return None
    return round(value.scaleb(places)) if value.is_finite() and abs(value) < 10**30 else None


# ----------------------------------------------------------------- the FPGA's capture core


def _fpga(path: Path, header: list[str], rows: list[list[str]]) -> Capture:
    """``request_id,shot,local,kind,send_sec,send_nsec,recv_sec,recv_nsec,delta_ns``."""
    missing = [name for name in _FPGA if name not in header]
    if missing:
        raise UsageError(
            f"column '{missing[0]}' is missing",
            where=f"{path}: line 1",
            got=", ".join(header),
            allowed=", ".join(_FPGA),
            fix=f"add '{missing[0]}'",
        )
    refusals = Refusals(str(path))
    table, lines = _table(rows, len(header), refusals)
    at = {name: header.index(name) for name in _FPGA}
    kind = np.array([row[at["kind"]].strip() for row in table])
    number = {
        name: _counts(table, lines, at[name], name, refusals)
        for name in _FPGA
        if name not in {"kind", "delta_ns"}
    }
    delta = _times(table, lines, [at["delta_ns"]], [_UNITS["ns"]], refusals, stamps=False)[0]
    refusals.check()
    for name in ("send_nsec", "recv_nsec"):
        bad = np.flatnonzero(number[name] >= _NS_PER_S)
        if bad.size:
            refusals.add(f"{name} out of range", f"line {lines[bad[0]]}", "", int(bad.size))
    seconds, nanoseconds = (number[f"recv_{u}"] - number[f"send_{u}"] for u in ("sec", "nsec"))
    far = np.abs(seconds) > 10**6
    whole = np.where(far, 0, seconds) * PS_PER_S + nanoseconds * PS_PER_NS
    for reason, hits in (
        ("stamps further apart than 10^6 s", far),
        ("negative round trip", whole < 0),
        ("delta_ns differs from the stamps", whole != delta),
    ):
        found = np.flatnonzero(hits)
        if found.size:
            i = int(found[0])
            got = f"delta_ns {delta[i] / PS_PER_NS:g}, stamps {whole[i] / PS_PER_NS:g} ns"
            refusals.add(reason, f"line {lines[i]}", got, int(found.size))
    refusals.check()
    kinds, counts = np.unique(kind, return_counts=True)
    if not kinds.size:
        raise UsageError("the capture holds no rows", where=str(path), allowed="one row per frame")
    used = str(kinds[counts.argmax()])
    keep = np.flatnonzero(kind == used)
    start, stop, per_shot = check_order(
        number["shot"][keep], number["local"][keep], lines[keep], "line", refusals
    )
    refusals.check()
    left = ", ".join(f"{n} of kind {k}" for k, n in zip(kinds, counts, strict=True) if k != used)
    split = (
        "round trips on one clock: the way there and the way back are not told apart and get one "
        "half each (assumed); what the node adds is inside"
    )
    notes = [
        split,
        "no event counts: durations cannot follow the events of the simulated rounds",
        f"{keep.size} frames of kind '{used}' used" + (f"; left out: {left}" if left else ""),
    ]
    if stop - start < keep.size:
        notes.append(f"{keep.size - stop + start} frame(s) of incomplete shots left out")
    capture = Capture(
        path.name, ("round_trip",), whole[None, keep], None, per_shot, tuple(notes), round_trip=True
    )
    return capture.part(start, stop)
