"""The commit ledger of a trace and how to open a live file: shared by reader and recovery."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py

from hil.errors import TraceError

_LOCK_RETRY_S: Final = 0.02
_LOCK_BYTE: Final = 1 << 62
"""Locked byte, far behind the end of any file; HDF5 itself locks in another way (flock)."""

_SUPERBLOCK_BYTES: Final = 48
_PROBE_S: Final = 10.0
_PROBE: Final = """
import h5py, sys
def touch(_, found):
    if isinstance(found, h5py.Dataset) and found.chunks:
        found.id.get_num_chunks()
h5py.File(sys.argv[1], "r", libver="latest", swmr=True).visititems(touch)
"""

_written: Final[set[Path]] = set()


@dataclass(frozen=True, slots=True)
class Ledger:
    """Last complete row of ``/commits``.

    Attributes:
        rows: stream -> committed rows.
        overflow: rows of all streams that were lost because the queue was full.
        commits: number of commits.
    """

    rows: dict[str, int]
    overflow: int
    commits: int


def read_ledger(dataset: h5py.Dataset) -> Ledger:
    """Read the ledger ``/commits`` of an open live or final file.

    A row counts once its last column (wall time) is there, so a row that a crash cut short is
    ignored.

    Raises:
        TraceError: there is no commit.
    """
    columns: list[str] = json.loads(dataset.attrs["columns"])
    rows = dataset[:]
    complete = rows[:, -1].nonzero()[0]
    if not len(complete):
        raise TraceError("nothing was committed to the trace", where=str(dataset.file.filename))
    last = rows[complete[-1]].tolist()
    named = dict(zip(columns, last, strict=True))
    return Ledger(
        rows={c.removeprefix("/"): n for c, n in named.items() if c.startswith("/")},
        overflow=named["overflow"],
        commits=int(complete[-1]) + 1,
    )


def open_live(path: Path, *, patience_s: float = 5.0) -> h5py.File:
    """Open a live file for reading; waits while its writer is still creating it.

    Raises:
        TraceError: the file cannot be read.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return h5py.File(path, "r", libver="latest", swmr=True)
        except (OSError, RuntimeError) as error:
            young = "unable to lock file" in str(error)
            if not young or time.monotonic() > deadline:
                raise TraceError(
                    "cannot open the live trace",
                    where=str(path),
                    got=str(error),
                    fix="a file cut off before its first commit holds nothing to recover",
                ) from error
        time.sleep(_LOCK_RETRY_S)


def refuse_cut(path: Path) -> None:
    """Refuse a live file that lost its end, which HDF5 would search for without end.

    Reading as SWMR, HDF5 repeats a read of metadata behind the end of the file with doubled pauses.
    A file whose superblock (version 3) promises more bytes than there are is therefore read once in
    a process that can be ended: after a full disk it may be whole, after a broken copy it is not.

    Raises:
        TraceError: the file is shorter than it says, and cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_SUPERBLOCK_BYTES)
    promised = int.from_bytes(head[28:36], "little")
    if len(head) < _SUPERBLOCK_BYTES or head[8] != 3 or path.stat().st_size >= promised:
        return
    try:
        subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _PROBE, str(path)],
            check=True,
            timeout=_PROBE_S,
            capture_output=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise TraceError(
            "the live trace is cut off",
            where=str(path),
            got=f"{path.stat().st_size} bytes",
            allowed=f"{promised} bytes, as the file itself says",
            fix="copy it again from where it was written",
        ) from None


def hold(path: Path) -> int:
    """Mark a live file as being written, until ``release``.

    Uses an open-file-description lock (Linux), which ends with the process, however it ends.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    _lock(handle)
    _written.add(path.resolve())
    return handle


def release(path: Path, handle: int) -> None:
    """End what ``hold`` began."""
    _written.discard(path.resolve())
    os.close(handle)


def written_here(path: Path) -> bool:
    """Whether this very process writes the live file."""
    return path.resolve() in _written


def is_held(path: Path) -> bool:
    """Whether a writer is at work on the live file."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None:  # not Linux: no guard against recovery of a trace in use
        return True
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_BYTE, 1, 0)
    try:
        fcntl.fcntl(handle, command, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
