"""Rows beside the shots: in live runs the frames that crossed the link."""

from __future__ import annotations

import numpy as np

from gpu_decoder.protocol import Reason
from hil.node.exchange import Exchange
from hil.rack.timeline import I64
from hil.timebase import MISSING_PS
from hil.trace.column import Array
from hil.trace.schema import Block, ByteWidths, block, code
from hil.wire.rpc import ENVELOPE_BYTES, HEADER_BYTES, Status
from hil.wire.rpc_batch import row_bytes

_UP_OPCODE, _DOWN_OPCODE = 0x2B, 0x24
_UP_OVERHEAD_BYTES, _DOWN_OVERHEAD_BYTES = 36, 16  # BTH, RETH + immediate (up), ICRC
_LINK_UP, _LINK_DOWN = 0, 1


def packet_rows(
    got: Exchange, *, wall_start_ps: int, psn_start: int, message_bytes: int, widths: ByteWidths
) -> Block:
    """Rows of /packets for one exchange.

    Per frame of a shot that was sent: sent, then received (or dropped); then the reply that carried
    the answer, sent and received. Requests for corrections and acknowledgements of single blocks
    are not listed. Order is per frame, not per arrival, so equal runs give equal rows. Times are
    wall time since the start of the run, whatever the pace. The sequence number of a frame follows
    from its place: one queue pair sends all messages of a run in order.
    """
    n, r = got.t_tx_ps.shape
    shots = np.arange(got.first_shot, got.first_shot + n, dtype=np.int64)
    counters = shots[:, None] * (r + 1) + np.arange(r + 1, dtype=np.int64)
    lost = got.lost | got.refused
    up_times = np.stack([got.t_tx_ps, np.where(lost, MISSING_PS, got.t_rx_ps)], axis=2)
    down_times = np.stack([got.t_reply_tx_ps, got.t_reply_rx_ps], axis=1)
    times = np.concatenate([up_times.reshape(n, 2 * r), down_times], axis=1)
    tx, rx = code("packets", "kind", "tx"), code("packets", "kind", "rx")
    kinds = np.full((n, 2 * r + 2), tx, dtype=np.int64)
    kinds[:, 1::2] = rx
    kinds[:, 1 : 2 * r : 2][lost] = code("packets", "kind", "drop")
    keep = np.ones(kinds.shape, dtype=np.bool_)
    keep[:, : 2 * r] = np.repeat(got.t_tx_ps != MISSING_PS, 2, axis=1)
    keep[:, 2 * r :] = (down_times != MISSING_PS) & (got.reason != Reason.DEVICE_LOST)[:, None]
    seq = np.concatenate([np.repeat(counters[:, :r], 2, axis=1), counters[:, [r, r]]], axis=1)
    down = np.zeros(kinds.shape, dtype=np.bool_)
    down[:, 2 * r :] = True

    def chosen(up: int, back: int) -> Array:
        return np.where(down, back, up)[keep]

    wall: I64 = np.where(times == MISSING_PS, MISSING_PS, times - wall_start_ps)
    bare = HEADER_BYTES + ENVELOPE_BYTES
    with_answer = row_bytes(bare + got.prediction_b8.shape[1])
    reply_bytes = np.where(got.status_code == Status.OK, with_answer, row_bytes(bare))
    return block(
        "packets",
        int(keep.sum()),
        widths,
        t_ps=wall[keep],
        link=chosen(_LINK_UP, _LINK_DOWN),
        dir=chosen(code("packets", "dir", "up"), code("packets", "dir", "down")),
        kind=kinds[keep],
        opcode=chosen(_UP_OPCODE, _DOWN_OPCODE),
        psn=np.where(down, 0xFFFFFFFF, (psn_start + seq) & 0xFFFFFF)[keep],
        seq=(seq & 0xFFFFFFFF)[keep],
        request_id=(seq & 0xFFFFFFFF)[keep],
        len=np.where(
            down, (reply_bytes + _DOWN_OVERHEAD_BYTES)[:, None], message_bytes + _UP_OVERHEAD_BYTES
        )[keep],
    )
