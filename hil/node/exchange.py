"""What the rack hands to the live exchange and what it gets back: plain arrays, one row per shot.

Axes: ``n`` consecutive shots, ``r`` blocks of a shot. All times are int64 picoseconds of
``CLOCK_MONOTONIC``; ``MISSING_PS`` where something did not happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hil.errors import NodeError

I64: TypeAlias = NDArray[np.int64]
U8: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plan:
    """Frames to be sent, complete and ready.

    Attributes:
        first_shot: number of the first shot; plans follow each other without a gap.
        enqueue: uint8 [n, r, L], ``enqueue_syndromes`` messages (``hil.wire.rpc_batch``).
        get: uint8 [n, Lg], ``get_corrections`` messages; each follows its shot's last block.
        t_send_ps: int64 [n, r], wall instant at which each block is to leave.
    """

    first_shot: int
    enqueue: U8
    get: U8
    t_send_ps: I64

    @property
    def n_shots(self) -> int:
        """Shots of this plan."""
        return int(self.enqueue.shape[0])


@dataclass(frozen=True, slots=True)
class Exchange:
    """What happened to the shots of a plan.

    Attributes:
        first_shot: number of the first shot.
        t_tx_ps: [n, r] T2, just before the frame went to the socket.
        t_rx_ps: [n, r] T3 at the node.
        t_visible_ps: [n, r] T4, readable for the session.
        lost: bool [n, r], sent but never seen by the session.
        refused: bool [n, r], answered BUSY.
        t_decode_start_ps: [n] of the answer that went out; missing if there was none.
        t_decode_end_ps: [n] likewise.
        primary_start_ps: [n], also where the primary's result was discarded.
        primary_end_ps: [n].
        fallback_start_ps: [n].
        fallback_end_ps: [n].
        t_reply_tx_ps: [n] T8 at the node.
        t_reply_rx_ps: [n] T9 at the rack.
        path: uint8 [n], ``Answerer``: 0 primary, 1 fallback, 2 unanswered.
        reason: uint8 [n], ``gpu_decoder.protocol.Reason``.
        status_code: int32 [n], RPC status of the shot's reply, ``NO_REPLY`` (-1000) without one.
        prediction_b8: uint8 [n, ceil(O/8)], the answer; 0 where there is none.
        primary_prediction_b8: uint8 [n, ceil(O/8)], also where it was discarded.
        fallback_prediction_b8: uint8 [n, ceil(O/8)].
        executed_primary: uint8 [n], ``GlobalDecoder`` that really ran, 0 = none.
        executed_fallback: uint8 [n].
        primary_failed: uint8 [n], ``Reason`` for which the primary gave the shot up, 0 = none.
        backend: uint8 [n], ``Backend`` of the primary's pre-decoder that really ran.
        precision: uint8 [n], ``Precision`` likewise.
        residual_events: int32 [n], events that it left to the matching; -1 = it did not run.
        n_events: int32 [n], detection events of the assembled shot, -1 = never assembled.
        queue_depth: uint16 [n], windows that waited when this one became eligible.
    """

    first_shot: int
    t_tx_ps: I64
    t_rx_ps: I64
    t_visible_ps: I64
    lost: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    t_decode_start_ps: I64
    t_decode_end_ps: I64
    primary_start_ps: I64
    primary_end_ps: I64
    fallback_start_ps: I64
    fallback_end_ps: I64
    t_reply_tx_ps: I64
    t_reply_rx_ps: I64
    path: U8
    reason: U8
    status_code: NDArray[np.int32]
    prediction_b8: U8
    primary_prediction_b8: U8
    fallback_prediction_b8: U8
    executed_primary: U8
    executed_fallback: U8
    primary_failed: U8
    backend: U8
    precision: U8
    residual_events: NDArray[np.int32]
    n_events: NDArray[np.int32]
    queue_depth: NDArray[np.uint16]

    @property
    def n_shots(self) -> int:
        """Shots of this exchange."""
        return len(self.path)


def concatenate(parts: Sequence[Exchange]) -> Exchange:
    """One exchange of consecutive ones; ``parts`` must not be empty."""
    names = [field.name for field in fields(Exchange)][1:]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Exchange(parts[0].first_shot, **columns)


class NodeLostError(NodeError):
    """The node died or stopped talking in the middle of a stream.

    Attributes:
        partial: everything known of the shots whose exchange was not handed over yet; shots
            without an answer carry the reason ``DEVICE_LOST``. ``None`` if there are none.
    """

    def __init__(
        self, what: str, *, where: str = "", got: str = "", partial: Exchange | None = None
    ) -> None:
        super().__init__(what, where=where, got=got)
        self.partial = partial

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the partial exchange."""
        return _lost, (self.what, self.where, self.got, self.partial)


def _lost(what: str, where: str, got: str, partial: Exchange | None) -> NodeLostError:
    return NodeLostError(what, where=where, got=got, partial=partial)
