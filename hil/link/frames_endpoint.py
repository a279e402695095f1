"""RoCEv2 in whole Ethernet frames, made and read here: no RDMA device and no network stack.

Whatever carries frames will do (:mod:`hil.link.frame_wires`). As every header is seen as it stood
on the wire, the ICRC of any sender can be checked, with the identification, flags and source port
that it really used. We send identification 0, DF, TTL 64 and UDP checksum 0 (``docs/wire.md``).

Answers ARP for its own address and asks for the peer's unless that MAC is given; what is sent
before the answer waits, a few datagrams at most. VLAN tags, IPv4 options and fragments are refused
and counted. The UDP checksum is not looked at: the ICRC covers what it covers.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections import deque
from typing import Final

from hil.errors import LinkError, WireError
from hil.link.endpoint import Completion, PeerAddress, Transport
from hil.link.frame_wires import FrameWire
from hil.link.packets import PacketEndpoint
from hil.link.rc_requester import RcAttributes
from hil.link.soft_roce import Tap
from hil.timebase import PS_PER_S, monotonic_ps
from hil.wire import arp
from hil.wire.ethernet import ipv4_checksum
from hil.wire.icrc import FrameIcrc
from hil.wire.roce import FRAME_HEADER_BYTES, PSN_MASK, ROCE_PORT, Flow

UNRESOLVED_DEPTH: Final = 64
"""Datagrams that wait for the peer's MAC address; more are lost and counted."""

ARP_EVERY_PS: Final = PS_PER_S
"""So often an unanswered ARP request is repeated (RFC 1122 section 2.3.2.1)."""

FRAME_COUNTERS: Final = (
    *("rx_arp", "arp_asked", "arp_answered", "tx_unresolved", "other_ethertype", "other_mac"),
    *("drop_vlan", "drop_ip", "drop_options", "drop_fragment", "drop_udp"),
)
"""Counted besides :data:`hil.link.packets.COUNTERS`. ``other_*``: what others say on the wire, such
as IPv6 solicitations; nobody is alarmed by it."""

_JUNK_PER_POLL: Final = 1024  # so that a flood of foreign frames cannot hold poll() for ever
_VLAN: Final = frozenset({0x8100, 0x88A8})
_IPV4: Final = 0x0800
_UDP: Final = 17
_IP_AT: Final = 14
_UDP_AT: Final = 34
_UNKNOWN_MAC: Final = bytes(6)


