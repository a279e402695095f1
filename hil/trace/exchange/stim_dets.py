"""stim's ``dets`` text, a line per shot: ``shot D3 D8 L0``; in batches, memory bounded.

Stricter than stim's own reader: a line that is no shot, an index beyond the circuit, a bit named
twice or a last line without its end is refused with its line number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from hil.errors import TraceError
from hil.trace.exchange.shots import Shots, batch_shots, pack, unpack

_LINE: Final = rb"shot(?: [DL](?:0|[1-9][0-9]{0,8}))*\r?\n"
_TO_BLANKS: Final = bytes.maketrans(b"shotDL\r\n", b" " * 8)


def encode(shots: Shots, n_detectors: int, n_observables: int) -> bytes:
    """Lines of a batch."""
    names = [f" D{i}" for i in range(n_detectors)] + [f" L{i}" for i in range(n_observables)]
    bits = np.hstack(
        [unpack(shots.detectors_b8, n_detectors), unpack(shots.observables_b8, n_observables)]
    )
    rows, columns = np.nonzero(bits)
    tokens = [names[column] for column in columns.tolist()]
    ends = np.searchsorted(rows, np.arange(len(bits) + 1)).tolist()
    lines = ["".join(tokens[a:b]) for a, b in pairwise(ends)]
    return "".join(f"shot{line}\n" for line in lines).encode()


def read(path: Path, n_detectors: int, n_observables: int) -> Iterator[Shots]:
    """Batches of a file.

    Raises:
        TraceError: the file cannot be read, or a line is none of this circuit; names the line.
    """
    size, done = batch_shots(n_detectors + n_observables), 0
    longest = 6 + 12 * (n_detectors + n_observables)
    try:
        with path.open("rb") as handle:
            while lines := _lines(handle, size, longest):
                yield _decode(lines, path, done, n_detectors, n_observables)
                done += len(lines)
    except OSError as error:
        raise TraceError("cannot be read", where=str(path), got=str(error)) from error


def _lines(handle: BinaryIO, most: int, longest: int) -> list[bytes]:
    """Up to ``most`` lines; a line longer than any shot comes in pieces, which are no lines."""
    lines: list[bytes] = []
    while len(lines) < most and (line := handle.readline(longest)):
        lines.append(line)
    return lines


def _decode(
    lines: list[bytes], path: Path, done: int, n_detectors: int, n_observables: int
) -> Shots:
    text = b"".join(lines)
    if not re.fullmatch(rb"(?:" + _LINE + rb")*", text):
        at = next(i for i, line in enumerate(lines) if not re.fullmatch(_LINE, line))
        raise TraceError(
            "not a shot in dets format",
            where=f"{path}:{done + at + 1}",
            got=repr(lines[at][:60]),
            allowed="'shot D3 D8 L0' and a line end",
        )
    raw = np.frombuffer(text, np.uint8)
    token = (raw == ord("D")) | (raw == ord("L"))
    shot = np.cumsum(raw == ord("s"))[token] - 1
    observable = raw[token] == ord("L")
    index = np.fromstring(text.translate(_TO_BLANKS), dtype=np.int64, sep=" ")
    bad = index >= np.where(observable, n_observables, n_detectors)
    column = index + n_detectors * observable
    width = n_detectors + n_observables
    if not bad.any():
        flat = shot * width + column
        bits = np.zeros(len(lines) * width, dtype=np.uint8)
        bits[flat] = 1
        if int(bits.sum()) == flat.size:
            both = bits.reshape(len(lines), width)
            return Shots(pack(both[:, :n_detectors]), pack(both[:, n_detectors:]))
        _, first = np.unique(flat, return_index=True)
        bad = np.ones(flat.size, dtype=np.bool_)
        bad[first] = False
    at = int(np.flatnonzero(bad)[0])
    raise TraceError(
        "a bit beyond the circuit, or named twice",
        where=f"{path}:{done + int(shot[at]) + 1}",
        got=f"{'L' if observable[at] else 'D'}{index[at]}",
        allowed=f"D0 to D{n_detectors - 1}, L0 to L{n_observables - 1}, each once",
    )
