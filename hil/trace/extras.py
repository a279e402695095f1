"""What only the final file holds: expectations with their verdicts, distributions of the hops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import h5py
import numpy as np
from numpy.typing import NDArray

from hil.trace import layout
from hil.trace.column import Block, ByteWidths
from hil.trace.objects import attach_scale, write_attributes
from hil.trace.schema import STREAMS, check_record
from hil.trace.streams import SUMMARY, SUMMARY_SCALES


@dataclass(frozen=True, slots=True)
class HopSummary:
    """Distribution of one hop: histogram and quantiles with bounds.

    Attributes:
        edges_ps: int64 [k + 1], ascending bin edges.
        counts: uint64 [k].
        quantiles: float64 [q], probabilities in ascending order.
        values_ps: int64 [q], value at each quantile.
        low_ps: int64 [q], lower confidence bound, ``MISSING_PS`` where there is none.
        high_ps: int64 [q], upper confidence bound, ``MISSING_PS`` where there is none.
    """

    edges_ps: NDArray[np.int64]
    counts: NDArray[np.uint64]
    quantiles: NDArray[np.float64]
    values_ps: NDArray[np.int64]
    low_ps: NDArray[np.int64]
    high_ps: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TraceExtras:
    """What only the final file holds.

    Attributes:
        expect: rows of /expect, or ``None``.
        summary: hop name -> distribution, for /summary.
    """

    expect: Block | None = None
    summary: Mapping[str, HopSummary] = field(default_factory=dict)


def write_expect(target: h5py.File, rows: Block | None, *, measured: bool) -> None:
    """Write ``/expect`` (empty without ``rows``)."""
    spec = STREAMS["expect"]
    n = 0 if rows is None else len(rows["id"])
    widths = ByteWidths(1, 1, 1)
    if rows is not None:
        check_record({"expect": rows}, widths)
    datasets = layout.create_stream(
        target, spec, widths, measured=measured, chunk=max(1, n), rows=n
    )
    for name, dataset in datasets.items():
        if rows is not None:
            dataset[:] = np.arange(n) if name == layout.ROW else rows[name]


def write_summary(target: h5py.File, summary: Mapping[str, HopSummary], *, measured: bool) -> None:
    """Write ``/summary/<hop>`` for every hop."""
    root = target.create_group("summary")
    root.attrs["NX_class"] = "NXcollection"
    for hop, table in sorted(summary.items()):
        group = root.create_group(hop)
        group.attrs.update({"NX_class": "NXdata", "signal": "counts", "axes": "bin"})
        scales = {
            "edge": np.arange(len(table.edges_ps), dtype="<u4"),
            "bin": np.arange(len(table.counts), dtype="<u4"),
            "quantile": np.asarray(table.quantiles, "<f8"),
        }
        for name, values in scales.items():
            group.create_dataset(name, data=values).make_scale(name)
            group[name].attrs.update({"units": "1", "long_name": name})
        for name, column in SUMMARY.columns.items():
            values = getattr(table, name)
            dataset = group.create_dataset(name, data=values.astype(column.numpy_dtype))
            write_attributes(dataset, layout.attributes(column, measured=measured))
            attach_scale(dataset, 0, group[SUMMARY_SCALES[name]])


def read_summary(group: h5py.Group) -> HopSummary:
    """Distribution stored in one group of ``/summary``."""
    return HopSummary(
        edges_ps=group["edges_ps"][:],
        counts=group["counts"][:],
        quantiles=group["quantile"][:],
        values_ps=group["values_ps"][:],
        low_ps=group["low_ps"][:],
        high_ps=group["high_ps"][:],
    )
