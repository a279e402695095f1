"""Headers in front of a RoCEv2 packet: Ethernet, IPv4 without options, UDP. All big-endian."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple


class Ethernet(NamedTuple):
    """Ethernet II header without VLAN tag."""

    dst: bytes
    src: bytes
    ethertype: int = 0x0800

    def pack(self) -> bytes:
        """The 14 bytes on the wire."""
        return self.dst + self.src + struct.pack("!H", self.ethertype)


class Ipv4(NamedTuple):
    """IPv4 header without options; ``checksum`` is kept as found and made afresh by ``pack``."""

    total_length: int
    src: str
    dst: str
    tos: int = 0
    ident: int = 0
    flags_fragment: int = 0x4000
    ttl: int = 64
    protocol: int = 17
    checksum: int = 0

    def pack(self) -> bytes:
        """The 20 bytes on the wire with a right header checksum."""
        head = struct.pack(
            "!BBHHHBBH",
            *(0x45, self.tos, self.total_length, self.ident, self.flags_fragment),
            *(self.ttl, self.protocol, 0),
        )
        ends = socket.inet_aton(self.src) + socket.inet_aton(self.dst)
        return head[:10] + struct.pack("!H", ipv4_checksum(head + ends)) + ends


class Udp(NamedTuple):
    """UDP header; RoCEv2 leaves the checksum 0."""

    src_port: int
    dst_port: int
    length: int
    checksum: int = 0

    def pack(self) -> bytes:
        """The 8 bytes on the wire."""
        return struct.pack("!HHHH", *self)


def ipv4_checksum(header: bytes) -> int:
    """Internet checksum of an even number of bytes; 0 over a header that holds a right one."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
