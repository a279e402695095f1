"""What the executors take in and give out: samples of durations in, stamps out.

Axes: ``n`` shots of a batch, ``r = n_rounds + 1`` blocks of a shot (the last one is the final data
readout). All times are int64 picoseconds. Stamps T0..T10 are those of ``docs/time.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.timebase import MISSING_PS

I64: TypeAlias = NDArray[np.int64]
U8: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]


class Path(IntEnum):
    """Who answered a shot."""

    PRIMARY = 0
    FALLBACK = 1
    UNANSWERED = 2


class Status(IntEnum):
    """Fate of a window (trace column ``status``)."""

    OK = 0
    LATE = 1
    TIMEOUT = 2
    DROPPED = 3
    CONCEALED = 4
    VOID = 5


@dataclass(frozen=True, slots=True)
class Workload:
    """Duration samples of one batch, drawn from models or measured on a live run.

    Attributes:
        first_shot: index of the first shot in the run; shots are consecutive.
        board_ps: [n_board_stages, n_boards, n, r] latency of each stage that runs on every
            readout board, in order; boards are joined (latest counts) behind the last one.
        rack_ps: [n_rack_stages, n, r] stages behind the join, the last one is ``packetize``.
        uplink_ps: [n, r] propagation of the uplink (serialisation is added by the executor).
        deliver_ps: [n, r] from last bit received to payload visible to the decoder.
        dispatch_ps: [n] from window complete to eligible for a worker; [n, w] where shots are
            decoded in w sliding windows, as are the two that follow.
        primary_ps: [n] service time of the primary decoder (> 0).
        primary_pred_ps: [n] service time that the policy predicts for the primary.
        fallback_ps: [n] service time of the fallback decoder (> 0).
        fallback_pred_ps: [n] service time that the policy predicts for the fallback.
        reply_ps: [n] from decode end to first bit of the reply.
        downlink_ps: [n] reply's flight.
        apply_ps: [n] from reply received to correction in effect.
        lost: [n, r] True where a frame never reached the decoder, or ``None``.
        failed: uint8 [n] ``gpu_decoder.protocol.Reason`` for which the primary gives the shot up
            when its service time is over (0 = it does not), or ``None``.
        pre_ps: [n] the pre-decoder's share of ``primary_ps``, its first part; ``None`` without one.
        undelivered: [n] True where the rack gets no answer though a decoder may have one (request
            or answer lost on a link), or ``None``.
    """

    first_shot: int
    board_ps: I64
    rack_ps: I64
    uplink_ps: I64
    deliver_ps: I64
    dispatch_ps: I64
    primary_ps: I64
    primary_pred_ps: I64
    fallback_ps: I64
    fallback_pred_ps: I64
    reply_ps: I64
    downlink_ps: I64
    apply_ps: I64
    lost: NDArray[np.bool_] | None = None
    failed: U8 | None = None
    pre_ps: I64 | None = None
    undelivered: NDArray[np.bool_] | None = None

    @property
    def n_shots(self) -> int:
        """Shots in this batch."""
        return int(self.uplink_ps.shape[0])

    def part(self, start: int, stop: int) -> Workload:
        """Shots ``start:stop`` as a workload of its own (views, no copies)."""
        return Workload(
            self.first_shot + start,
            self.board_ps[:, :, start:stop],
            self.rack_ps[:, start:stop],
            self.uplink_ps[start:stop],
            self.deliver_ps[start:stop],
            self.dispatch_ps[start:stop],
            self.primary_ps[start:stop],
            self.primary_pred_ps[start:stop],
            self.fallback_ps[start:stop],
            self.fallback_pred_ps[start:stop],
            self.reply_ps[start:stop],
            self.downlink_ps[start:stop],
            self.apply_ps[start:stop],
            None if self.lost is None else self.lost[start:stop],
            None if self.failed is None else self.failed[start:stop],
            None if self.pre_ps is None else self.pre_ps[start:stop],
            None if self.undelivered is None else self.undelivered[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Timeline:
    """Stamps and fates of one batch of shots; ``MISSING_PS`` where something did not happen.

    ``t_intended .. t_visible`` are [n, r] (T0..T4); the others are per shot [n]: the window that
    a shot's rounds belong to. ``path``, ``reason`` and ``status`` are uint8 codes of ``Path``,
    ``gpu_decoder.protocol.Reason`` and ``Status``. ``dropped`` [n, r] marks frames refused by a
    full ring or lost on the way. ``queue_depth`` uint16 [n]: windows waiting when this one arrived.

    With sliding windows a shot's decode stamps are those of its last window; ``t_window_start_ps``
    and ``t_window_end_ps`` [n, w] are those of all that were decoded, also of shots that were
    given up later; ``None`` without sliding windows.
    """

    first_shot: int
    t_intended_ps: I64
    t_syndrome_ps: I64
    t_tx_ps: I64
    t_rx_ps: I64
    t_visible_ps: I64
    t_decode_start_ps: I64
    t_pre_end_ps: I64
    t_decode_end_ps: I64
    t_reply_tx_ps: I64
    t_reply_rx_ps: I64
    t_applied_ps: I64
    deadline_ps: I64
    path: U8
    reason: U8
    status: U8
    dropped: NDArray[np.bool_]
    queue_depth: NDArray[np.uint16]
    t_window_start_ps: I64 | None = None
    t_window_end_ps: I64 | None = None

    @property
    def window_service_ps(self) -> I64 | None:
        """int64 [n, w]: service time of each window, ``MISSING_PS`` where it was not decoded."""
        start, end = self.t_window_start_ps, self.t_window_end_ps
        if start is None or end is None:
            return None
        return np.where(start == MISSING_PS, MISSING_PS, end - start)
