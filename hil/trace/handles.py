"""Files held open for reading: at most one handle per dataset of a live file in a process.

Refreshing a dataset of a SWMR file while a second handle of the same dataset is open makes HDF5
2.0.0 return wrong values from then on, silently (every chunk reads like the first). All handles of
one file in one process share their state, so readers of the same live file share one ``OpenFile``.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import h5py

from hil.errors import TraceError
from hil.trace.ledger import is_held, open_live, refuse_cut, written_here
from hil.trace.objects import open_dataset
from hil.trace.paths import is_live

_lock: Final = threading.Lock()
_shared: Final[dict[tuple[int, int], OpenFile]] = {}


class OpenFile:
    """A file open for reading.

    Attributes:
        path: the file.
        file: the HDF5 file; take datasets from ``dataset`` only.
        live: whether the file may still grow.
    """

    def __init__(self, path: Path, key: tuple[int, int] | None) -> None:
        self.path = path
        self.live = key is not None
        if self.live and not written_here(path) and not is_held(path):
            refuse_cut(path)
        self.file = open_live(path) if self.live else _open_final(path)
        self._key = key
        self._users = 1
        self._own = written_here(path)
        self._lock = threading.RLock()
        self._handles: dict[str, h5py.Dataset] = {}
        self._stale: set[str] = set()

    def dataset(self, path: str) -> h5py.Dataset:
        """The one handle of a dataset, up to date with the last ``advance``.

        Raises:
            KeyError: there is no such dataset.
        """
        with self._lock:
            if path not in self._handles:
                self._handles[path] = open_dataset(self.file, path)
                self._stale.add(path)
            handle = self._handles[path]
            if path in self._stale:
                self._stale.discard(path)
                if self.live and not self._own:
                    handle.refresh()
            return handle

    def columns(self, group: str) -> list[str]:
        """Names of the datasets of a group that are no dimension scales, alphabetical."""
        names = sorted(self.file[group])
        return [n for n in names if not self.dataset(f"{group}/{n}").is_scale]

    def advance(self) -> None:
        """Let every dataset be refreshed before its next use."""
        with self._lock:
            self._stale.update(self._handles)

    def close(self) -> None:
        """Close the file once its last user has done so."""
        with _lock:
            self._users -= 1
            if self._users == 0:
                self._handles.clear()
                self.file.close()
                if self._key is not None:
                    _shared.pop(self._key, None)

    def _join(self) -> OpenFile:
        self._users += 1
        self.advance()
        return self


def open_file(path: Path) -> OpenFile:
    """Open a final or live trace for reading.

    Raises:
        TraceError: the file cannot be opened.
    """
    if not is_live(path):
        return OpenFile(path, None)
    with _lock:
        key = _key(path)
        if key in _shared:
            return _shared[key]._join()
        _shared[key] = opened = OpenFile(path, key)
        return opened


def is_open_here(path: Path) -> bool:
    """Whether this process reads the live file."""
    with _lock:
        return _key(path) in _shared


def _key(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _open_final(path: Path) -> h5py.File:
    if path.is_dir():
        raise TraceError(
            "cannot open the trace",
            where=str(path),
            got="a folder",
            allowed="an HDF5 file that was closed",
            fix=f"name the file in it, such as {path / 'trace.h5'}",
        )
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise TraceError(
            "cannot open the trace",
            where=str(path),
            got=str(error),
            allowed="an HDF5 file that was closed",
            fix="if it is a live file under another name, rename it to NAME.part.h5 and "
            "`hil trace recover NAME.part.h5`",
        ) from error
