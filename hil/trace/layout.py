"""Groups, datasets and attributes of the streams in an HDF5 file, for the live and the final file.

Every column is one chunked dataset with its own filters; ``row`` is the dimension scale of the
first axis, ``<column>_byte`` that of a second axis.
There is no ``_FillValue`` and there are no references outside scales.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import h5py
import numpy as np

from hil.errors import TraceError
from hil.trace.codec import encoding_of
from hil.trace.column import ByteWidths, Column, Stream
from hil.trace.objects import attach_scale, create_column, write_attributes
from hil.trace.schema import LIVE_STREAMS, row_bytes

ROW: Final = "row"
ROW_COLUMN: Final = Column(name=ROW, dtype="u8", long_name="row number")
COMMITS: Final = "commits"
LIBVER: Final = ("v110", "v110")
"""Superblock 3: needed for SWMR, readable by HDF5 >= 1.10."""

ROWS_PER_COMMIT: Final = 20_480
MAX_CHUNK_ROWS: Final = 65_536
SMALL_CHUNK_ROWS: Final = 4096
MAX_COMMIT_BYTES: Final = 16 << 20
LONG_ROW_BYTES: Final = 16 << 10
"""Rows of /shots that are longer are those of a long memory,
where a chunk that is copied and compressed must stay small."""
BLOB_CHUNK: Final = 65_536


def commit_shots(record_level: str, n_rounds: int, widths: ByteWidths) -> int:
    """Shots per commit: 20 480 blocks at level rounds, up to 65 536 shots at level shots."""
    if record_level == "rounds":
        return max(1, ROWS_PER_COMMIT // (n_rounds + 1))
    shots = MAX_CHUNK_ROWS
    row = row_bytes("shots", widths)
    room = MAX_COMMIT_BYTES if row <= LONG_ROW_BYTES else MAX_COMMIT_BYTES // 8
    while shots > 1 and shots * row > room:
        shots //= 2
    return shots


def chunk_rows(stream: str, record_level: str, n_rounds: int, widths: ByteWidths) -> int:
    """Rows per chunk: for streams of fixed rate exactly the rows of one commit."""
    shots = commit_shots(record_level, n_rounds, widths)
    if stream == "blobs":
        return BLOB_CHUNK
    if stream == "shots" or (stream == "decodes" and record_level == "rounds"):
        return shots
    if stream in ("rounds", "syndromes") and record_level == "rounds":
        return _fraction(shots * (n_rounds + 1))
    return SMALL_CHUNK_ROWS if record_level == "rounds" else SMALL_CHUNK_ROWS // 4


def _fraction(rows: int) -> int:
    """Largest even share of ``rows``; rows without a good divisor get chunks of their own size."""
    parts = least = -(-rows // MAX_CHUNK_ROWS)
    while rows % parts and parts < 16 * least:
        parts += 1
    return rows // parts if rows % parts == 0 else MAX_CHUNK_ROWS


def stored_dtype(column: Column) -> np.dtype[Any]:
    """dtype of the dataset: enums are HDF5 enums over u1."""
    if column.enum is None:
        return column.numpy_dtype
    return h5py.enum_dtype(dict(column.enum), basetype=np.uint8)  # type: ignore[no-any-return]


def create_stream(
    file: h5py.File,
    spec: Stream,
    widths: ByteWidths,
    *,
    measured: bool,
    chunk: int,
    rows: int | None = None,
) -> dict[str, h5py.Dataset]:
    """Create the group of a stream: extensible and empty, or of exactly ``rows`` rows.

    Returns:
        Column name -> dataset, with the scale ``row`` among them.
    """
    group = file.create_group(spec.name)
    write_attributes(
        group, {"NX_class": "NXdata", "signal": spec.signal, "axes": ROW, "long_name": spec.doc}
    )
    row = _dataset(group, ROW_COLUMN, chunk, (), rows)
    row.make_scale(ROW)
    _describe(row, ROW_COLUMN, measured=measured)
    out = {ROW: row}
    for column in spec.columns.values():
        tail = () if column.width is None else (widths.of(column.width),)
        dataset = _dataset(group, column, chunk, tail, rows)
        _describe(dataset, column, measured=measured)
        attach_scale(dataset, 0, row)
        if tail:
            attach_scale(dataset, 1, _byte_scale(group, column.name, tail[0]))
        out[column.name] = dataset
    return out


def _dataset(
    group: h5py.Group, column: Column, chunk: int, tail: tuple[int, ...], rows: int | None
) -> h5py.Dataset:
    return create_column(
        group,
        column.name,
        stored_dtype(column),
        rows=rows or 0,
        tail=tail,
        chunk=chunk,
        shuffle=encoding_of(column).shuffle,
        extensible=rows is None,
    )


def _byte_scale(group: h5py.Group, name: str, width: int) -> h5py.Dataset:
    scale = group.create_dataset(f"{name}_byte", data=np.arange(width, dtype="<u4"))
    scale.make_scale(f"{name}_byte")
    write_attributes(scale, {"units": "1", "long_name": f"byte of {name}, LSB first"})
    return scale


def _describe(dataset: h5py.Dataset, column: Column, *, measured: bool) -> None:
    write_attributes(dataset, attributes(column, measured=measured))


def attributes(column: Column, *, measured: bool) -> dict[str, Any]:
    """Attributes of a column's dataset."""
    out: dict[str, Any] = {"units": column.units, "long_name": column.long_name}
    if column.clock is not None:
        out["clock"] = column.clock
    if column.sentinel is not None:
        out["sentinel"] = np.array(column.sentinel, dtype=column.numpy_dtype)[()]
    if column.is_volatile(measured=measured):
        out["volatile"] = np.uint8(1)
    if column.enum is not None:
        out["flag_values"] = np.array(list(column.enum.values()), dtype=np.uint8)
        out["flag_meanings"] = " ".join(column.enum)
    if column.flags is not None:
        out["flag_masks"] = np.array([1 << b for b in column.flags.values()], column.numpy_dtype)
        out["flag_meanings"] = " ".join(column.flags)
    return out


