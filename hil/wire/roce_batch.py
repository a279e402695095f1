"""RoCEv2 datagrams by the thousand: headers by numpy broadcasting, one row per packet."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.wire.icrc import BTH_BYTES, ICRC_BYTES, U1, IcrcPath
from hil.wire.roce import PSN_MASK, Bth, Opcode, Target, slot_imm


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
        path: the direction they travel, for the ICRC; None leaves PSN, immediate and ICRC 0.

    Returns:
        u1[n, 12 + 16 + 4 + L + pad + 4], BTH .. ICRC.

    Raises:
        WireError: a slot does not fit 12 bits.
    """
    n, length = payloads.shape
    for slot in (slots.min(), slots.max()) if n else ():
        slot_imm(0, int(slot))
    reth = struct.pack("!QIII", target.base_va, target.rkey, length, 0)
    rows = _rows(payloads, Opcode.UC_WRITE_ONLY_IMM, target.qp, reth)
    rows[:, 12:20] = _bytes_of((target.base_va + slots * target.stride).astype(">u8"))
    if path is not None:
        psns = _number(rows, psn_start)
        rows[:, 28:32] = _bytes_of(((psns & 0xFFFFF) << 12 | slots).astype(">u4"))
        path.seal_rows(rows)
    return rows


def send_rows(payloads: U1, psn_start: int, qp: int, path: IcrcPath | None) -> U1:
    """Datagrams u1[n, 12 + L + pad + 4] of UC SEND ONLY for rows of equal length; see above."""
    rows = _rows(payloads, Opcode.UC_SEND_ONLY, qp, b"")
    if path is not None:
        _number(rows, psn_start)
        path.seal_rows(rows)
    return rows


def _rows(payloads: U1, opcode: Opcode, qp: int, extension: bytes) -> U1:
    n, length = payloads.shape
    pad = -length % 4
    start = BTH_BYTES + len(extension)
    rows = np.empty((n, start + length + pad + ICRC_BYTES), np.uint8)
    rows[:, :start] = np.frombuffer(Bth(opcode, qp, 0, pad=pad).pack() + extension, np.uint8)
    rows[:, start : start + length] = payloads
    rows[:, start + length :] = 0
    return rows


def _number(rows: U1, start: int) -> npt.NDArray[np.int64]:
    psns = (start + np.arange(len(rows), dtype=np.int64)) & PSN_MASK
    rows[:, 8:12] = _bytes_of(psns.astype(">u4"))
    return psns


def _bytes_of(column: npt.NDArray[Any]) -> U1:
    return column.view(np.uint8).reshape(len(column), column.itemsize)
