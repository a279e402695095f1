"""What every kind of capture becomes: durations of consecutive rounds, checked row by row.

Nothing is repaired and nothing is dropped silently: a capture with a bad row is refused, with every
reason, how often it occurs, and where first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hil.errors import UsageError
from hil.rack.timeline import I64


@dataclass(frozen=True)
class Capture:
    """Durations of ``n`` consecutive rounds in time order.

    Attributes:
        file: name of the file, for people.
        stages: names of the ``k`` recorded durations, in order of travel.
        durations_ps: int64 [k, n], >= 0.
        events: int64 [n], detection events of each round, or ``None`` if not recorded.
        rounds_per_shot: rows of each shot, or 0 if the capture is one stretch without shots.
        notes: what this kind of capture can and cannot tell apart, and what was left out.
        round_trip: the one recorded duration is a whole way there and back.
    """

    file: str
    stages: tuple[str, ...]
    durations_ps: I64
    events: I64 | None
    rounds_per_shot: int
    notes: tuple[str, ...]
    round_trip: bool = False

    @property
    def n_rounds(self) -> int:
        """Recorded rounds."""
        return int(self.durations_ps.shape[1])

    def part(self, start: int, stop: int) -> Capture:
        """Rounds ``start:stop`` as a capture of their own."""
        return Capture(
            self.file,
            self.stages,
            self.durations_ps[:, start:stop],
            None if self.events is None else self.events[start:stop],
            self.rounds_per_shot,
            self.notes,
            self.round_trip,
        )


@dataclass
class Refusals:
    """Reasons why rows are refused: how often, and where first."""

    where: str
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str, got: str = "", count: int = 1) -> None:
        """Note one bad row (or ``count`` of them, the first at ``place``)."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, f"{place}{': ' + got if got else ''}")

    def check(self) -> None:
        """Raise if anything was noted.

        Raises:
            UsageError: all reasons, each with its count and its first place.
        """
        if not self.counts:
            return
        total = sum(self.counts.values())
        lines = [
            f"{reason}: {count} row(s), first {self.first[reason]}"
            for reason, count in self.counts.items()
        ]
        raise UsageError(
            f"{total} bad row(s); a capture is used whole or not at all",
            where=self.where,
            got="; ".join(lines),
            allowed="rounds in time order without gaps, durations >= 0",
            fix="correct the rows, or cut the file to a stretch without them",
        )


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UsageError:
    """What to say of a capture that cannot be read."""
    return UsageError(
        "the capture cannot be read",
        where=str(path),
        got=error.strerror or str(error),
        allowed="a readable file",
        fix="check the name",
    )


def check_order(
    shot: I64, round_: I64, places: NDArray[np.int64], word: str, refusals: Refusals
) -> tuple[int, int, int]:
    """Check that rounds follow each other, and find the stretch of whole shots.

    Args:
        shot: int64 [n], as recorded.
        round_: int64 [n], as recorded.
        places: int64 [n], line or frame of each row.
        word: what a place is called (``line``, ``frame``).
        refusals: takes up what is wrong.

    Returns:
        First and last + 1 row of the whole shots, and the rows of a shot (0: no shots).
    """
    d_shot, d_round = np.diff(shot), np.diff(round_)
    base = int(round_.min()) if round_.size else 0
    next_round = (d_shot == 0) & (d_round == 1)
    next_shot = (d_shot == 1) & (round_[1:] == base)
    backwards = (d_shot < 0) | ((d_shot == 0) & (d_round < 0))
    twice = (d_shot == 0) & (d_round == 0)
    gap = ~(next_round | next_shot | backwards | twice)
    for reason, rows in (("not in time order", backwards), ("round twice", twice), ("gap", gap)):
        hits = np.flatnonzero(rows)
        if hits.size:
            i = int(hits[0])
            got = f"shot {shot[i]} round {round_[i]}, then shot {shot[i + 1]} round {round_[i + 1]}"
            refusals.add(reason, f"{word} {places[i + 1]}", got, int(hits.size))
    begins = np.flatnonzero(np.concatenate([[round_.size > 0], next_shot]))
    if refusals.counts or begins.size < 3:
        return 0, int(round_.size), 0
    lengths = np.diff(begins)  # without the last shot, whose end is not seen
    first = 0 if round_[0] == base else 1
    whole = int(lengths[first:].max())
    short = np.flatnonzero(lengths[first:] != whole) + first
    if short.size:
        i = int(short[0])
        got = f"shot {shot[begins[i]]} has {lengths[i]} of {whole} rounds"
        refusals.add("gap at the end of a shot", f"{word} {places[begins[i + 1]]}", got, short.size)
    last = int(begins[-1])
    end = last + whole if round_.size - last == whole else last
    return int(begins[first]), end, whole
