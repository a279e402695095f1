"""Validation of a trace against the schema: what ``hil trace validate`` refuses and reports.

Refused: unknown major version; a column missing, of another type, or without units, long name or
clock; fewer rows than the ledger; damaged data; shots or rounds not ascending; a shot in two
epochs; intended times off the grid; times that decrease; a hash that does not fit; a nameless enum
value. Reported: overflow, fallback, substituted backends, holdover, rows past the ledger, a run
that did not end by itself, a missing manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import h5py
import numpy as np

from hil.errors import TraceError
from hil.trace.column import Array, Column
from hil.trace.content import content_id, file_sha256, read_manifest
from hil.trace.findings import Validation
from hil.trace.layout import ROW, attributes, stored_dtype
from hil.trace.meta import sha256_bytes
from hil.trace.objects import read_attributes
from hil.trace.reader import Trace, open_trace
from hil.trace.schema import EXIT_STATUS, RECOVERED, STREAMS
from hil.trace.validate_rows import check_rows

BYTES_AT_ONCE: Final = 16 << 20
_FIXED_ATTRIBUTES: Final = frozenset({"units", "clock", "sentinel", "volatile"})
_ROOT: Final = (
    "run_id", "problem_id", "created_utc", "exit_status", "Conventions", "default", "level",
    "record_level", "arrivals", "pace", "measured", "n_rounds", "t0_ps", "round_period_ps",
    "shot_period_ps",
)  # fmt: skip


def validate_trace(path: Path | str) -> Validation:
    """Check a final or live trace; memory stays bounded.

    Returns:
        Refusals and notes; ``.ok`` if nothing was refused.

    Raises:
        UsageError: no such file.
    """
    path = Path(path)
    report = Validation(path)
    try:
        trace = open_trace(path)
    except TraceError as error:
        report.refuse("open", error.where or str(path), error.what, error.got, error.allowed)
        return report
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        report.refuse("open", str(path), "static content is missing or damaged", repr(error))
        return report
    with trace:
        _check_root(trace, report)
        if not report.ok:
            return report
        try:
            _check_structure(trace, report)
            _check_readable(trace, report)
            _check_hashes(trace, report)
            check_rows(trace, report)
        except (KeyError, OSError, RuntimeError) as error:  # HDF5 metadata that lead nowhere
            report.refuse("damaged", str(path), "damaged structure", repr(error))
        _note_run(trace, report)
    if not trace.live:
        _check_manifest(path, trace.content_id, report)
    return report


def _check_root(trace: Trace, report: Validation) -> None:
    for name in _ROOT:
        if name not in trace.attrs:
            report.refuse("root", f"attribute {name}", "root attribute is missing")
    known = (*EXIT_STATUS, RECOVERED)
    if trace.attrs.get("exit_status") not in known:
        got = str(trace.attrs.get("exit_status"))
        report.refuse("root", "attribute exit_status", "unknown value", got, ", ".join(known))


def _check_structure(trace: Trace, report: Validation) -> None:
    file = trace.handles.file
    for stream in trace.streams:
        if stream not in file:
            report.refuse("column", f"/{stream}", "stream of the ledger is missing")
            continue
        rows = trace.rows(stream)
        for column in STREAMS[stream].columns.values() if stream in STREAMS else ():
            where = f"/{stream}/{column.name}"
            if column.name not in file[stream]:
                report.refuse("column", where, "column is missing")
                continue
            dataset = trace.handles.dataset(where.lstrip("/"))
            _check_column(dataset, column, report, measured=trace.measured)
        for name in _with_rows(trace, stream):
            _check_length(trace.handles.dataset(f"{stream}/{name}"), rows, report)


def _check_column(
    dataset: h5py.Dataset, column: Column, report: Validation, *, measured: bool
) -> None:
    where = str(dataset.name)
    if dataset.dtype != stored_dtype(column) or dataset.ndim != 1 + (column.width is not None):
        report.refuse(
            "dtype", where, "another type than the schema",
            f"{dataset.dtype.str}, {dataset.ndim} axes", column.numpy_dtype.str,
        )  # fmt: skip
    if column.enum is not None:
        members = h5py.check_enum_dtype(dataset.dtype) or {}
        if not column.enum.items() <= members.items():
            report.refuse("dtype", where, "enum members differ from the schema", str(members))
    present = read_attributes(dataset)
    for name, value in attributes(column, measured=measured).items():
        if name not in present:
            report.refuse("attribute", where, f"attribute {name} is missing")
        elif name in _FIXED_ATTRIBUTES and not _equal(present[name], value):
            got = str(present[name])
            report.refuse("attribute", where, f"attribute {name} differs", got, str(value))
    if "_FillValue" in present:
        report.refuse("attribute", where, "_FillValue turns integers into floats in readers")


def _equal(present: Array, wanted: object) -> bool:
    if isinstance(wanted, str):
        text = present[()]
        return wanted == (text.decode() if isinstance(text, bytes) else text)
    return bool(np.array_equal(present, np.asarray(wanted), equal_nan=present.dtype.kind == "f"))


def _check_length(dataset: h5py.Dataset, rows: int, report: Validation) -> None:
    where, n = str(dataset.name), len(dataset)
    if n < rows:
        report.refuse("length", where, "shorter than the ledger", f"{n} rows", f"{rows} rows")
    elif n > rows:
        report.note("past-ledger", where, "rows past the ledger are ignored", str(n - rows))


def _with_rows(trace: Trace, stream: str) -> list[str]:
    """Columns and the row scale."""
    return [ROW, *trace.handles.columns(stream)] if stream in trace.handles.file else []


def _check_readable(trace: Trace, report: Validation) -> None:
    """Read every committed row of every column once; the row scale must count from 0."""
    for stream in trace.streams:
        for name in _with_rows(trace, stream):
            dataset = trace.handles.dataset(f"{stream}/{name}")
            rows = min(trace.rows(stream), len(dataset))
            width = int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize
            step = max(1, BYTES_AT_ONCE // max(1, width))
            try:
                for first in range(0, rows, step):
                    values = dataset[first : min(rows, first + step)]
                    if name == ROW and not np.array_equal(
                        values, np.arange(first, first + len(values), dtype=np.uint64)
                    ):
                        report.refuse("row", f"/{stream}/{ROW}", "row numbers do not count from 0")
                        break
            except OSError as error:
                report.refuse("damaged", f"/{stream}/{name}", "damaged chunk", str(error))


def _check_hashes(trace: Trace, report: Validation) -> None:
    meta = trace.handles.file["meta"]
    pairs = [("/meta/model/circuit", "circuit_stim", "circuit_sha256", meta["model"])]
    for name in (n for n in meta if n.startswith("model_")):
        pairs += [
            (f"/meta/{name}/circuit", "circuit_stim", "circuit_sha256", meta[name]),
            (f"/meta/{name}/dem", "dem", "dem_sha256", meta[name]),
        ]
    for number, group in meta["epochs"].items():
        pairs += [
            (f"/meta/epochs/{number}/{n}", text, f"{n}_sha256", group)
            for n, text in (("dem", "dem"), ("params", "params_json"))
        ]
    for where, text, digest, group in pairs:
        got, stated = sha256_bytes(group[text][()]), group[digest].asstr()[()]
        if got != stated:
            report.refuse("hash", where, "hash does not fit the text", got, stated)
    if not report.ok:
        return
    _check_epochs(trace, meta, report)
    _check_blobs(trace, report)
    if not trace.live and report.ok:
        got = content_id(trace.handles.file)
        if got != trace.content_id:
            what = "content_id does not fit the content"
            report.refuse("content", "attribute content_id", what, got, trace.content_id)


def _check_epochs(trace: Trace, meta: h5py.Group, report: Validation) -> None:
    rows = trace.stream("epochs", ["epoch", "dem_sha256", "params_sha256"])
    for number, *digests in zip(*(rows[c].tolist() for c in rows), strict=True):
        if str(number) not in meta["epochs"]:
            if not trace.live:
                report.refuse("epoch", f"/meta/epochs/{number}", "epoch of /epochs is missing")
            continue
        for name, digest in zip(("dem_sha256", "params_sha256"), digests, strict=True):
            stated = meta["epochs"][str(number)][name][()]
            if digest != stated:
                report.refuse(
                    "hash", f"/epochs/{name}", f"differs from /meta/epochs/{number}",
                    digest.decode(), stated.decode(),
                )  # fmt: skip


def _check_blobs(trace: Trace, report: Validation) -> None:
    if "blob_index" not in trace.streams:
        return
    index = trace.stream("blob_index", ["offset", "length", "sha256"])
    for row, (offset, length, digest) in enumerate(
        zip(*(index[c].tolist() for c in index), strict=True)
    ):
        data = trace.stream("blobs", ["data"], offset, offset + length)["data"]
        got = sha256_bytes(data.tobytes())
        if got != digest.decode():
            report.refuse("hash", f"/blobs, row {row} of /blob_index", "hash does not fit", got)


def _note_run(trace: Trace, report: Validation) -> None:
    if trace.overflow:
        report.note("overflow", "/commits", "rows lost by a full queue", str(trace.overflow))
    if trace.exit_status in ("running", RECOVERED):
        report.note("status", "attribute exit_status", "the run did not end by itself",
                    trace.exit_status)  # fmt: skip


def _check_manifest(path: Path, identity: str, report: Validation) -> None:
    try:
        manifest = read_manifest(path)
    except TraceError as error:
        report.refuse("manifest", error.where, error.what, error.got)
        return
    if manifest is None:
        report.note("no-manifest", str(path), "no manifest beside the trace")
        return
    for name, got in (("sha256", file_sha256(path)), ("content_id", identity)):
        if manifest.get(name) != got:
            report.refuse(
                "manifest", str(path), f"{name} differs from the manifest", got,
                str(manifest.get(name)),
            )  # fmt: skip
