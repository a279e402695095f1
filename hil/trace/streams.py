"""The streams of hil-trace 1.0 in one table, with the names behind their codes.

This is the one place where the format is put together: writer, reader, validator, ``schema_json``
and the table in ``docs/trace.md`` are derived from ``STREAMS``.
"""

from __future__ import annotations

from typing import Final

from hil.trace.column import NO_FIRST_ROW, NO_ROW, Stream
from hil.trace.event_streams import (
    BLOB_INDEX,
    BLOBS,
    CALIB,
    EPOCHS,
    EXPECT,
    FAULTS,
    LOGS,
    PACKETS,
    SUMMARY,
    SUMMARY_SCALES,
)
from hil.trace.loop_streams import DECODES, ROUNDS, SHOTS, SYNDROMES
from hil.trace.vocabulary import EXIT_STATUS, RECOVERED, Dq, Status

__all__ = [
    "EXIT_STATUS",
    "NO_FIRST_ROW",
    "NO_ROW",
    "RECOVERED",
    "STREAMS",
    "SUMMARY",
    "SUMMARY_SCALES",
    "Dq",
    "Status",
]

_ALL: Final = (
    ROUNDS, SHOTS, SYNDROMES, DECODES, PACKETS, EPOCHS, CALIB, FAULTS, LOGS, BLOBS, BLOB_INDEX,
    EXPECT,
)  # fmt: skip
STREAMS: Final[dict[str, Stream]] = {s.name: s for s in _ALL}