def ledger_columns(streams: Sequence[str]) -> list[str]:
    """Names of the columns of ``/commits``."""
    return [*(f"/{name}" for name in sorted(streams)), "overflow", "t_wall_ns"]


def create_ledger(file: h5py.File, columns: Sequence[str]) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Create ``/commits`` with scales on both axes; returns the ledger and its row scale."""
    width = len(columns)
    ledger = file.create_dataset(
        COMMITS, shape=(0, width), maxshape=(None, width), chunks=(64, width), dtype="<u8"
    )
    write_attributes(
        ledger,
        {
            "units": "1",
            "long_name": "committed rows per stream, rows lost by overflow, wall time in ns",
            "columns": json.dumps(list(columns)),
        },
    )
    scale = file.create_dataset("commit", shape=(0,), maxshape=(None,), chunks=(512,), dtype="<u8")
    scale.make_scale("commit")
    write_attributes(scale, {"units": "1", "long_name": "number of the commit"})
    names = file.create_dataset("commit_column", data=np.arange(width, dtype="<u4"))
    names.make_scale("commit_column")
    write_attributes(names, {"units": "1", "long_name": "column of the ledger"})
    attach_scale(ledger, 0, scale)
    attach_scale(ledger, 1, names)
    return ledger, scale


def selected(streams: Sequence[str] | None) -> tuple[str, ...]:
    """Live streams of a trace in alphabetical order.

    ``epochs`` and ``shots`` always exist; ``syndromes`` brings ``rounds`` (row-aligned), ``blobs``
    and ``blob_index`` come together.

    Raises:
        TraceError: unknown stream.
    """
    if streams is None:
        return LIVE_STREAMS
    unknown = set(streams) - set(LIVE_STREAMS)
    if unknown:
        raise TraceError(
            "unknown stream",
            where="streams",
            got=", ".join(sorted(unknown)),
            allowed=", ".join(LIVE_STREAMS),
        )
    wanted = {*streams, "epochs", "shots"}
    for name, needed in (("syndromes", "rounds"), ("blob_index", "blobs"), ("blobs", "blob_index")):
        if name in wanted:
            wanted.add(needed)
    return tuple(sorted(wanted))
