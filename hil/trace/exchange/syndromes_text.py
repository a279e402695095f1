"""Syndromes text of NVIDIA's playback and test programs: one bit a line, read strictly.

    NUM_DATA n                   bits of the data readout
    NUM_LOGICAL n                observables, 1
    SHOT_START k                 shots count from 0
    ROUND_START g                rounds of a shot count from 0; then its bits, one 0 or 1 a line
    CORRECTIONS_START            then one bit per shot
    CORRECTIONS_END

The reference's reader skips lines that are no number, fills short shots with 0, cuts long ones,
takes missing corrections as 0 and believes the rounds of the first shot. Here each of these is an
error with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.errors import TraceError

U8: TypeAlias = NDArray[np.uint8]
_LONGEST = 64


@dataclass(frozen=True, slots=True)
class Syndromes:
    """A file as it was read.

    Attributes:
        measurements_b8: uint8 [n, ceil(M/8)], LSB first, rounds one after the other.
        corrections: uint8 [n], 0 or 1.
    """

    measurements_b8: U8
    corrections: U8


def write_syndromes(path: Path, round_bits: Sequence[int], shots: Iterable[tuple[U8, U8]]) -> int:
    """Write batches of shots; returns their number.

    Args:
        path: the file.
        round_bits: bits of each round, the data readout last.
        shots: measurements uint8 [n, M], one byte a bit, and corrections uint8 [n].
    """
    corrections: list[str] = []
    number = 0
    with path.open("w", encoding="ascii") as file:
        file.write(f"NUM_DATA {round_bits[-1]}\nNUM_LOGICAL 1\n")
        for bits, fixes in shots:
            corrections += map(str, fixes.tolist())
            for row in bits:
                file.write(f"SHOT_START {number}\n")
                _write_rounds(file, row, round_bits)
                number += 1
        lines = ["CORRECTIONS_START", *corrections, "CORRECTIONS_END"]
        file.write("\n".join(lines) + "\n")
    return number


def _write_rounds(file: TextIO, row: U8, round_bits: Sequence[int]) -> None:
    start = 0
    for number, size in enumerate(round_bits):
        bits = "\n".join(map(str, row[start : start + size].tolist()))
        file.write(f"ROUND_START {number}\n{bits}\n")
        start += size


def read_syndromes(path: Path, round_bits: Sequence[int]) -> Syndromes:
    """All shots of a file, checked against the rounds that they must have.

    Raises:
        TraceError: anything but exactly this layout; names the line.
    """
    try:
        with path.open(encoding="ascii") as file:
            return _Reader(path, round_bits, file).read()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError("cannot be read", where=str(path), got=str(error)) from error


class _Reader:
    def __init__(self, path: Path, round_bits: Sequence[int], file: TextIO) -> None:
        self._path, self._round_bits, self._number = path, round_bits, 0
        self._lines = self._numbered(file)

    def read(self) -> Syndromes:
        shots: list[U8] = []
        line = next(self._lines)
        for name, value in (("NUM_DATA", self._round_bits[-1]), ("NUM_LOGICAL", 1)):
            if line.startswith(f"{name} "):
                self._demand(line, f"{name} {value}")
                line = next(self._lines)
        while line != "CORRECTIONS_START":
            self._demand(line, f"SHOT_START {len(shots)}")
            bits, line = self._shot()
            shots.append(np.packbits(np.array(bits, dtype=np.uint8), bitorder="little"))
        corrections = [self._bit(next(self._lines)) for _ in shots]
        self._demand(next(self._lines), "CORRECTIONS_END")
        self._demand(next(self._lines), "")
        width = -(-sum(self._round_bits) // 8)
        packed = np.stack(shots) if shots else np.zeros((0, width), dtype=np.uint8)
        return Syndromes(packed, np.array(corrections, dtype=np.uint8))

    def _shot(self) -> tuple[list[int], str]:
        """Bits of a shot and the line behind it; rounds are all marked, or none is."""
        bits: list[int] = []
        line = next(self._lines)
        marked = line.startswith("ROUND_START ")
        for number, size in enumerate(self._round_bits):
            if marked:
                self._demand(line, f"ROUND_START {number}")
                line = next(self._lines)
            for _ in range(size):
                bits.append(self._bit(line))
                line = next(self._lines)
        return bits, line

    def _bit(self, line: str) -> int:
        if line not in {"0", "1"}:
            self._refuse(line, "0 or 1")
        return int(line)

    def _demand(self, line: str, wanted: str) -> None:
        if line != wanted:
            self._refuse(line, wanted or "nothing more")

    def _refuse(self, line: str, allowed: str) -> None:
        raise TraceError(
            "not a syndromes file of these rounds",
            where=f"{self._path}:{self._number}",
            got=repr(line) if line else "end of file, or an empty line",
            allowed=allowed,
        )

    def _numbered(self, file: TextIO) -> Iterator[str]:
        """Lines without their ends; behind the last one empty ones for ever."""
        while True:
            line = file.readline(_LONGEST)
            self._number += 1
            if line and not line.endswith("\n"):
                self._refuse(line, "a short line with its end")
            yield line.removesuffix("\n")
