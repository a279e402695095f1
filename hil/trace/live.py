"""The live file ``NAME.part.h5``: rows in, whole compressed chunks out, the ledger last.

No thread and no queue here (``hil.trace.writer`` has them): ``take`` rows, ``commit`` them. After a
commit a crash of the process loses nothing that the ledger counts. Everything that the file holds
is created before SWMR starts; rows go in as ready-made chunks, so HDF5 does no compression.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from hil.trace import layout
from hil.trace.codec import Encoding, constant, encode, encoding_of
from hil.trace.column import Array, Block, Column, Record
from hil.trace.ledger import hold, release
from hil.trace.meta import TraceMeta, write_meta
from hil.trace.schema import STREAMS


class ColumnSink:
    """Appends rows to one dataset, chunk by chunk; keeps the rows of the unfinished chunk."""

    def __init__(self, dataset: h5py.Dataset, column: Column) -> None:
        self._id = dataset.id
        self._chunk: int = dataset.chunks[0]
        self._tail_shape: tuple[int, ...] = dataset.shape[1:]
        self._dtype = column.numpy_dtype
        self._encoding: Encoding = encoding_of(column)
        self._rest: Array = np.empty((0, *self._tail_shape), self._dtype)
        self._rest_bytes = -1
        self._constants: dict[bytes, bytes] = {}

    def append(self, first: int, pieces: Sequence[Array]) -> None:
        """Append the rows of ``pieces`` behind the ``first`` rows already there."""
        rows = _joined([self._rest, *pieces] if len(self._rest) else pieces)
        start = first - len(self._rest)
        self._id.set_extent((start + len(rows), *self._tail_shape))
        for offset in range(0, len(rows), self._chunk):
            part = rows[offset : offset + self._chunk]
            if len(part) == self._chunk:
                self._put(start + offset, self._encoded(part))
                self._rest_bytes = -1
            else:
                self._put_unfinished(start + offset, part)
        keep = len(rows) % self._chunk
        self._rest = rows[len(rows) - keep :]

    def _put_unfinished(self, row: int, part: Array) -> None:
        padded = np.zeros((self._chunk, *self._tail_shape), self._dtype)
        padded[: len(part)] = part
        data = encode(padded, self._encoding)
        if len(data) == self._rest_bytes:
            # HDF5 would overwrite a chunk of equal size in place, and a kill could tear committed
            # rows; one byte behind the end of the zlib stream moves the chunk elsewhere.
            data += b"\0"
        self._rest_bytes = len(data)
        self._put(row, data)

    def _put(self, row: int, data: bytes) -> None:
        self._id.write_direct_chunk((row, *(0 for _ in self._tail_shape)), data)

    def _encoded(self, part: Array) -> bytes:
        if not constant(part):
            return encode(np.ascontiguousarray(part), self._encoding)
        key = part[0].tobytes()
        if key not in self._constants:
            self._constants.clear()
            self._constants[key] = encode(np.ascontiguousarray(part), self._encoding)
        return self._constants[key]


def _joined(pieces: Sequence[Array]) -> Array:
    """One array of all rows; stays of stride 0 where every piece holds the same constant."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    if all(p.strides[0] == 0 for p in pieces) and len({p[0].tobytes() for p in pieces}) == 1:
        return np.broadcast_to(first[0], (sum(map(len, pieces)), *first.shape[1:]))
    return np.concatenate(pieces)


class StreamSink:
    """Appends blocks to one stream."""

    def __init__(self, datasets: dict[str, h5py.Dataset], name: str) -> None:
        spec = STREAMS[name]
        self.rows = 0
        self._row = ColumnSink(datasets[layout.ROW], layout.ROW_COLUMN)
        self._columns = {c: ColumnSink(datasets[c], spec.columns[c]) for c in spec.columns}

    def append(self, blocks: Sequence[Block]) -> None:
        """Append the rows of ``blocks`` (none of them empty)."""
        for name, sink in self._columns.items():
            sink.append(self.rows, [b[name] for b in blocks])
        n = sum(length(b) for b in blocks)
        self._row.append(self.rows, [np.arange(self.rows, self.rows + n, dtype="<u8")])
        self.rows += n


