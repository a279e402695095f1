"""Messages of several packets, and what a reliable connection adds to a packet.

A message longer than the path MTU goes as FIRST, MIDDLE .., LAST; one that fits as ONLY. The RETH
stands in FIRST or ONLY and announces the whole message. Numbers: InfiniBand Architecture
Specification volume 1 (RC transport); the same as Linux rdma_rxe uses on the wire
(``tests/data/rxe``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hil.errors import WireError
from hil.timebase import PS_PER_US
from hil.wire.icrc import BTH_BYTES, ICRC_BYTES
from hil.wire.roce import (
    AETH_BYTES,
    IMM_BYTES,
    PSN_BITS,
    PSN_MASK,
    RETH_BYTES,
    WITH_IMM,
    WITH_RETH,
    Aeth,
    Bth,
    Opcode,
    Packet,
    Reth,
    Target,
    slot_imm,
)

ACK_DATAGRAM_BYTES: Final = BTH_BYTES + AETH_BYTES + ICRC_BYTES
UC_OFFSET: Final = 0x20
PATH_MTUS: Final = (256, 512, 1024, 2048, 4096)

_TENS_OF_US: Final = (
    *(65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192),
    *(256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576),
    *(32768, 49152),
)
RNR_WAIT_PS: Final = tuple(10 * PS_PER_US * tens for tens in _TENS_OF_US)
"""Waiting time by RNR timer code 0..31: 655.36 ms, then 10 us .. 491.52 ms."""


class Form(NamedTuple):
    """What an opcode says of its packet: its kind, its place in the message, where payload begins.

    Attributes:
        send: SEND; otherwise RDMA WRITE.
        first: the message begins here (FIRST or ONLY).
        last: it ends here (LAST or ONLY).
        imm: an immediate follows the other headers.
        payload_at: byte of the datagram at which the payload begins.
    """

    send: bool
    first: bool
    last: bool
    imm: bool
    payload_at: int


def _form(opcode: Opcode) -> Form:
    name = opcode.name
    size = BTH_BYTES + RETH_BYTES * (opcode in WITH_RETH) + IMM_BYTES * (opcode in WITH_IMM)
    return Form(
        "SEND" in name,
        "FIRST" in name or "ONLY" in name,
        "LAST" in name or "ONLY" in name,
        opcode in WITH_IMM,
        size,
    )


UC_FORMS: Final = {int(op): _form(op) for op in Opcode if op.name.startswith("UC_")}
RC_FORMS: Final = {op - UC_OFFSET: form for op, form in UC_FORMS.items()}
"""Forms by opcode; the acknowledgement is none."""


def psn_distance(psn: int, origin: int) -> int:
    """How far ``psn`` lies ahead of ``origin``, signed, in -2^23 .. 2^23 - 1."""
    half = 1 << (PSN_BITS - 1)
    return (psn - origin + half & PSN_MASK) - half


def ack_timeout_ps(code: int) -> int:
    """Local ack timeout of a timer code: 4.096 us x 2^code.

    Raises:
        WireError: the code is not in 1..31 (0 would be no timeout at all).
    """
    if not 1 <= code <= 31:
        raise WireError("ack timeout code is out of range", got=str(code), allowed="1..31")
    return 4_096_000 << code


def path_mtu(mtu_bytes: int) -> int:
    """The largest RoCE path MTU (payload bytes of a packet) not above ``mtu_bytes``.

    Raises:
        WireError: there is none.
    """
    if mtu_bytes < PATH_MTUS[0]:
        raise WireError("no RoCE path MTU is so small", got=f"{mtu_bytes} B", allowed=">= 256 B")
    return max(size for size in PATH_MTUS if size <= mtu_bytes)


def write_packets(
    target: Target, psn: int, slot: int, payload: bytes, mtu_bytes: int, *, with_imm: bool
) -> list[Packet]:
    """One RC RDMA WRITE to the start of a slot, with or without immediate in its last packet.

    The immediate is :func:`hil.wire.roce.slot_imm` of the last packet's PSN and the slot.
    """
    reth = Reth(target.base_va + slot * target.stride, target.rkey, len(payload))
    last_psn = psn + _count(payload, mtu_bytes) - 1
    imm = slot_imm(last_psn, slot) if with_imm else None
    return _message(Opcode.RC_WRITE_FIRST, target.qp, psn, payload, mtu_bytes, reth, imm)


def send_packets(qp: int, psn: int, payload: bytes, mtu_bytes: int) -> list[Packet]:
    """One RC SEND."""
    return _message(Opcode.RC_SEND_FIRST, qp, psn, payload, mtu_bytes, None, None)


def acknowledgement(qp: int, psn: int, syndrome: int, msn: int) -> Packet:
    """ACK, NAK or RNR NAK to queue pair ``qp``; ``msn``: messages completed, taken modulo 2^24."""
    bth = Bth(Opcode.RC_ACKNOWLEDGE, qp, psn & PSN_MASK)
    return Packet(bth, aeth=Aeth(syndrome, msn & PSN_MASK))


def _count(payload: bytes, mtu_bytes: int) -> int:
    return max(1, -(-len(payload) // mtu_bytes))


def _message(
    opcode_first: int,
    qp: int,
    psn: int,
    payload: bytes,
    mtu_bytes: int,
    reth: Reth | None,
    imm: int | None,
) -> list[Packet]:
    """Packets of one message; opcodes follow each other as FIRST, MIDDLE, LAST, ONLY."""
    count = _count(payload, mtu_bytes)
    packets = []
    for k in range(count):
        part = payload[k * mtu_bytes : (k + 1) * mtu_bytes]
        last = k == count - 1
        place = 4 if count == 1 else 2 if last else min(k, 1)
        ends = imm if last else None
        opcode = opcode_first + place + (ends is not None)
        bth = Bth(opcode, qp, psn + k & PSN_MASK, pad=-len(part) % 4)
        packets.append(Packet(bth, reth if k == 0 else None, imm=ends, payload=part))
    return packets
