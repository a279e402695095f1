"""The trace writer: a bounded queue in front of a thread that owns the live file.

``append`` is called by the driver and only checks and queues; compressing, writing and committing
happen in the thread, which gives the interpreter up while it works. In a virtual run a full queue
makes the driver wait; in a live run (``block=False``) nothing waits: the record is counted in
``overflow`` and the next one that fits carries the data-quality bit ``recorder_overflow``.

When the thread fails (disk full), a virtual run stops at its next call. A live loop goes on:
``append`` counts what it is offered, ``overflow`` is from then on exactly what was offered less
what the ledger of the live file holds, and ``flush`` and ``close`` raise.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hil.errors import HilError, RigError, TraceError, UsageError
from hil.trace import layout
from hil.trace.column import Record
from hil.trace.ledger import open_live, read_ledger
from hil.trace.live import LiveFile, length
from hil.trace.meta import TraceMeta
from hil.trace.paths import part_path
from hil.trace.recover import TraceExtras, rewrite
from hil.trace.schema import EXIT_STATUS, RECORD_LEVELS, Dq, check_record
from hil.trace.vocabulary import FAULT_PHASE

COMMIT_AFTER_NS: Final = 1_000_000_000
"""Rows never wait longer than this for a commit."""

_NO_EXTRAS: Final = TraceExtras()


class TraceWriter:
    """Writes one trace; see ``create``.

    Attributes:
        path: final file.
        part: live file.
        content_id: identity of the content, empty until ``close``.
    """

    def __init__(self, path: Path, live: LiveFile, queue_blocks: int) -> None:
        self.path = path
        self.part = live.path
        self.content_id = ""
        self._live = live
        self._limit = queue_blocks
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition()
        self._offered = 0
        self._overflow = 0
        self._gap = False
        self._asked_flush = 0
        self._done_flush = 0
        self._closing = False
        self._closed = False
        self._error: BaseException | None = None
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # HDF5 hangs if the process ends while a thread is inside it

    @classmethod
    def create(
        cls,
        path: Path,
        meta: TraceMeta,
        *,
        level: str,
        streams: Iterable[str] | None = None,
        n_rounds: int,
        measured: bool,
        queue_blocks: int = 8,
        overwrite: bool = False,
    ) -> TraceWriter:
        """Create the live file beside ``path`` and start the writer thread.

        Args:
            path: final file, ``NAME.h5``; the live file is ``NAME.part.h5``.
            meta: static content.
            level: record level, ``rounds`` or ``shots``.
            streams: recorded streams (default all); ``shots`` and ``epochs`` are always there.
            n_rounds: rounds of a shot without the final data readout.
            measured: times come from a wall clock; they then stay out of ``content_id``.
            queue_blocks: records that may wait for the thread.
            overwrite: replace an existing trace of this name.

        Raises:
            UsageError: wrong level or name, or the trace exists already.
            RigError: the file cannot be created.
        """
        if level not in RECORD_LEVELS:
            raise UsageError("unknown record level", got=level, allowed=", ".join(RECORD_LEVELS))
        part = part_path(path)
        for existing in (path, part):
            if existing.exists() and not overwrite:
                raise UsageError(
                    "a trace of this name exists already",
                    where=str(existing),
                    fix="choose another output folder, or recover or remove that trace",
                )
        try:
            live = LiveFile(
                part,
                meta,
                record_level=level,
                streams=streams,
                n_rounds=n_rounds,
                measured=measured,
            )
        except OSError as error:
            raise RigError("cannot create the trace", where=str(part), got=str(error)) from error
        return cls(path, live, queue_blocks)

    @property
    def overflow(self) -> int:
        """Rows of all recorded streams that were offered and will not be in the trace."""
        return self._overflow

    @property
    def failed(self) -> bool:
        """Whether the thread gave up; ``flush`` and ``close`` then raise and tell why."""
        return self._error is not None

    def append(self, record: Record, *, block: bool = True) -> bool:
        """Queue one record; its arrays belong to the writer from now on.

        Args:
            record: rows of whole shots; row references count from the record's own first row.
            block: wait for room in the queue (virtual runs) or count an overflow (live runs).

        Returns:
            False if the record was counted in ``overflow`` instead.

        Raises:
            TraceError: the record does not follow the schema.
            RigError: the writer is closed, or (with ``block``) its thread failed.
        """
        kept = {s: rows for s, rows in record.items() if s in self._live.streams}
        check_record(kept, self._live.widths)
        n_rows = sum(length(rows) for rows in kept.values())
        with self._changed:
            self._offered += n_rows
            if block or self._error is None:
                self._refuse_if_broken()
            while len(self._queue) >= self._limit or self._error is not None:
                if not block:
                    self._overflow += n_rows
                    self._gap = True
                    return False
                self._changed.wait()
                self._refuse_if_broken()
            if self._gap:
                kept = _marked(kept)
                self._gap = False
            self._queue.append(kept)
            self._changed.notify_all()
        return True

    def flush(self) -> None:
        """Wait until everything appended so far is committed to the live file.

        Raises:
            RigError: the writer thread failed.
        """
        with self._changed:
            self._refuse_if_broken()
            self._asked_flush += 1
            ticket = self._asked_flush
            self._changed.notify_all()
            while self._done_flush < ticket:
                self._changed.wait()
                self._refuse_if_broken()

    def close(self, exit_status: str, extras: TraceExtras = _NO_EXTRAS) -> Path:
        """Commit the rest, rewrite into the final file and remove the live one.

        Args:
            exit_status: ``success``, ``fail``, ``inconclusive``, ``rig_error`` or ``aborted``.
            extras: expectations and summaries that only the final file holds.

        Returns:
            The final file.

        Raises:
            UsageError: unknown exit status.
            RigError: the writer failed; what was committed is in the live file.
        """
        if exit_status not in EXIT_STATUS or exit_status == "running":
            raise UsageError(
                "unknown exit status", got=exit_status, allowed=", ".join(EXIT_STATUS[1:])
            )
        self._stop()
        with self._changed:
            if self._error is not None:
                raise self._failure() from self._error
        try:
            self.content_id = rewrite(self.part, self.path, exit_status, extras)
        except OSError as error:
            self._error = error
            raise self._failure() from error
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread; a trace that was not closed stays as a committed live file.

        Raises:
            RigError: the thread failed and no call has said so yet.
        """
        self._stop()
        if kind is None and self._error is not None and not self._reported:
            raise self._failure() from self._error

    def _stop(self) -> None:
        with self._changed:
            self._closing = self._closed = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self._stop)

    def _refuse_if_broken(self) -> None:
        if self._error is not None:
            raise self._failure() from self._error
        if self._closed:
            raise RigError("the trace writer is closed", where=str(self.path))

    def _failure(self) -> HilError:
        self._reported = True
        if isinstance(self._error, TraceError):
            return self._error
        return RigError(
            "the trace writer failed",
            where=str(self.part),
            got=f"{_cause(self._error)}; {self._overflow} of {self._offered} rows are lost",
            fix=f"free space or mend the disk, then `hil trace recover {self.part}`",
        )

    # The thread.

    def _run(self) -> None:
        try:
            while self._step():
                pass
            self._live.close(overflow=self._overflow)
        except BaseException as error:  # noqa: BLE001  (handed to the next call of the driver)
            self._abandon()
            committed = self._committed_rows()
            with self._changed:
                self._error = error
                self._overflow = self._offered - committed
                self._queue.clear()
                self._changed.notify_all()

    def _step(self) -> bool:
        record, ticket, closing = self._next()
        if record is not None:
            self._live.take(record)
            self._live.commit_whole(overflow=self._overflow)
            if _is_landmark(record) and self._live.pending:
                self._live.commit(overflow=self._overflow)
        age = time.monotonic_ns() - self._live.last_commit_ns
        if self._live.pending and (ticket is not None or age >= COMMIT_AFTER_NS):
            self._live.commit(overflow=self._overflow)
        if ticket is not None:
            with self._changed:
                self._done_flush = ticket
                self._changed.notify_all()
        return not closing

    def _next(self) -> tuple[Record | None, int | None, bool]:
        """Next record; a flush ticket once the queue is empty; whether to end."""
        with self._changed:
            while not self._queue and not self._closing and self._done_flush == self._asked_flush:
                timeout = self._patience_s() if self._live.pending else None
                if not self._changed.wait(timeout):
                    return None, None, False
            record = self._queue.popleft() if self._queue else None
            self._changed.notify_all()
            if self._queue:
                return record, None, False
            ticket = self._asked_flush if self._asked_flush > self._done_flush else None
            return record, ticket, self._closing

    def _patience_s(self) -> float:
        left = self._live.last_commit_ns + COMMIT_AFTER_NS - time.monotonic_ns()
        return max(0.001, left * 1e-9)

    def _abandon(self) -> None:
        try:
            self._live.abandon()
        except Exception:  # noqa: BLE001  (the first error is the one to report)
            return

    def _committed_rows(self) -> int:
        """Rows that the driver offered and the ledger of the abandoned live file holds."""
        try:
            with open_live(self.part, patience_s=0.0) as file:
                rows = sum(read_ledger(file[layout.COMMITS]).rows.values())
        except Exception:  # noqa: BLE001  (HDF5 could not let go of the file: what we know ourselves)
            rows = self._live.committed_rows
        return rows - 1  # the first row of /epochs is our own


def _is_landmark(record: Record) -> bool:
    """Whether to commit at once: a fault begins or ends, or an epoch does."""
    if "faults" not in record:
        return "epochs" in record
    return bool((record["faults"]["phase"] != FAULT_PHASE["frame"]).any())


def _cause(error: BaseException | None) -> str:
    """One line: HDF5 wraps the system's message in several lines of its own."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return f"{type(error).__name__}: {error}"


def _marked(record: Record) -> Record:
    """Record whose rows say that rows before them were lost."""
    out = dict(record)
    for name, rows in record.items():
        if "dq_mask" in rows:
            mask = rows["dq_mask"] | rows["dq_mask"].dtype.type(Dq.RECORDER_OVERFLOW.mask)
            out[name] = {**rows, "dq_mask": mask}
    return out
