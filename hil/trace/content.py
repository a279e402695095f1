"""Identity of a trace: ``content_id`` over values, and the manifest over bytes of the file.

``content_id`` is the SHA-256 over all non-volatile columns in alphabetical order of their paths,
each as: path, 0x00, numpy dtype string (little-endian), 0x00, shape as decimal numbers joined by
commas, 0x00, values in C order, little-endian. ``/commits``, ``/logs``, ``/meta`` and dimension
scales (``row`` and the byte axes, which repeat the shape) are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hil.errors import TraceError
from hil.trace.column import Array

NOT_CONTENT: Final = frozenset({"meta", "logs", "plots", "clocks", "attachments", "integrity"})
MANIFEST_FORMAT: Final = "hil-trace-manifest"
_ROWS_AT_ONCE: Final = 65_536
_BYTES_AT_ONCE: Final = 64 << 20


class ContentHash:
    """Streaming SHA-256 of columns; feed them in alphabetical order of path."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def begin(self, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Start a column of final ``shape``; its values follow by ``update``."""
        text = (path, dtype.newbyteorder("<").str, ",".join(map(str, shape)))
        for part in text:
            self._sha.update(part.encode() + b"\0")

    def update(self, values: Array) -> None:
        """Next rows of the column, any byte order."""
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        self._sha.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The identity, lower-case hex."""
        return self._sha.hexdigest()


def datasets_below(group: h5py.Group) -> list[h5py.Dataset]:
    """Non-volatile columns of a group, in alphabetical order of path."""
    found: list[h5py.Dataset] = []

    def visit(_: str, node: object) -> None:
        if not isinstance(node, h5py.Dataset) or node.is_scale:
            return
        if not node.attrs.get("volatile", 0):
            found.append(node)

    group.visititems(visit)
    return sorted(found, key=lambda d: str(d.name).encode())


def content_datasets(file: h5py.File) -> list[h5py.Dataset]:
    """Columns that enter ``content_id``, in alphabetical order of path."""
    groups = sorted(n for n in file if n not in NOT_CONTENT and isinstance(file[n], h5py.Group))
    return [dataset for name in groups for dataset in datasets_below(file[name])]


def content_id(file: h5py.File) -> str:
    """``content_id`` of an open file, read in pieces."""
    total = ContentHash()
    for dataset in content_datasets(file):
        total.begin(dataset.name, dataset.dtype, dataset.shape)
        row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
        step = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // row_bytes))
        for first in range(0, dataset.shape[0] if dataset.shape else 0, step):
            total.update(dataset[first : first + step])
        if not dataset.shape:
            total.update(np.asarray(dataset[()]))
    return total.hexdigest()


def manifest_path(trace: Path) -> Path:
    """Sidecar of a trace: ``NAME.h5.manifest.json``."""
    return trace.with_name(trace.name + ".manifest.json")


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(trace: Path, data: Path, identity: str, run_id: str) -> None:
    """Write the sidecar of ``trace`` for the bytes in ``data`` (atomically)."""
    document = {
        "format": MANIFEST_FORMAT,
        "version": 1,
        "file": trace.name,
        "bytes": data.stat().st_size,
        "sha256": file_sha256(data),
        "content_id": identity,
        "run_id": run_id,
    }
    target = manifest_path(trace)
    tmp = target.with_name(target.name + ".tmp")
    tmp.write_text(json.dumps(document, indent=1) + "\n")
    sync_file(tmp)
    tmp.replace(target)


def read_manifest(trace: Path) -> dict[str, Any] | None:
    """The sidecar of ``trace``, or ``None`` if there is none.

    Raises:
        TraceError: the sidecar is not one of ours.
    """
    path = manifest_path(trace)
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text())
        known = document["format"] == MANIFEST_FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError("damaged manifest", where=str(path), got=repr(error)) from error
    if not known:
        raise TraceError("not a trace manifest", where=str(path), allowed=MANIFEST_FORMAT)
    return dict(document)


def sync_file(path: Path) -> None:
    """Bring a file (or the entries of a folder) from the page cache to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
