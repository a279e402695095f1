"""Stamps beside the wire: one memory-mapped file that the node writes and the rack reads.

Wire messages have no room for the node's stamps, so they travel in shared memory. Two rings of
rows: one row per syndrome frame (by counter) and one per shot. A row is valid for its reader only
while it carries the full number that the reader asks for: the writer invalidates it first, fills
it, and stores the number last. A row overwritten by a later generation is therefore *missing*,
never wrong. All stamps are int64 picoseconds of ``CLOCK_MONOTONIC``, ``MISSING_PS`` if absent.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hil.errors import NodeError
from hil.timebase import MISSING_PS

MAGIC: Final = 0x324D5453_4C4948  # bytes "HILSTM2"
EMPTY: Final = -1

HEADER: Final = np.dtype(
    [
        ("magic", "<u8"),
        ("n_frames", "<u8"),
        ("n_shots", "<u8"),
        ("prediction_bytes", "<u8"),
    ]
)

FRAME: Final = np.dtype([("counter", "<i8"), ("t_rx_ps", "<i8"), ("t_visible_ps", "<i8")])
"""One row per enqueue_syndromes that reached the session."""


def shot_dtype(prediction_bytes: int) -> np.dtype[np.void]:
    """Row of a shot whose answers have ``prediction_bytes`` bytes."""
    return np.dtype(
        [
            ("shot", "<i8"),
            ("t_decode_start_ps", "<i8"),  # of the answer that went out
            ("t_decode_end_ps", "<i8"),
            ("primary_start_ps", "<i8"),
            ("primary_end_ps", "<i8"),
            ("fallback_start_ps", "<i8"),
            ("fallback_end_ps", "<i8"),
            ("t_reply_tx_ps", "<i8"),
            ("n_events", "<i4"),
            ("queue_depth", "<u2"),
            ("path", "u1"),
            ("reason", "u1"),
            ("executed_primary", "u1"),
            ("executed_fallback", "u1"),
            ("primary_failed", "u1"),
            ("backend", "u1"),
            ("precision", "u1"),
            ("residual_events", "<i4"),
            ("primary_prediction_b8", "u1", (prediction_bytes,)),
            ("fallback_prediction_b8", "u1", (prediction_bytes,)),
        ]
    )


def create_stamp_file(n_frames: int, n_shots: int, prediction_bytes: int) -> Path:
    """Create a stamp file of that capacity in shared memory (or the temporary directory).

    The creator unlinks it as soon as it has it open; the node inherits the descriptor.

    Raises:
        NodeError: there is no room for it.
    """
    shared = Path("/dev/shm")  # noqa: S108 - a unique name is drawn by mkstemp
    directory = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    descriptor, name = tempfile.mkstemp(prefix="hil-stamps-", dir=directory)
    with os.fdopen(descriptor, "r+b") as file:
        size = _size(n_frames, n_shots, prediction_bytes)
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a hole would be a SIGBUS later
        except OSError as error:
            Path(name).unlink()
            raise NodeError(
                "no room for the stamp file",
                where=name,
                got=f"{size} bytes: {error}",
                fix="lower stamp_shots, or free shared memory",
            ) from error
        with mmap.mmap(file.fileno(), size) as memory:
            header = np.zeros(1, HEADER)
            header[0] = (MAGIC, n_frames, n_shots, prediction_bytes)
            memory[: HEADER.itemsize] = header.tobytes()
            frames, shots = _views(memory, n_frames, n_shots, prediction_bytes)
            frames["counter"] = EMPTY
            shots["shot"] = EMPTY
            del frames, shots
    return Path(name)


def _size(n_frames: int, n_shots: int, prediction_bytes: int) -> int:
    rows = n_frames * FRAME.itemsize + n_shots * shot_dtype(prediction_bytes).itemsize
    return HEADER.itemsize + rows


def _views(
    memory: mmap.mmap, n_frames: int, n_shots: int, prediction_bytes: int
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    frames = np.frombuffer(memory, FRAME, n_frames, HEADER.itemsize)
    offset = HEADER.itemsize + n_frames * FRAME.itemsize
    return frames, np.frombuffer(memory, shot_dtype(prediction_bytes), n_shots, offset)


class _Mapped:
    """Both rings of an open stamp file."""

    def __init__(self, path: str | Path) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        header = np.frombuffer(self._memory, HEADER, 1)[0].copy()
        n_frames, n_shots = int(header["n_frames"]), int(header["n_shots"])
        width = int(header["prediction_bytes"])
        size = _size(n_frames, n_shots, width)
        if int(header["magic"]) != MAGIC or len(self._memory) != size:
            raise NodeError(
                "not a stamp file of this version",
                where=str(path),
                got=f"magic {int(header['magic']):#x}, {len(self._memory)} bytes",
                allowed=f"magic {MAGIC:#x}, {size} bytes",
            )
        self._frames, self._shots = _views(self._memory, n_frames, n_shots, width)
        self._n_frames, self._n_shots = n_frames, n_shots

    def close(self) -> None:
        """Drop the views and the mapping (a view that someone still holds keeps it alive)."""
        self._frames = self._shots = np.zeros(0, FRAME)
        with contextlib.suppress(BufferError):
            self._memory.close()


class StampWriter(_Mapped):
    """The node's side."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._shot_fields = self._shots.dtype.names or ()

    def frame(self, counter: int, t_rx_ps: int, t_visible_ps: int) -> None:
        """Publish the stamps of the syndrome frame ``counter``."""
        row = self._frames[counter % self._n_frames]
        row["counter"] = EMPTY
        row["t_rx_ps"] = t_rx_ps
        row["t_visible_ps"] = t_visible_ps
        row["counter"] = counter

    def shot(self, shot: int, values: dict[str, object]) -> None:
        """Publish the row of ``shot``; fields that are not in ``values`` become missing or 0."""
        row = self._shots[shot % self._n_shots]
        row["shot"] = EMPTY
        for name in self._shot_fields[1:]:
            row[name] = values.get(name, MISSING_PS if name.endswith("_ps") else 0)
        row["shot"] = shot


class StampReader(_Mapped):
    """The rack's side: rows by number, with a mask of those that are there."""

    def frames(self, counters: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Copies of the rows of ``counters`` int64 [n] and a mask bool [n] of the valid ones."""
        return _read(self._frames, counters, "counter")

    def shots(self, shots: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Copies of the rows of ``shots`` int64 [n] and a mask bool [n] of the valid ones."""
        return _read(self._shots, shots, "shot")


class NoStamps:
    """Of a node that keeps its stamps to itself: every row is there, and empty."""

    def __init__(self, prediction_bytes: int) -> None:
        self._shot = np.zeros(1, shot_dtype(prediction_bytes))
        self._frame = np.zeros(1, FRAME)
        for row in (self._shot, self._frame):
            for name in row.dtype.names or ():
                if name.endswith("_ps"):
                    row[name] = MISSING_PS
        self._shot["n_events"] = self._shot["residual_events"] = -1

    def frames(self, counters: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """As ``StampReader.frames``."""
        return np.repeat(self._frame, len(counters)), np.ones(len(counters), np.bool_)

    def shots(self, shots: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """As ``StampReader.shots``."""
        return np.repeat(self._shot, len(shots)), np.ones(len(shots), np.bool_)


def _read(
    ring: NDArray[np.void], numbers: NDArray[np.int64], key: str
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    index = numbers % len(ring)
    before = ring[key][index]
    rows = ring[index]
    after = ring[key][index]
    return rows, (before == numbers) & (after == numbers) & (rows[key] == numbers)
