"""RoCEv2 over Ethernet and IPv4: typed headers, packets and whole frames.

Field values of frames that we build follow NVIDIA's Holoscan Sensor Bridge (``docs/wire.md``):
DF with identification 0, TTL 64, UDP checksum 0, P_Key 0xFFFF, MigReq 0, one packet per message.
A *datagram* here is the UDP payload: BTH .. payload, pad, ICRC. A *packet* is that without ICRC.
All integers are big-endian on the wire, the ICRC is little-endian.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from hil.errors import WireError
from hil.wire.ethernet import Ethernet, Ipv4, Udp, ipv4_checksum
from hil.wire.icrc import BTH_BYTES, ICRC_BYTES, U1, IcrcPath, icrc_of_headers

ROCE_PORT: Final = 4791
HSB_SOURCE_PORT: Final = 0x3000
PKEY_DEFAULT: Final = 0xFFFF
PSN_BITS: Final = 24
PSN_MASK: Final = 0xFFFFFF
MAX_SLOTS: Final = 4096
STRIDE_UNIT: Final = 128
FRAME_HEADER_BYTES: Final = 42
RETH_BYTES: Final = 16
IMM_BYTES: Final = 4
AETH_BYTES: Final = 4
MAX_QP: Final = 0xFFFFFF
MIN_DATAGRAM_BYTES: Final = BTH_BYTES + ICRC_BYTES

ACK_NO_CREDIT_LIMIT: Final = 0x1F
"""Syndromes of an AETH: acknowledged; RNR_NAK + timer code; the four kinds of NAK."""

RNR_NAK: Final = 0x20
NAK_SEQUENCE: Final = 0x60
NAK_REQUEST: Final = 0x61
NAK_ACCESS: Final = 0x62
NAK_OPERATION: Final = 0x63


class Opcode(IntEnum):
    """BTH opcodes that are parsed; UC = RC + 0x20. Of the UC ones only *ONLY* are built."""

    RC_SEND_FIRST = 0x00
    RC_SEND_MIDDLE = 0x01
    RC_SEND_LAST = 0x02
    RC_SEND_LAST_IMM = 0x03
    RC_SEND_ONLY = 0x04
    RC_SEND_ONLY_IMM = 0x05
    RC_WRITE_FIRST = 0x06
    RC_WRITE_MIDDLE = 0x07
    RC_WRITE_LAST = 0x08
    RC_WRITE_LAST_IMM = 0x09
    RC_WRITE_ONLY = 0x0A
    RC_WRITE_ONLY_IMM = 0x0B
    RC_ACKNOWLEDGE = 0x11
    UC_SEND_FIRST = 0x20
    UC_SEND_MIDDLE = 0x21
    UC_SEND_LAST = 0x22
    UC_SEND_LAST_IMM = 0x23
    UC_SEND_ONLY = 0x24
    UC_SEND_ONLY_IMM = 0x25
    UC_WRITE_FIRST = 0x26
    UC_WRITE_MIDDLE = 0x27
    UC_WRITE_LAST = 0x28
    UC_WRITE_LAST_IMM = 0x29
    UC_WRITE_ONLY = 0x2A
    UC_WRITE_ONLY_IMM = 0x2B


_LOW = {int(op): op & 0x1F for op in Opcode}
WITH_RETH: Final = frozenset(op for op, low in _LOW.items() if low in {0x06, 0x0A, 0x0B})
WITH_IMM: Final = frozenset(op for op, low in _LOW.items() if low in {0x03, 0x05, 0x09, 0x0B})
WITH_AETH: Final = frozenset({int(Opcode.RC_ACKNOWLEDGE)})


class Bth(NamedTuple):
    """Base transport header, 12 bytes. ``congestion`` is the whole byte of FECN, BECN, reserved."""

    opcode: int
    dest_qp: int
    psn: int
    pad: int = 0
    solicited: bool = False
    migreq: bool = False
    version: int = 0
    pkey: int = PKEY_DEFAULT
    congestion: int = 0
    ack_request: bool = False

    def pack(self) -> bytes:
        """The 12 bytes on the wire.

        Raises:
            WireError: a field is wider than its place.
        """
        if self.dest_qp >> 24 or self.psn >> 24 or self.pad >> 2 or self.version >> 4:
            raise WireError("a field of the BTH does not fit its place", got=str(self))
        flags = self.solicited << 7 | self.migreq << 6 | self.pad << 4 | self.version
        return struct.pack(
            "!BBHII",
            *(self.opcode, flags, self.pkey),
            *(self.congestion << 24 | self.dest_qp, self.ack_request << 31 | self.psn),
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Bth:
        """Header from the first 12 bytes of a datagram."""
        opcode, flags, pkey, qp, psn = struct.unpack_from("!BBHII", data)
        return cls(
            *(opcode, qp & MAX_QP, psn & PSN_MASK, flags >> 4 & 3, bool(flags >> 7)),
            *(bool(flags >> 6 & 1), flags & 15, pkey, qp >> 24, bool(psn >> 31)),
        )


class Reth(NamedTuple):
    """RDMA extended header: where the payload is to be written."""

    va: int
    rkey: int
    length: int

    def pack(self) -> bytes:
        """The 16 bytes on the wire."""
        return struct.pack("!QII", *self)


class Aeth(NamedTuple):
    """Acknowledge extended header (RC only)."""

    syndrome: int
    msn: int

    def pack(self) -> bytes:
        """The 4 bytes on the wire."""
        return struct.pack("!I", self.syndrome << 24 | self.msn)


@dataclass(frozen=True, slots=True)
class Packet:
    """One transport packet. ``payload`` is without the pad bytes."""

    bth: Bth
    reth: Reth | None = None
    aeth: Aeth | None = None
    imm: int | None = None
    payload: bytes = b""

    def pack(self) -> bytes:
        """BTH .. pad, without ICRC.

        Raises:
            WireError: a field does not fit its place.
        """
        try:
            return self._joined()
        except struct.error as error:
            raise WireError("a field does not fit its place", got=str(self)) from error

    def _joined(self) -> bytes:
        return b"".join(
            (
                self.bth.pack(),
                self.reth.pack() if self.reth else b"",
                self.aeth.pack() if self.aeth else b"",
                b"" if self.imm is None else struct.pack("!I", self.imm),
                self.payload,
                bytes(self.bth.pad),
            )
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole Ethernet frame without FCS; ``icrc_ok``: the ICRC found on the wire is right."""

    ethernet: Ethernet
    ip: Ipv4
    udp: Udp
    packet: Packet
    icrc: bytes = b""
    icrc_ok: bool = True

    def pack(self) -> bytes:
        """The frame with IPv4 checksum and ICRC made afresh from its fields."""
        ip, udp, packet = self.ip.pack(), self.udp.pack(), self.packet.pack()
        crc = struct.pack("<I", icrc_of_headers(ip, udp, packet))
        return self.ethernet.pack() + ip + udp + packet + crc