class FramesEndpoint(PacketEndpoint):
    """One end of a link of whole frames.

    Args:
        wire: what carries them; taken over, and closed with the endpoint.
        mac: own MAC address, 6 bytes.
        host: own IPv4 address; need not be (and on an interface must not be) one of this machine.
        port: UDP port, source and destination.
        qp: own queue pair number; random if None.
        rkey: own memory key; random if None.
        psn_start: PSN that this end expects first.
        mtu_bytes: MTU of the network.
        transport: unreliable or reliable connection.
        attributes: limits and times of RC; the usual ones if None.
        peer_mac: MAC address of the peer or of the router to it; asked for by ARP if None.
        tap: is shown every datagram to and from the peer; must not block.

    Raises:
        LinkError: a number is out of range, or a MAC address does not name one card.
    """

    def __init__(
        self,
        wire: FrameWire,
        mac: bytes,
        host: str,
        *,
        port: int = ROCE_PORT,
        qp: int | None = None,
        rkey: int | None = None,
        psn_start: int = 0,
        mtu_bytes: int = 1500,
        transport: Transport = "uc",
        attributes: RcAttributes | None = None,
        peer_mac: bytes | None = None,
        tap: Tap | None = None,
    ) -> None:
        qp = 1 + secrets.randbelow(PSN_MASK) if qp is None else qp
        rkey = secrets.randbits(32) if rkey is None else rkey
        super().__init__(host, port, qp, rkey, psn_start, mtu_bytes, transport, attributes)
        for name, address in (("mac", mac), ("peer_mac", peer_mac)):
            if address is not None and (len(address) != 6 or address[0] & 1):
                raise LinkError(
                    f"{name} does not name one network card",
                    got=address.hex(":"),
                    allowed="6 bytes, not a group address",
                )
        self._wire, self._mac, self._peer_mac, self._tap = wire, mac, peer_mac, tap
        self._ip = socket.inet_aton(host)
        self._peer_ip = b""
        self._headers: dict[int, bytes] = {}
        self._unresolved: deque[bytes] = deque()
        self._asked_ps: int | None = None
        self._seen = dict.fromkeys(FRAME_COUNTERS, 0)

    # -- sending --------------------------------------------------------------------------------

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`; asks for the peer's MAC address."""
        super().connect(peer)
        self._peer_ip = socket.inet_aton(peer.host)
        self._headers.clear()
        if self._peer_mac is None:
            self._ask(monotonic_ps())

    def transmit(self, datagram: bytes | bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.transmit`.

        Raises:
            LinkError: the wire is gone.
        """
        if self._peer_mac is None:
            if len(self._unresolved) < UNRESOLVED_DEPTH:
                self._unresolved.append(bytes(datagram))
            else:
                self._seen["tx_unresolved"] += 1
            return
        header = self._headers.get(len(datagram))
        if header is None:
            header = self._headers[len(datagram)] = self._header(len(datagram))
        self._wire.send(header + datagram)
        if self._tap is not None:
            self._tap(True, monotonic_ps(), datagram)  # noqa: FBT003 - sent

    def _header(self, datagram_bytes: int) -> bytes:
        peer, mac = self._peer, self._peer_mac
        if peer is None or mac is None:
            raise LinkError("endpoint has no peer yet", fix="call connect() first")
        flow = Flow(self._mac, mac, self._host, peer.host, self._port, peer.port)
        return flow.header(datagram_bytes)

    # -- receiving ------------------------------------------------------------------------------

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`.

        Raises:
            LinkError: the endpoint is closed.
        """
        if self._wire.fileno() < 0:
            raise LinkError("endpoint is closed", where=f"frames {self._host}")
        found: list[Completion] = []
        for _ in range(max_completions + _JUNK_PER_POLL):
            if len(found) == max_completions:
                break
            frame = self._wire.receive()
            if frame is None:
                break
            t_rx_ps = monotonic_ps()
            cause = self._fault(frame)
            if cause:
                self._drop(cause)
                continue
            length = int.from_bytes(frame[_IP_AT + 2 : _IP_AT + 4], "big")
            datagram = frame[FRAME_HEADER_BYTES : _IP_AT + length]
            if self._tap is not None:
                self._tap(False, t_rx_ps, datagram)  # noqa: FBT003 - received
            path = FrameIcrc(frame[_IP_AT:FRAME_HEADER_BYTES])
            completion = self._arrived(datagram, t_rx_ps, path)
            if completion is not None:
                found.append(completion)
        now_ps = monotonic_ps()
        self._timers(now_ps)
        if self._asked_ps is not None and now_ps >= self._asked_ps + ARP_EVERY_PS:
            self._ask(now_ps)
        return found

    def _drop(self, cause: str) -> None:
        if cause in self._seen:
            self._seen[cause] += 1
        else:
            super()._drop(cause)

    def _fault(self, frame: memoryview) -> str:
        """Why a frame is no datagram of the peer: the name of its counter; "" if it is one."""
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == arp.ETHERTYPE:
            return self._resolve(frame)
        if ethertype != _IPV4:
            return "drop_vlan" if ethertype in _VLAN else "other_ethertype"
        if frame[:6] != self._mac:
            return "other_mac"
        return _ipv4_fault(frame) or self._udp_fault(frame)

    def _udp_fault(self, frame: memoryview) -> str:
        if frame[26:30] != self._peer_ip or frame[30:34] != self._ip:
            return "drop_peer"
        port, length = struct.unpack_from("!HH", frame, _UDP_AT + 2)
        total = int.from_bytes(frame[16:18], "big")
        right = (frame[23], port, length) == (_UDP, self._port, total - 20)
        return "" if right else "drop_udp"

    # -- ARP ------------------------------------------------------------------------------------

    def next_timer_ps(self) -> int | None:
        """See :meth:`hil.link.endpoint.Endpoint.next_timer_ps`; also when to ask again."""
        timer_ps = super().next_timer_ps()
        if self._asked_ps is None:
            return timer_ps
        again_ps = self._asked_ps + ARP_EVERY_PS
        return again_ps if timer_ps is None else min(timer_ps, again_ps)

    def _ask(self, now_ps: int) -> None:
        peer = socket.inet_ntoa(self._peer_ip)
        request = arp.Arp(arp.REQUEST, self._mac, self._host, _UNKNOWN_MAC, peer)
        self._wire.send(request.frame())
        self._asked_ps = now_ps
        self._seen["arp_asked"] += 1

    def _resolve(self, frame: memoryview) -> str:
        """Answer a request for our address; learn the peer's from what it says itself."""
        try:
            message = arp.parse_arp(frame)
        except WireError:
            return "other_ethertype"
        if message.sender_ip == socket.inet_ntoa(self._peer_ip or _UNKNOWN_MAC[:4]):
            self._learn(message.sender_mac)
        if message.operation == arp.REQUEST and message.target_ip == self._host:
            self._wire.send(message.reply(self._mac).frame())
            self._seen["arp_answered"] += 1
        return "rx_arp"

    def _learn(self, mac: bytes) -> None:
        """Taken once: later messages cannot lead our frames elsewhere."""
        if self._peer_mac is not None or mac[0] & 1:
            return
        self._peer_mac, self._asked_ps = mac, None
        while self._unresolved:
            self.transmit(self._unresolved.popleft())

    # -- the rest -------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """See :meth:`hil.link.endpoint.Endpoint.counters`; and :data:`FRAME_COUNTERS`."""
        return {**super().counters(), **self._seen}

    def fileno(self) -> int | None:
        """Descriptor of the wire."""
        return self._wire.fileno()

    def close(self) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.close`."""
        self._wire.close()

    def _overflow(self) -> int:
        return self._wire.dropped()


def _ipv4_fault(frame: memoryview) -> str:
    """The header must be whole, of version 4, right, without options, and no fragment's."""
    if len(frame) < FRAME_HEADER_BYTES or frame[_IP_AT] >> 4 != 4:
        return "drop_ip"
    if frame[_IP_AT] != 0x45:
        return "drop_options"
    total = int.from_bytes(frame[16:18], "big")
    whole = FRAME_HEADER_BYTES - _IP_AT <= total <= len(frame) - _IP_AT
    if not whole or ipv4_checksum(bytes(frame[_IP_AT:_UDP_AT])) != 0:
        return "drop_ip"
    more_or_not_first = int.from_bytes(frame[20:22], "big") & 0x3FFF
    return "drop_fragment" if more_or_not_first else ""
