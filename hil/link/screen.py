"""Checks of a datagram that need no state: what fails here changes nothing but a counter."""

from __future__ import annotations

import struct
from collections.abc import Container

from hil.wire.icrc import ICRC_BYTES, IcrcPath
from hil.wire.roce import MAX_QP, MIN_DATAGRAM_BYTES, PKEY_DEFAULT
from hil.wire.segments import Form


def header_fault(datagram: memoryview, path: IcrcPath, qp: int, opcodes: Container[int]) -> str:
    """Why a datagram is not for queue pair ``qp``: the counter's name, or "".

    In this order: length (>= 16 bytes), ICRC, opcode and transport version, P_Key, queue pair.
    """
    if len(datagram) < MIN_DATAGRAM_BYTES:
        return "drop_length"
    if not path.check(datagram):
        return "drop_icrc"
    opcode, flags, pkey, dest_qp, _ = struct.unpack_from("!BBHII", datagram)
    if opcode not in opcodes or flags & 15:
        return "drop_opcode"
    if pkey != PKEY_DEFAULT:
        return "drop_pkey"
    return "" if dest_qp & MAX_QP == qp else "drop_qp"


def payload_of(datagram: memoryview, form: Form) -> memoryview | None:
    """The payload without pad; None where length, pad count and opcode disagree."""
    end = len(datagram) - ICRC_BYTES - (datagram[1] >> 4 & 3)
    if len(datagram) % 4 or end < form.payload_at:
        return None
    return datagram[form.payload_at : end]
