"""The final file: a rewrite of the live one, trimmed to its ledger. Close and recovery in one.

Whole chunks are copied as they are stored; only the last chunk of a column is decoded, trimmed and
encoded again. The values pass by once for ``content_id``. A crash at any point leaves either the
live file or the final file whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from hil.errors import TraceError
from hil.trace import layout
from hil.trace.codec import Encoding, decode, encode
from hil.trace.column import Array
from hil.trace.content import (
    NOT_CONTENT,
    ContentHash,
    datasets_below,
    sync_file,
    write_manifest,
)
from hil.trace.extras import HopSummary, TraceExtras, write_expect, write_summary
from hil.trace.handles import is_open_here
from hil.trace.ledger import Ledger, is_held, open_live, read_ledger, refuse_cut
from hil.trace.meta import write_epoch
from hil.trace.objects import attach_scale, copy_attributes, create_column, open_dataset
from hil.trace.paths import final_path, part_path
from hil.trace.schema import RECOVERED

__all__ = ["HopSummary", "TraceExtras", "final_path", "part_path", "recover", "rewrite"]


def rewrite(part: Path, final: Path, exit_status: str, extras: TraceExtras) -> str:
    """Make the final file from a live one, then remove the live one.

    Args:
        part: live file that nobody writes any more.
        final: name of the final file; replaced in one step.
        exit_status: root attribute of the final file.
        extras: expectations and summaries.

    Returns:
        ``content_id`` of the final file.

    Raises:
        TraceError: the live file is damaged.
        OSError: the final file cannot be written; the live file is untouched.
    """
    tmp = final.with_name(final.name + ".tmp")
    tmp.unlink(missing_ok=True)
    try:
        with open_live(part) as source, h5py.File(tmp, "w", libver=layout.LIBVER) as target:
            run_id = str(source.attrs["run_id"])
            identity = _copy(source, target, extras)
            target.attrs.update(
                {"exit_status": exit_status, "content_id": identity, "closed_utc": _utc_now()}
            )
        sync_file(tmp)
        write_manifest(final, tmp, identity, run_id)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    tmp.replace(final)
    sync_file(final.parent)
    part.unlink()
    return identity


def recover(part: Path) -> Path:
    """Final file of a run that ended without closing its trace (``exit_status="recovered"``).

    Raises:
        TraceError: the file is still being written, holds no commit, or is damaged.
    """
    final = final_path(part)
    if not part.exists():
        raise TraceError("no such live trace", where=str(part))
    if is_held(part):
        raise TraceError(
            "the trace is still being written", where=str(part), fix="wait for the run to end"
        )
    refuse_cut(part)
    if is_open_here(part):  # its cached state would be copied instead of the file's
        raise TraceError(
            "this process reads the live trace",
            where=str(part),
            fix="close the open trace before you recover it",
        )
    if final.exists():
        raise TraceError(
            "the final file exists already",
            where=str(final),
            fix=f"`hil trace validate {final}`; if it is whole, remove {part}",
        )
    rewrite(part, final, RECOVERED, TraceExtras())
    return final


def _utc_now() -> str:
    return datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _copy(source: h5py.File, target: h5py.File, extras: TraceExtras) -> str:
    ledger = read_ledger(source[layout.COMMITS])
    copy_attributes(source, target)
    source.copy("meta", target)
    _expand_epochs(source, target, ledger)
    measured = bool(source.attrs["measured"])
    identity = ContentHash()
    for name in sorted([*ledger.rows, "expect", "summary"]):
        if name in ledger.rows:
            in_content = name not in NOT_CONTENT
            _copy_stream(source[name], target, ledger.rows[name], identity if in_content else None)
        elif name == "expect":
            write_expect(target, extras.expect, measured=measured)
            _hash_group(target[name], identity)
        else:
            write_summary(target, extras.summary, measured=measured)
            _hash_group(target[name], identity)
    _copy_ledger(source, target, ledger)
    return identity.hexdigest()


def _copy_stream(
    group: h5py.Group, target: h5py.File, rows: int, identity: ContentHash | None
) -> None:
    new = target.create_group(str(group.name))
    copy_attributes(group, new)
    row = _copy_column(open_dataset(group, layout.ROW), new, rows, None)
    row.make_scale(layout.ROW)
    for name in sorted(set(group) - {layout.ROW}):
        old = open_dataset(group, name)
        if old.is_scale:
            continue
        if len(old) < rows:
            raise TraceError(
                "column is shorter than the ledger says",
                where=f"{group.file.filename}:{old.name}",
                got=f"{len(old)} rows",
                allowed=f"at least {rows}",
            )
        column = _copy_column(old, new, rows, identity)
        attach_scale(column, 0, row)
        if column.ndim > 1:
            attach_scale(column, 1, _copy_axis(open_dataset(group, f"{name}_byte"), new))


def _copy_axis(old: h5py.Dataset, group: h5py.Group) -> h5py.Dataset:
    name = str(old.name).rpartition("/")[2]
    scale = group.create_dataset(name, data=old[:])
    scale.make_scale(name)
    copy_attributes(old, scale)
    return scale


def _copy_column(
    old: h5py.Dataset, group: h5py.Group, rows: int, identity: ContentHash | None
) -> h5py.Dataset:
    """Copy a column; its values enter ``identity`` unless it is volatile."""
    name, chunks, tail = str(old.name), old.chunks, old.shape[1:]
    new = create_column(
        group,
        name.rpartition("/")[2],
        old.dtype,
        rows=rows,
        tail=tail,
        chunk=max(1, min(chunks[0], rows)),
        shuffle=bool(old.shuffle),
        extensible=False,
    )
    attributes = copy_attributes(old, new)
    if attributes.get("volatile", 0):
        identity = None
    if identity is not None:
        identity.begin(name, old.dtype, (rows, *tail))
    try:
        for values in _copy_chunks(old, new, rows, decoded=identity is not None):
            if identity is not None:
                identity.update(values)
    except (OSError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TraceError(
            "damaged chunk", where=f"{old.file.filename}:{name}", got=str(error)
        ) from error
    return new


def _copy_chunks(
    old: h5py.Dataset, new: h5py.Dataset, rows: int, *, decoded: bool
) -> Iterator[Array]:
    """Copy the chunks below ``rows``; yields their values if they are ``decoded``."""
    size, tail, shuffle = old.chunks[0], old.shape[1:], bool(old.shuffle)
    last_data, last_values = b"", np.empty(0)
    for first in range(0, rows, size):
        at = (first, *(0 for _ in tail))
        _, data = old.id.read_direct_chunk(at)
        whole = first + size <= rows
        if decoded or not whole:
            if data != last_data:
                last_values = decode(data, old.dtype, (size, *tail), shuffle=shuffle)
                last_data = data
            values = last_values[: rows - first]
        if not whole:
            padded = np.zeros((new.chunks[0], *tail), old.dtype)
            padded[: rows - first] = values
            data = encode(padded, Encoding(shuffle=shuffle, strategy=zlib.Z_DEFAULT_STRATEGY))
        new.id.write_direct_chunk(at, data)
        if decoded:
            yield values


def _copy_ledger(source: h5py.File, target: h5py.File, ledger: Ledger) -> None:
    old = source[layout.COMMITS]
    new, scale = layout.create_ledger(target, json.loads(old.attrs["columns"]))
    n = ledger.commits
    scale.resize((n,))
    scale[:] = np.arange(n)
    new.resize((n, old.shape[1]))
    new[:] = old[:n]


def _expand_epochs(source: h5py.File, target: h5py.File, ledger: Ledger) -> None:
    """Put parameters and models of epochs that began during the run under ``/meta/epochs``."""
    if not ledger.rows.get("blob_index"):
        return
    epochs = source["epochs"]
    for row in range(ledger.rows["epochs"]):
        params, dem = (int(epochs[c][row]) for c in ("blob_params", "blob_dem"))
        if params >= 0 and dem >= 0:
            texts = [_blob(source, ledger, r).decode() for r in (params, dem)]
            write_epoch(target["meta"], int(epochs["epoch"][row]), *texts)


def _blob(source: h5py.File, ledger: Ledger, row: int) -> bytes:
    index = source["blob_index"]
    if row >= ledger.rows["blob_index"]:
        raise TraceError("epoch refers to a blob that was not committed", where="/blob_index")
    first, length = int(index["offset"][row]), int(index["length"][row])
    data: bytes = source["blobs/data"][first : first + length].tobytes()
    return data


def _hash_group(group: h5py.Group, identity: ContentHash) -> None:
    for dataset in datasets_below(group):
        identity.begin(str(dataset.name), dataset.dtype, dataset.shape)
        identity.update(dataset[:])
