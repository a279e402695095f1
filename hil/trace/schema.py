"""The trace schema for its users: constructor of blocks, checks of records, ``schema_json``.

A driver builds one ``Record`` per batch with ``block`` and hands it to the writer and to the
metrics. Whatever it does not state is filled with the column's default, as an array of stride 0
that costs neither memory nor time; arrays of a record are read-only by agreement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from hil.errors import TraceError
from hil.timebase import MISSING_PS
from hil.trace.column import Array, Block, ByteWidths, Column, Record, Stream
from hil.trace.streams import (
    EXIT_STATUS,
    NO_FIRST_ROW,
    NO_ROW,
    RECOVERED,
    STREAMS,
    SUMMARY,
    SUMMARY_SCALES,
    Dq,
    Status,
)

__all__ = [
    "EXIT_STATUS",
    "FORMAT",
    "FORMAT_VERSION",
    "LIVE_STREAMS",
    "MISSING_PS",
    "NO_FIRST_ROW",
    "NO_ROW",
    "RECORD_LEVELS",
    "RECOVERED",
    "STREAMS",
    "Array",
    "Block",
    "ByteWidths",
    "Column",
    "Dq",
    "Record",
    "Status",
    "Stream",
    "block",
    "check_record",
    "clip",
    "code",
    "row_bytes",
    "schema_document",
    "schema_json",
]

FORMAT: Final = "hil-trace"
FORMAT_VERSION: Final = "1.0.0"
RECORD_LEVELS: Final = ("rounds", "shots")
LIVE_STREAMS: Final = tuple(sorted(s.name for s in STREAMS.values() if not s.final_only))


def code(stream: str, column: str, name: str) -> int:
    """Code of enum member ``name``, e.g. ``code("packets", "kind", "rx") == 1``.

    Raises:
        TraceError: the column has no such member.
    """
    members = _column(stream, column).enum or {}
    if name not in members:
        raise TraceError(
            "no such enum member",
            where=f"/{stream}/{column}",
            got=name,
            allowed=", ".join(members) or "not an enum column",
        )
    return members[name]


def clip(stream: str, column: str, text: str) -> bytes:
    """UTF-8 bytes of ``text`` that fit the text column; a cut one ends in ``...``."""
    size = _column(stream, column).numpy_dtype.itemsize
    data = text.encode()
    if len(data) <= size:
        return data
    return data[: size - 3].decode(errors="ignore").encode() + b"..."


def block(stream: str, n: int, widths: ByteWidths, /, **columns: ArrayLike) -> Block:
    """Rows of one stream with everything that is not stated filled in.

    Args:
        stream: name of the stream.
        n: number of rows.
        widths: second axes of the packed columns (``TraceMeta.widths``).
        **columns: column name -> scalar (same value in all rows), or array of shape [n] or
            [n, bytes]. Integers of another width are range-checked and cast; texts are encoded.

    Returns:
        All columns of the stream, exact dtypes; constants are read-only arrays of stride 0.

    Raises:
        TraceError: unknown or missing column, wrong shape, value that the dtype cannot hold.
    """
    spec = _stream(stream)
    unknown = columns.keys() - spec.columns.keys()
    if unknown:
        raise TraceError(
            "unknown column",
            where=f"/{stream}",
            got=", ".join(sorted(unknown)),
            allowed=", ".join(spec.columns),
        )
    out: Block = {}
    for name, column in spec.columns.items():
        value = columns.get(name, column.default)
        if value is None:
            raise TraceError(
                "required column is not stated",
                where=f"/{stream}/{name}",
                fix=f"pass `{name}=...`: {column.long_name}",
            )
        out[name] = _filled(spec, column, n, widths, value)
    return out


def check_record(record: Record, widths: ByteWidths) -> None:
    """Raise unless ``record`` has exactly the schema's columns, dtypes and shapes.

    Raises:
        TraceError: names the first column that is wrong; also if ``shot`` is not ascending.
    """
    for name, rows in record.items():
        spec = _stream(name)
        if rows.keys() != spec.columns.keys():
            raise TraceError(
                "columns differ from the schema",
                where=f"/{name}",
                got=", ".join(sorted(rows.keys() ^ spec.columns.keys())),
                fix="build the block with `hil.trace.schema.block`",
            )
        n = len(next(iter(rows.values())))
        for column in spec.columns.values():
            array = rows[column.name]
            if array.dtype != column.numpy_dtype or array.shape != column.shape(n, widths):
                raise TraceError(
                    "column has another type or shape than the schema",
                    where=f"/{name}/{column.name}",
                    got=f"{array.dtype.str} {array.shape}",
                    allowed=f"{column.numpy_dtype.str} {column.shape(n, widths)}",
                )
        shots = rows.get("shot")
        if shots is not None and n > 1 and bool((shots[1:] < shots[:-1]).any()):
            raise TraceError(
                "shots of a block are not in ascending order",
                where=f"/{name}/shot",
                fix="sort the rows of the block by shot before handing it over",
            )
    if "syndromes" in record and "rounds" in record:
        counts = {s: len(next(iter(record[s].values()))) for s in ("rounds", "syndromes")}
        if counts["rounds"] != counts["syndromes"]:
            raise TraceError(
                "/syndromes is not row-aligned with /rounds",
                where="/syndromes",
                got=f"{counts['syndromes']} rows",
                allowed=f"{counts['rounds']} rows, as many as /rounds",
            )


def row_bytes(stream: str, widths: ByteWidths) -> int:
    """Bytes of one row without its row number."""
    return sum(
        c.numpy_dtype.itemsize * (widths.of(c.width) if c.width else 1)
        for c in _stream(stream).columns.values()
    )


def schema_document() -> dict[str, Any]:
    """The schema as plain data; stored in every trace as ``/meta/schema_json``."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "streams": {name: _stream_document(s) for name, s in sorted(STREAMS.items())},
        "summary": {**_stream_document(SUMMARY), "scales": dict(SUMMARY_SCALES)},
    }


