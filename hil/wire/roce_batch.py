"""RoCEv2 datagrams by the thousand: headers by numpy broadcasting, one row per packet."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from hil.wire.icrc import BTH_BYTES, ICRC_BYTES, U1, IcrcPath
from hil.wire.roce import IMM_BYTES, PSN_MASK, RETH_BYTES, Bth, Opcode, Target, slot_imm


def write_imm_rows(
    payloads: U1,
    slots: npt.NDArray[np.int64],
    psn_start: int,
    target: Target,
    path: IcrcPath | None,
) -> U1:
    """Datagrams of UC WRITE ONLY WITH IMM for rows of equal length; PSN counts up and wraps.

    Args:
        payloads: u1[n, L].
        slots: i8[n], 0..4095.
        psn_start: PSN of the first row.
        target: the receiver's memory.
        path: the direction they travel, for the ICRC; None leaves it 0.

    Returns:
        u1[n, 12 + 16 + 4 + L + pad + 4], BTH .. ICRC.

    Raises:
        WireError: a slot does not fit 12 bits.
    """
    n, length = payloads.shape
    for slot in (slots.min(), slots.max()) if n else ():
        slot_imm(0, int(slot))
    psns = _psns(n, psn_start)
    rows = _rows(payloads, Opcode.UC_WRITE_ONLY_IMM, target.qp, psns, RETH_BYTES + IMM_BYTES)
    vas = (target.base_va + slots * target.stride).astype(">u8")
    rows[:, 12:20] = vas.view(np.uint8).reshape(n, 8)
    rows[:, 20:28] = np.frombuffer(struct.pack("!II", target.rkey, length), np.uint8)
    imms = ((psns & 0xFFFFF) << 12 | slots).astype(">u4")
    rows[:, 28:32] = imms.view(np.uint8).reshape(n, 4)
    if path is not None:
        path.seal_rows(rows)
    return rows


def send_rows(payloads: U1, psn_start: int, qp: int, path: IcrcPath | None) -> U1:
    """Datagrams u1[n, 12 + L + pad + 4] of UC SEND ONLY for rows of equal length."""
    rows = _rows(payloads, Opcode.UC_SEND_ONLY, qp, _psns(len(payloads), psn_start), 0)
    if path is not None:
        path.seal_rows(rows)
    return rows


def _psns(n: int, start: int) -> npt.NDArray[np.int64]:
    return (start + np.arange(n, dtype=np.int64)) & PSN_MASK


def _rows(
    payloads: U1, opcode: Opcode, qp: int, psns: npt.NDArray[np.int64], extension_bytes: int
) -> U1:
    n, length = payloads.shape
    pad = -length % 4
    start = BTH_BYTES + extension_bytes
    rows = np.zeros((n, start + length + pad + ICRC_BYTES), np.uint8)
    rows[:, :8] = np.frombuffer(Bth(opcode, qp, 0, pad=pad).pack()[:8], np.uint8)
    rows[:, 8:12] = psns.astype(">u4").view(np.uint8).reshape(n, 4)
    rows[:, start : start + length] = payloads
    return rows