def parse_packet(datagram: bytes | memoryview) -> Packet:
    """Transport packet from a datagram (BTH .. ICRC); the ICRC is not looked at.

    Raises:
        WireError: too short, unknown opcode or transport version, or an impossible pad count.
    """
    data = bytes(datagram)
    if len(data) < MIN_DATAGRAM_BYTES:
        raise WireError(
            "datagram shorter than BTH and ICRC", got=f"{len(data)} B", allowed=">= 16 B"
        )
    bth = Bth.unpack(data)
    if bth.opcode not in _LOW or bth.version != 0:
        raise WireError(
            "not a transport packet that is known here",
            got=f"opcode 0x{bth.opcode:02x}, version {bth.version}",
            allowed="version 0, opcode " + ", ".join(f"0x{op:02x}" for op in _LOW),
        )
    sizes = (
        RETH_BYTES if bth.opcode in WITH_RETH else 0,
        AETH_BYTES if bth.opcode in WITH_AETH else 0,
        IMM_BYTES if bth.opcode in WITH_IMM else 0,
    )
    start, end = BTH_BYTES + sum(sizes), len(data) - ICRC_BYTES - bth.pad
    if end < start:
        raise WireError(
            "datagram too short for its opcode and pad count",
            got=f"{len(data)} B, opcode 0x{bth.opcode:02x}, pad {bth.pad}",
        )
    reth = Reth(*struct.unpack_from("!QII", data, BTH_BYTES)) if sizes[0] else None
    word = struct.unpack_from("!I", data, start - 4)[0]
    aeth = Aeth(word >> 24, word & 0xFFFFFF) if sizes[1] else None
    return Packet(bth, reth, aeth, word if sizes[2] else None, data[start:end])