def schema_json() -> str:
    """Canonical JSON of ``schema_document``."""
    return json.dumps(schema_document(), sort_keys=True, separators=(",", ":"))


def _stream_document(spec: Stream) -> dict[str, Any]:
    return {
        "doc": spec.doc,
        "final_only": spec.final_only,
        "in_content": spec.in_content,
        "columns": [_column_document(c) for c in spec.columns.values()],
    }


def _column_document(column: Column) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": column.name,
        "dtype": column.numpy_dtype.str,
        "long_name": column.long_name,
        "units": column.units,
    }
    if column.sentinel is not None:
        nan = column.sentinel != column.sentinel
        document["sentinel"] = "nan" if nan else column.sentinel
    optional = {
        "clock": column.clock,
        "volatile": None if column.volatile == "no" else column.volatile,
        "width": column.width,
        "row_of": column.row_of,
        "enum": dict(column.enum) if column.enum else None,
        "flags": dict(column.flags) if column.flags else None,
    }
    return document | {key: value for key, value in optional.items() if value is not None}


def _stream(name: str) -> Stream:
    if name not in STREAMS:
        raise TraceError("unknown stream", got=name, allowed=", ".join(sorted(STREAMS)))
    return STREAMS[name]


def _column(stream: str, column: str) -> Column:
    columns: Mapping[str, Column] = _stream(stream).columns
    if column not in columns:
        raise TraceError(
            "unknown column", where=f"/{stream}", got=column, allowed=", ".join(columns)
        )
    return columns[column]


def _filled(spec: Stream, column: Column, n: int, widths: ByteWidths, value: ArrayLike) -> Array:
    where = f"/{spec.name}/{column.name}"
    array = _cast(np.asarray(_encoded(value)), column, where)
    shape = column.shape(n, widths)
    if array.shape == shape:
        return array
    if array.ndim == 0 or (array.ndim == 1 and column.width and array.shape == shape[1:]):
        return np.broadcast_to(array, shape)
    raise TraceError(
        "column has another shape than its block",
        where=where,
        got=str(array.shape),
        allowed=f"{shape} or a scalar",
    )


def _encoded(value: ArrayLike) -> ArrayLike:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list | tuple) and any(isinstance(v, str) for v in value):
        return [v.encode() if isinstance(v, str) else v for v in value]
    return value


def _cast(array: Array, column: Column, where: str) -> Array:
    dtype = column.numpy_dtype
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    kind = array.dtype.kind
    if dtype.kind == "S":
        fits = kind == "S" and array.dtype.itemsize <= dtype.itemsize
    elif dtype.kind == "f":
        fits = kind in "fiu"
    elif dtype.kind == "b":
        fits = kind in "biu" and _within(array, 0, 1)
    else:
        fits = kind in "biu" and _within(array, np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not fits:
        raise TraceError(
            "values do not fit the column",
            where=where,
            got=f"dtype {array.dtype.str}",
            allowed=dtype.str,
            fix="cut texts with `hil.trace.schema.clip`; times are integer picoseconds",
        )
    return array.astype(dtype)


def _within(array: Array, low: int, high: int) -> bool:
    if array.size == 0 or array.dtype.kind == "b":
        return True
    return low <= int(array.min()) and int(array.max()) <= high
