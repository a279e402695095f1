"""Recorded durations of a rack: what ``hil rack fit`` writes and ``dist: recorded`` replays.

A recording keeps, for each stage, the sorted durations of every class of event counts (a
conditional quantile table), and for each recorded round its class and its rank in the tables.
Replaying consecutive rounds keeps the recorded order of the ranks, hence the correlation in time
and between stages; looking the rank up in the table of the *simulated* round's class makes the
durations follow the simulated events. The file is an npz archive, written with equal bytes for
equal content.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.errors import ScenarioError

I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]

FORMAT: Final = "hil.recording/1"
_ARRAYS: Final = ("format", "stages", "events_from", "edges", "table_ps", "ranks", "own", "shot")


@dataclass(frozen=True)
class Recording:
    """Durations of ``n`` consecutive rounds.

    Attributes:
        stages: names of the ``k`` stages.
        events_from: int64 [c], increasing from 0: smallest event count of each class.
        edges: int64 [c + 1]: class ``c`` holds columns ``edges[c]:edges[c + 1]`` of the tables.
        table_ps: int64 [k, n]: durations, sorted inside each class.
        ranks: int32 [k, n]: rank (from 0) of each recorded round inside its class, per stage.
        own: int32 [n]: class of each recorded round.
        rounds_per_shot: rows of one recorded shot (the recording is a whole number of shots), or 0
            if shots of different lengths were recorded.
        sha256: of the file, the identity of the recording.
    """

    stages: tuple[str, ...]
    events_from: I64 = field(compare=False, repr=False)
    edges: I64 = field(compare=False, repr=False)
    table_ps: I64 = field(compare=False, repr=False)
    ranks: I32 = field(compare=False, repr=False)
    own: I32 = field(compare=False, repr=False)
    rounds_per_shot: int = 0
    sha256: str = ""

    @property
    def n_rounds(self) -> int:
        """Recorded rounds."""
        return int(self.own.size)

    def replay_ps(self, stage: str, rows: I64, events: I64) -> I64:
        """Durations of one stage, int64, shape of ``rows``.

        Args:
            stage: name of the stage.
            rows: recorded rounds to replay, taken modulo their number.
            events: detection events of each simulated round, same shape.
        """
        k = self.stages.index(stage)
        at = rows % self.n_rounds
        wanted = np.searchsorted(self.events_from, events, side="right") - 1
        sizes = np.diff(self.edges)
        rank = 2 * self.ranks[k][at].astype(np.int64) + 1  # twice the middle of the rank's place
        place = rank * sizes[wanted] // (2 * sizes[self.own[at]])
        found: I64 = self.table_ps[k][self.edges[wanted] + place]
        return found

    def quantile_ps(self, stage: str, q: float) -> int:
        """Quantile ``q`` of all recorded durations of a stage (a recorded value)."""
        values = self.table_ps[self.stages.index(stage)]
        return int(np.quantile(values, q, method="higher"))


def encode(recording: Recording) -> bytes:
    """The file of a recording."""
    out = io.BytesIO()
    np.savez_compressed(
        out,
        format=np.array(FORMAT),
        stages=np.array(recording.stages),
        events_from=recording.events_from,
        edges=recording.edges,
        table_ps=recording.table_ps,
        ranks=recording.ranks,
        own=recording.own,
        shot=np.array(recording.rounds_per_shot, dtype=np.int64),
    )
    return out.getvalue()


@lru_cache(maxsize=4)
def decode(raw: bytes) -> Recording:
    """Recording from the bytes of its file; checked, so that a replay cannot leave its tables.

    Raises:
        ScenarioError: not a recording.
    """
    try:
        if not raw.startswith(b"PK"):  # numpy would take it for a pickle, and say so
            raise ValueError("no npz archive")  # noqa: TRY301 - refused like any other damage
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            parts = {name: file[name] for name in _ARRAYS}
        found = Recording(
            stages=tuple(str(name) for name in parts["stages"].tolist()),
            events_from=parts["events_from"],
            edges=parts["edges"],
            table_ps=parts["table_ps"],
            ranks=parts["ranks"],
            own=parts["own"],
            rounds_per_shot=int(parts["shot"]),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        why = "format" if str(parts["format"]) != FORMAT else _inconsistent(found)
    except (ValueError, KeyError, TypeError, OSError, EOFError, IndexError) as error:
        why = str(error)
    except (zipfile.BadZipFile, zlib.error, MemoryError) as error:
        why = str(error)
    if why:
        raise ScenarioError(
            "not a recording", got=why, allowed=FORMAT, fix="write it with hil rack fit"
        )
    return found


def _inconsistent(recording: Recording) -> str:
    """First rule that a recording breaks, or an empty text."""
    k, n, c = len(recording.stages), recording.own.size, recording.events_from.size
    table, ranks, own = recording.table_ps, recording.ranks, recording.own
    edges, first, per_shot = recording.edges, recording.events_from, recording.rounds_per_shot
    wide, narrow = {table.dtype, edges.dtype, first.dtype}, {ranks.dtype, own.dtype}
    if wide != {np.dtype(np.int64)} or narrow != {np.dtype(np.int32)}:
        return "types of the arrays"
    shapes = (table.shape, ranks.shape, own.shape, edges.shape, first.shape)
    if shapes != ((k, n), (k, n), (n,), (c + 1,), (c,)) or not k or not n or not c:
        return "shapes of the arrays"
    if own.min() < 0 or own.max() >= c:
        return "classes of the rounds"
    rules = {
        "classes of event counts": first[0] == 0 and (np.diff(first) > 0).all(),
        "edges of the classes": edges[0] == 0 and edges[-1] == n and (np.diff(edges) > 0).all(),
        "ranks of the rounds": ranks.min() >= 0 and (ranks < np.diff(edges)[own]).all(),
        "negative durations": table.min() >= 0,
        "rounds per shot": per_shot >= 0 and (not per_shot or n % per_shot == 0),
    }
    return next((name for name, holds in rules.items() if not holds), "")