def parse_frame(frame: bytes | memoryview) -> Frame:
    """Headers, payload and ICRC state of one Ethernet frame (FCS absent, padding tolerated).

    Raises:
        WireError: not IPv4 without options, not UDP, lengths or IPv4 checksum wrong, or a packet
            that :func:`parse_packet` refuses. A wrong ICRC does not raise: see ``icrc_ok``.
    """
    data = bytes(frame)
    if len(data) < FRAME_HEADER_BYTES + MIN_DATAGRAM_BYTES:
        raise WireError("frame shorter than its headers", got=f"{len(data)} B", allowed=">= 58 B")
    ethernet = Ethernet(data[:6], data[6:12], int.from_bytes(data[12:14], "big"))
    first, tos, total, ident, flags, ttl, protocol, checksum, src, dst = struct.unpack_from(
        "!BBHHHBBH4s4s", data, 14
    )
    if (ethernet.ethertype, first, protocol) != (0x0800, 0x45, 17):
        raise WireError(
            "not UDP over IPv4 without options",
            got=f"ethertype 0x{ethernet.ethertype:04x}, IP 0x{first:02x}, protocol {protocol}",
            allowed="0x0800, 0x45, 17",
        )
    udp = Udp(*struct.unpack_from("!HHHH", data, 34))
    if not 28 + MIN_DATAGRAM_BYTES <= total <= len(data) - 14 or udp.length != total - 20:
        raise WireError(
            "lengths of frame, IPv4 and UDP disagree",
            got=f"frame {len(data)} B, IPv4 {total} B, UDP {udp.length} B",
        )
    if ipv4_checksum(data[14:34]) != 0:
        raise WireError("IPv4 header checksum is wrong", got=f"0x{checksum:04x}")
    ends = (socket.inet_ntoa(src), socket.inet_ntoa(dst))
    ip = Ipv4(total, *ends, tos, ident, flags, ttl, protocol, checksum)
    datagram = data[FRAME_HEADER_BYTES : 14 + total]
    crc = datagram[-ICRC_BYTES:]
    right = icrc_of_headers(data[14:34], data[34:42], datagram[:-ICRC_BYTES])
    return Frame(
        ethernet, ip, udp, parse_packet(datagram), crc, crc == right.to_bytes(ICRC_BYTES, "little")
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction between two ports: what stands in front of the BTH.

    Args:
        src_mac: 6 bytes.
        dst_mac: 6 bytes.
        src: IPv4 address of the sender, dotted.
        dst: IPv4 address of the receiver, dotted.
        src_port: UDP source port (0x3000 in HSB frames).
        dst_port: UDP destination port.
    """

    src_mac: bytes
    dst_mac: bytes
    src: str
    dst: str
    src_port: int = HSB_SOURCE_PORT
    dst_port: int = ROCE_PORT
    path: IcrcPath = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.src_mac) != 6 or len(self.dst_mac) != 6:
            raise WireError(
                "a MAC address has 6 bytes", got=f"{self.src_mac.hex()}, {self.dst_mac.hex()}"
            )
        path = IcrcPath(self.src, self.dst, self.src_port, self.dst_port)
        object.__setattr__(self, "path", path)

    def header(self, datagram_bytes: int) -> bytes:
        """Ethernet, IPv4 and UDP header (42 bytes) in front of a datagram of that length."""
        return (
            Ethernet(self.dst_mac, self.src_mac).pack()
            + Ipv4(28 + datagram_bytes, self.src, self.dst).pack()
            + Udp(self.src_port, self.dst_port, 8 + datagram_bytes).pack()
        )

    def frame(self, packet: Packet) -> bytes:
        """Whole Ethernet frame around a packet, ICRC included."""
        datagram = bytearray(packet.pack() + bytes(ICRC_BYTES))
        self.path.seal(datagram)
        return self.header(len(datagram)) + bytes(datagram)

    def frame_rows(self, datagrams: U1) -> U1:
        """Whole frames u1[n, 42 + L] around finished datagrams u1[n, L]."""
        head = np.frombuffer(self.header(datagrams.shape[1]), np.uint8)
        tiled = np.broadcast_to(head, (len(datagrams), FRAME_HEADER_BYTES))
        return np.concatenate((tiled, datagrams), axis=1)


@dataclass(frozen=True, slots=True)
class Target:
    """Memory of a receiver as its sender sees it: slot ``s`` begins at ``base_va + s * stride``."""

    qp: int
    rkey: int
    base_va: int
    stride: int


def slot_imm(psn: int, slot: int) -> int:
    """Immediate value of the HSB: ``(PSN[19:0] << 12) | slot[11:0]``.

    Raises:
        WireError: the slot does not fit 12 bits.
    """
    if not 0 <= slot < MAX_SLOTS:
        raise WireError("slot is out of range", got=str(slot), allowed=f"0..{MAX_SLOTS - 1}")
    return (psn & 0xFFFFF) << 12 | slot


def payload_limit(mtu_bytes: int) -> int:
    """Largest payload of one packet: ``floor((MTU - 74) / 128) * 128`` (HSB rule)."""
    return (mtu_bytes - 74) // STRIDE_UNIT * STRIDE_UNIT


def write_only(target: Target, psn: int, slot: int, payload: bytes, offset: int = 0) -> Packet:
    """UC RDMA WRITE ONLY into a slot, ``offset`` bytes behind its start: no completion."""
    reth = Reth(target.base_va + slot * target.stride + offset, target.rkey, len(payload))
    return Packet(_bth(Opcode.UC_WRITE_ONLY, target.qp, psn, payload), reth, payload=payload)


def write_only_imm(target: Target, psn: int, slot: int, payload: bytes, offset: int = 0) -> Packet:
    """UC RDMA WRITE ONLY WITH IMMEDIATE into a slot: one receive completion at the receiver."""
    reth = Reth(target.base_va + slot * target.stride + offset, target.rkey, len(payload))
    bth = _bth(Opcode.UC_WRITE_ONLY_IMM, target.qp, psn, payload)
    return Packet(bth, reth, imm=slot_imm(psn, slot), payload=payload)


def send_only(qp: int, psn: int, payload: bytes) -> Packet:
    """UC SEND ONLY: no address; order of arrival is the only binding."""
    return Packet(_bth(Opcode.UC_SEND_ONLY, qp, psn, payload), payload=payload)


def _bth(opcode: Opcode, qp: int, psn: int, payload: bytes) -> Bth:
    return Bth(opcode, qp, psn & PSN_MASK, pad=-len(payload) % 4)
