"""Types that describe a trace (column, stream, byte widths) and short forms to write them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.timebase import MISSING_PS

Array: TypeAlias = NDArray[Any]
Block: TypeAlias = dict[str, Array]
"""Rows of one stream: column name -> array; all arrays have the same length."""

Record: TypeAlias = dict[str, Block]
"""What a driver hands over at once: stream name -> rows."""

Clock = Literal["rack", "nic", "host", "link", "logger"]
Volatile = Literal["no", "always", "measured"]
NO_ROW: Final = -1
NO_FIRST_ROW: Final = 2**64 - 1

Width = Literal["shot_detectors", "round_detectors", "observables"]


@dataclass(frozen=True, slots=True)
class ByteWidths:
    """Second axis of the packed columns (stim b8: LSB first, every row padded to whole bytes).

    Attributes:
        shot_detectors: bytes of the detection events of a whole shot, ``ceil(D/8)``.
        round_detectors: bytes of the detection events of the largest block of a shot.
        observables: bytes of the observables, ``ceil(O/8)``.
    """

    shot_detectors: int
    round_detectors: int
    observables: int

    def of(self, width: Width) -> int:
        """Bytes of the named axis."""
        return {
            "shot_detectors": self.shot_detectors,
            "round_detectors": self.round_detectors,
            "observables": self.observables,
        }[width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One dataset of a stream.

    Attributes:
        name: dataset name.
        dtype: numpy dtype string of one value (``u4``, ``i8``, ``?``, ``S64``).
        long_name: what a value means, one line.
        units: ``ps``, ``ns``, ``1``, ``B``, ``MHz``, ``bit``.
        clock: clock domain of a time, ``None`` for all else.
        sentinel: value that means "not known", ``None`` where every value is a value.
        default: value of rows that the driver does not state; ``None`` makes the column required.
        volatile: whether the column stays out of ``content_id``: never, always, or in runs whose
            times were measured on a wall clock.
        enum: member names by code, for enum columns (stored as HDF5 enum over u1).
        flags: bit number -> name, for bit masks.
        width: second axis of packed columns.
        row_of: stream whose row numbers this column holds; in a ``Record`` they count from the
            first row of that stream in the same record, the writer adds the offset.
    """

    name: str
    dtype: str
    long_name: str
    units: str = "1"
    clock: Clock | None = None
    sentinel: int | float | None = None
    default: int | float | bytes | None = None
    volatile: Volatile = "no"
    enum: Mapping[str, int] | None = None
    flags: Mapping[str, int] | None = None
    width: Width | None = None
    row_of: str | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of one value (enums are uint8)."""
        return np.dtype(self.dtype).newbyteorder("<")

    def shape(self, n: int, widths: ByteWidths) -> tuple[int, ...]:
        """Shape of ``n`` rows."""
        return (n,) if self.width is None else (n, widths.of(self.width))

    def is_volatile(self, *, measured: bool) -> bool:
        """Whether the column stays out of ``content_id`` in such a run."""
        return self.volatile == "always" or (self.volatile == "measured" and measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One group of equally long columns.

    Attributes:
        name: group name below the root.
        doc: one line for the documentation.
        columns: columns by name, in the order of the documentation.
        signal: column that viewers plot first.
        final_only: made by the rewrite, absent from the live file.
        in_content: part of ``content_id``.
    """

    name: str
    doc: str
    columns: Mapping[str, Column]
    signal: str
    final_only: bool = False
    in_content: bool = True


def stream(
    name: str,
    doc: str,
    *columns: Column,
    signal: str = "",
    final_only: bool = False,
    in_content: bool = True,
) -> Stream:
    """Stream of ``columns``; ``signal`` is the first column unless stated."""
    return Stream(
        name=name,
        doc=doc,
        columns=MappingProxyType({c.name: c for c in columns}),
        signal=signal or columns[0].name,
        final_only=final_only,
        in_content=in_content,
    )


def unsigned(name: str, dtype: str, text: str, default: int | None = None) -> Column:
    """Unsigned column; without ``default`` it is required."""
    return Column(name=name, dtype=dtype, long_name=text, default=default)


def unsigned_or_missing(name: str, dtype: str, text: str, volatile: Volatile = "no") -> Column:
    """Unsigned column whose highest value means "not known"."""
    top = int(np.iinfo(dtype).max)
    return Column(
        name=name, dtype=dtype, long_name=text, sentinel=top, default=top, volatile=volatile
    )


def instant(name: str, clock: Clock, text: str, *, required: bool = False) -> Column:
    """Instant on a clock; volatile where times are measured."""
    return Column(
        name=name,
        dtype="i8",
        long_name=text,
        units="ps",
        clock=clock,
        sentinel=MISSING_PS,
        default=None if required else MISSING_PS,
        volatile="measured",
    )


def planned(name: str, text: str) -> Column:
    """A scheduled instant: known before the run, so never volatile."""
    return Column(name=name, dtype="i8", long_name=text, units="ps", clock="rack")


def span(name: str, text: str) -> Column:
    """Duration; volatile where times are measured."""
    return Column(
        name=name,
        dtype="i8",
        long_name=text,
        units="ps",
        sentinel=MISSING_PS,
        default=MISSING_PS,
        volatile="measured",
    )


def enum(
    name: str, members: dict[str, int], text: str, default: int | None = None, v: Volatile = "no"
) -> Column:
    """Enum column over u1."""
    return Column(name=name, dtype="u1", long_name=text, enum=members, default=default, volatile=v)


def observables(name: str, text: str, *, optional: bool = False) -> Column:
    """Packed observables; an optional one is 255 in all bytes where absent."""
    return Column(
        name=name,
        dtype="u1",
        long_name=text,
        units="bit",
        width="observables",
        sentinel=int(np.iinfo(np.uint8).max) if optional else None,
        default=int(np.iinfo(np.uint8).max) if optional else None,
    )


def text(name: str, size: int, text: str, default: bytes | None = b"") -> Column:
    """UTF-8 text of at most ``size`` bytes."""
    return Column(name=name, dtype=f"S{size}", long_name=text, default=default)


def row_reference(name: str, target: str, text: str) -> Column:
    """Row number of another stream, -1 where there is none."""
    return Column(
        name=name, dtype="i8", long_name=text, sentinel=NO_ROW, default=NO_ROW, row_of=target
    )


def real(name: str, text: str, v: Volatile = "no") -> Column:
    """Floating-point value, NaN where there is none."""
    return Column(
        name=name,
        dtype="f8",
        long_name=text,
        sentinel=float("nan"),
        default=float("nan"),
        volatile=v,
    )


def flag(name: str, text: str, default: int | None = 0, v: Volatile = "no") -> Column:
    """Boolean column."""
    return Column(name=name, dtype="?", long_name=text, default=default, volatile=v)
