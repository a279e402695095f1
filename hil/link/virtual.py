"""A pair of endpoints joined in memory: the same packets and checks, no socket."""

from __future__ import annotations

from collections import deque
from typing import Final

from hil.errors import LinkError
from hil.link.endpoint import Completion, PeerAddress, Transport
from hil.link.packets import PacketEndpoint
from hil.link.rc_requester import RcAttributes
from hil.timebase import monotonic_ps
from hil.wire.roce import ROCE_PORT

DEPTH: Final = 65536
"""Datagrams that may wait at one end; more are lost and counted, as in a socket buffer."""


class VirtualEndpoint(PacketEndpoint):
    """One end of a :func:`virtual_pair`."""

    def __init__(
        self,
        host: str,
        *,
        port: int,
        qp: int,
        rkey: int,
        psn_start: int,
        mtu_bytes: int,
        transport: Transport = "uc",
        attributes: RcAttributes | None = None,
    ) -> None:
        super().__init__(host, port, qp, rkey, psn_start, mtu_bytes, transport, attributes)
        self._inbox: deque[bytearray] = deque()
        self._other: VirtualEndpoint | None = None
        self._lost_here = 0

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`.

        Raises:
            LinkError: the address is not that of the other end of this pair.
        """
        other = self._other
        if other is None or (peer.host, peer.port) != (other._host, other._port):
            raise LinkError(
                "a virtual endpoint can only reach the other end of its pair",
                got=f"{peer.host}:{peer.port}",
            )
        super().connect(peer)

    def transmit(self, datagram: bytes | bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.transmit`."""
        if self._other is not None:
            self._other.inject(datagram)

    def inject(self, datagram: bytes | bytearray) -> None:
        """Let any bytes arrive at this end (tests)."""
        if len(self._inbox) >= DEPTH:
            self._lost_here += 1
            return
        self._inbox.append(bytearray(datagram))

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`."""
        found: list[Completion] = []
        while self._inbox and len(found) < max_completions:
            datagram = memoryview(self._inbox.popleft())
            completion = self._arrived(datagram, monotonic_ps())
            if completion is not None:
                found.append(completion)
        self._timers(monotonic_ps())
        return found

    def fileno(self) -> int | None:
        """There is none."""
        return None

    def close(self) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.close`."""
        self._other = None
        self._inbox.clear()

    def _overflow(self) -> int:
        return self._lost_here


def virtual_pair(
    *,
    hosts: tuple[str, str] = ("127.0.0.2", "127.0.0.1"),
    port: int = ROCE_PORT,
    qps: tuple[int, int] = (0x41, 0x42),
    rkeys: tuple[int, int] = (0x1F01, 0x1F02),
    psn_starts: tuple[int, int] = (0, 0),
    mtu_bytes: int = 1500,
    transport: Transport = "uc",
    attributes: RcAttributes | None = None,
) -> tuple[VirtualEndpoint, VirtualEndpoint]:
    """Two joined endpoints; each still needs :meth:`register` and :meth:`connect`."""
    first, second = (
        VirtualEndpoint(
            hosts[i],
            port=port,
            qp=qps[i],
            rkey=rkeys[i],
            psn_start=psn_starts[i],
            mtu_bytes=mtu_bytes,
            transport=transport,
            attributes=attributes,
        )
        for i in (0, 1)
    )
    first._other, second._other = second, first
    return first, second
