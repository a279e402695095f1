"""ARP for IPv4 over Ethernet (RFC 826): the frame that asks for, or tells, a MAC address."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

from hil.errors import WireError
from hil.wire.ethernet import Ethernet

ETHERTYPE: Final = 0x0806
BROADCAST: Final = b"\xff" * 6
REQUEST: Final = 1
REPLY: Final = 2
FRAME_BYTES: Final = 42

_BODY: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV4_OVER_ETHERNET: Final = (1, 0x0800, 6, 4)


class Arp(NamedTuple):
    """An ARP message. MAC addresses are 6 bytes, ``*_ip`` dotted IPv4.

    ``target_mac`` of a request is unknown: zeros.
    """

    operation: int
    sender_mac: bytes
    sender_ip: str
    target_mac: bytes
    target_ip: str

    def frame(self) -> bytes:
        """The Ethernet frame, 42 bytes; a request goes to everybody."""
        to = BROADCAST if self.operation == REQUEST else self.target_mac
        body = _BODY.pack(
            *_IPV4_OVER_ETHERNET,
            self.operation,
            *(self.sender_mac, socket.inet_aton(self.sender_ip)),
            *(self.target_mac, socket.inet_aton(self.target_ip)),
        )
        return Ethernet(to, self.sender_mac, ETHERTYPE).pack() + body

    def reply(self, mac: bytes) -> Arp:
        """The answer of the one who was asked for and whose address is ``mac``."""
        return Arp(REPLY, mac, self.target_ip, self.sender_mac, self.sender_ip)


def parse_arp(frame: bytes | memoryview) -> Arp:
    """The message of an Ethernet frame; padding is tolerated.

    Raises:
        WireError: not an ARP request or reply for IPv4 over Ethernet.
    """
    data = bytes(frame[:FRAME_BYTES])
    if len(data) < FRAME_BYTES or int.from_bytes(data[12:14], "big") != ETHERTYPE:
        raise WireError("not an ARP frame", got=data[:14].hex(), allowed="ethertype 0806, 42 B")
    *form, operation, sender_mac, sender_ip, target_mac, target_ip = _BODY.unpack_from(data, 14)
    if tuple(form) != _IPV4_OVER_ETHERNET or operation not in {REQUEST, REPLY}:
        raise WireError(
            "not an ARP request or reply for IPv4 over Ethernet",
            got=f"{form}, operation {operation}",
            allowed=f"{list(_IPV4_OVER_ETHERNET)}, operation 1 or 2",
        )
    ends = socket.inet_ntoa(sender_ip), socket.inet_ntoa(target_ip)
    return Arp(operation, sender_mac, ends[0], target_mac, ends[1])
