"""Rows beside the shots: in live runs the frames that crossed the link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gpu_decoder.protocol import Reason
from hil.node.config import NodeConfig
from hil.node.endpoints import reply_slot_bytes, slot_bytes
from hil.node.exchange import Exchange
from hil.rack.timeline import I64
from hil.timebase import MISSING_PS
from hil.trace.column import Array
from hil.trace.schema import Block, ByteWidths, block, code
from hil.wire.hsb import round128
from hil.wire.rpc import ENVELOPE_BYTES, HEADER_BYTES, Status
from hil.wire.rpc_batch import row_bytes

_OPCODES: Final = {"uc": (0x2B, 0x24), "rc": (0x0B, 0x04)}
_NO_OPCODE = 0xFF
_UP_OVERHEAD_BYTES, _DOWN_OVERHEAD_BYTES = 36, 16  # BTH, RETH + immediate (up), ICRC
_NO_PSN = 0xFFFFFFFF
_LINK_UP, _LINK_DOWN = 0, 1


@dataclass(frozen=True, slots=True)
class Framing:
    """How the messages of a run lie in UDP datagrams.

    Attributes:
        opcodes: of the BTH, rack to node and back; 255 without one.
        psn_start: PSN of the first message of a run; ``None``: there are none.
        message: bytes of the UDP payload of a message with a round.
        answer: the same of a reply with an answer.
        refusal: the same of a reply without.
    """

    opcodes: tuple[int, int]
    psn_start: int | None
    message: int
    answer: int
    refusal: int


def framing_of(config: NodeConfig, message_bytes: int) -> Framing:
    """The framing of a live exchange whose messages have ``message_bytes``."""
    if config.network == "cudaq_udp":  # every datagram is a slot of its receiver
        to_node, to_rack = round128(slot_bytes(config)), round128(reply_slot_bytes(config))
        return Framing((_NO_OPCODE, _NO_OPCODE), None, to_node, to_rack, to_rack)
    bare = HEADER_BYTES + (ENVELOPE_BYTES if config.envelope == "hil" else 0)
    return Framing(
        _OPCODES[config.transport],
        config.psn_start_up,
        message_bytes + _UP_OVERHEAD_BYTES,
        row_bytes(bare + config.prediction_bytes) + _DOWN_OVERHEAD_BYTES,
        row_bytes(bare) + _DOWN_OVERHEAD_BYTES,
    )


def packet_rows(
    got: Exchange,
    *,
    wall_start_ps: int,
    framing: Framing,
    widths: ByteWidths,
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
    reply_bytes = np.where(got.status_code == Status.OK, framing.answer, framing.refusal)
    first = framing.psn_start
    psn = np.full_like(seq, _NO_PSN) if first is None else (first + seq) & 0xFFFFFF
    return block(
        "packets",
        int(keep.sum()),
        widths,
        t_ps=wall[keep],
        link=chosen(_LINK_UP, _LINK_DOWN),
        dir=chosen(code("packets", "dir", "up"), code("packets", "dir", "down")),
        kind=kinds[keep],
        opcode=chosen(*framing.opcodes),
        psn=np.where(down, _NO_PSN, psn)[keep],
        seq=(seq & 0xFFFFFFFF)[keep],
        request_id=(seq & 0xFFFFFFFF)[keep],
        len=np.where(down, reply_bytes[:, None], framing.message)[keep],
    )