class LiveFile:
    """A trace that is being written; single-threaded.

    Attributes:
        path: the part file.
        streams: recorded streams in alphabetical order.
        commit_shots: shots per regular commit.
        committed_rows: rows of all streams that the ledger holds.
        last_commit_ns: monotonic time of the last commit.
    """

    def __init__(
        self,
        path: Path,
        meta: TraceMeta,
        *,
        record_level: str,
        streams: Iterable[str] | None,
        n_rounds: int,
        measured: bool,
    ) -> None:
        self.path = path
        self.widths = meta.widths
        self.streams = layout.selected(None if streams is None else list(streams))
        self.commit_shots = layout.commit_shots(record_level, n_rounds, self.widths)
        self._file = h5py.File(path, "w", libver=layout.LIBVER)
        try:
            self._fill(meta, record_level=record_level, n_rounds=n_rounds, measured=measured)
        except BaseException:
            self._file.close()
            path.unlink()
            raise
        self.take({"epochs": meta.first_epoch()})
        self.commit(overflow=0)

    def _fill(self, meta: TraceMeta, *, record_level: str, n_rounds: int, measured: bool) -> None:
        """Make everything that the file will ever hold, then let readers in."""
        write_meta(
            self._file, meta, record_level=record_level, n_rounds=n_rounds, measured=measured
        )
        self._sinks: dict[str, StreamSink] = {}
        for name in self.streams:
            datasets = layout.create_stream(
                self._file,
                STREAMS[name],
                self.widths,
                measured=measured,
                chunk=layout.chunk_rows(name, record_level, n_rounds, self.widths),
            )
            self._sinks[name] = StreamSink(datasets, name)
        self._columns = layout.ledger_columns(self.streams)
        self._ledger, self._ledger_scale = layout.create_ledger(self._file, self._columns)
        self._file.swmr_mode = True
        self._lock = hold(self.path)
        self._taken = dict.fromkeys(self.streams, 0)
        self._pending: list[Record] = []
        self._commits = self.committed_rows = 0
        self.last_commit_ns = time.monotonic_ns()

    @property
    def pending(self) -> bool:
        """Whether rows wait for a commit."""
        return bool(self._pending)

    def take(self, record: Record) -> None:
        """Keep the rows of the recorded streams, with row references made absolute."""
        kept = {s: rows for s, rows in record.items() if s in self._sinks and length(rows)}
        if not kept:
            return
        taken = {s: _absolute(STREAMS[s].columns, rows, self._taken) for s, rows in kept.items()}
        for name, rows in taken.items():
            self._taken[name] += length(rows)
        self._pending.append(taken)

    def commit_whole(self, *, overflow: int) -> None:
        """Commit up to the last multiple of ``commit_shots``; the rest keeps waiting."""
        committed = self._sinks["shots"].rows
        waiting = sum(length(r["shots"]) for r in self._pending if "shots" in r)
        goal = (committed + waiting) // self.commit_shots * self.commit_shots - committed
        if goal > 0:
            head, self._pending = _split(self._pending, goal)
            self._write(head, overflow)

    def commit(self, *, overflow: int) -> None:
        """Commit everything that was taken."""
        records, self._pending = self._pending, []
        self._write(records, overflow)

    def close(self, *, overflow: int) -> None:
        """Commit the rest and close the file."""
        self.commit(overflow=overflow)
        self._file.close()
        release(self.path, self._lock)

    def abandon(self) -> None:
        """Close without a commit (after an error); the ledger stays as it is."""
        release(self.path, self._lock)
        self._file.close()

    def _write(self, records: Sequence[Record], overflow: int) -> None:
        for name, sink in self._sinks.items():
            blocks = [r[name] for r in records if name in r]
            if blocks:
                sink.append(blocks)
        self._ledger_scale.resize((self._commits + 1,))
        self._ledger_scale[self._commits] = self._commits
        self._file.flush()
        row = [*(self._sinks[s].rows for s in self.streams), overflow, time.time_ns()]
        self._ledger.resize((self._commits + 1, len(row)))
        self._ledger[self._commits] = np.array(row, dtype="<u8")
        self._ledger.flush()
        self._commits += 1
        self.committed_rows = sum(row[:-2])
        self.last_commit_ns = time.monotonic_ns()


def length(rows: Block) -> int:
    """Number of rows of a block."""
    return len(next(iter(rows.values())))


def _absolute(columns: Mapping[str, Column], rows: Block, taken: dict[str, int]) -> Block:
    """Block whose row references count from the start of the trace."""
    references = [c for c in columns.values() if c.row_of is not None]
    if not references:
        return rows
    out = dict(rows)
    for column in references:
        values = out[column.name]
        if column.row_of not in taken:  # the stream is not recorded: nothing to refer to
            out[column.name] = np.broadcast_to(values.dtype.type(column.sentinel), values.shape)
            continue
        offset = values.dtype.type(taken[column.row_of])
        if values.size and values.strides[0] == 0 and values[0] == column.sentinel:
            continue
        moved = values + offset
        if column.sentinel is not None:
            moved = np.where(values == values.dtype.type(column.sentinel), values, moved)
        out[column.name] = moved
    return out


def _split(records: Sequence[Record], shots: int) -> tuple[list[Record], list[Record]]:
    """First ``shots`` shots with the rows that belong to them, and the rest."""
    head: list[Record] = []
    for i, record in enumerate(records):
        n = length(record["shots"]) if "shots" in record else 0
        if n <= shots:
            head.append(record)
            shots -= n
            continue
        if shots == 0:
            return head, list(records[i:])
        first, rest = _cut(record, int(record["shots"]["shot"][shots - 1]))
        return [*head, first], [rest, *records[i + 1 :]]
    return head, []


def _cut(record: Record, last_shot: int) -> tuple[Record, Record]:
    """Rows up to ``last_shot`` and rows behind it; streams without shots go with the rest."""
    head: Record = {}
    rest: Record = {}
    aligned = _cut_rows(record.get("rounds"), last_shot)
    for name, rows in record.items():
        own = _cut_rows(rows, last_shot) if "shot" in rows else 0
        at = aligned if name == "syndromes" else own
        if at:
            head[name] = {c: a[:at] for c, a in rows.items()}
        if at < length(rows):
            rest[name] = {c: a[at:] for c, a in rows.items()}
    return head, rest


def _cut_rows(rows: Block | None, last_shot: int) -> int:
    return 0 if rows is None else int(np.searchsorted(rows["shot"], last_shot, side="right"))
