"""Names behind the codes of a trace: enums, data-quality bits, exit statuses.

Members are numbered from 0 in the order listed; a minor version may add members or bits at the
end, never renumber or reuse one.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Status(IntEnum):
    """Fate of a window; numbered as ``hil.rack.timeline.Status``."""

    OK = 0
    LATE = 1
    TIMEOUT = 2
    DROPPED = 3
    CONCEALED = 4
    VOID = 5


class Dq(IntEnum):
    """Bit numbers of ``dq_mask`` (data quality); a minor version may add, never reuse one."""

    WARMUP = 0
    FAULT_WINDOW = 1
    RECOVERY = 2
    BURST_VETO = 3
    MISSING_BOARD = 4
    SKEW_EXCEEDED = 5
    CONCEALED = 6
    SEQ_GAP = 7
    DUPLICATE = 8
    REORDERED = 9
    CRC_BAD = 10
    CLOCK_STEP = 11
    HOLDOVER = 12
    THROTTLED = 13
    EPOCH_EDGE = 14
    NO_TRUTH = 15
    RECORDER_OVERFLOW = 16
    COLD_START = 17
    IDLE_GAP = 18

    @property
    def mask(self) -> int:
        """The bit as a mask."""
        return 1 << self.value


def names_of(cls: type[IntEnum]) -> dict[str, int]:
    """Lower-case member names of an enum class with their codes."""
    return {member.name.lower(): int(member) for member in cls}


def listed(names: str) -> dict[str, int]:
    """Codes of space-separated member names, from 0."""
    return {name: code for code, name in enumerate(names.split())}


BASIS: Final = listed("X Z")
TIME_SOURCE: Final = listed("measured modelled")
PACKET_DIR: Final = listed("up down")
PACKET_KIND: Final = listed("tx rx drop dup reorder corrupt ack nak rnr_nak cnp pause")
EPOCH_REASON: Final = listed("initial interval threshold analyst operator rollback import")
CALIB_KIND: Final = listed(
    "alarm veto experiment_start experiment_end analyst_request analyst_verdict decision "
    "params_applied dem_built matcher_ready epoch_activated rollback error"
)
FAULT_PHASE: Final = listed("begin end frame")
LOG_LEVEL: Final = listed("debug info warning error")
VERDICT: Final = listed("pass fail inconclusive rig_error skipped")
EXIT_STATUS: Final = ("running", "success", "fail", "inconclusive", "rig_error", "aborted")
RECOVERED: Final = "recovered"
