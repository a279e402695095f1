"""RoCEv2 from an ordinary UDP socket: no RDMA device, no privilege; loopback unless permitted.

An unconnected socket with ``IP_MTU_DISCOVER`` = DO sends DF and IPv4 identification 0 on Linux, so
the ICRC that we compute is exact on the wire. The kernel writes the port that the socket is bound
to as source port; both ends therefore use it (4791 unless told) in the ICRC. A receiving socket
cannot see the identification of the sender: it is taken as 0, see ``docs/wire.md``.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from hil.errors import LinkError
from hil.link.endpoint import Buffer, Completion, PeerAddress, Transport
from hil.link.packets import PacketEndpoint
from hil.link.rc_requester import RcAttributes
from hil.timebase import monotonic_ps
from hil.wire.roce import PSN_MASK, ROCE_PORT

RECEIVE_BUFFER_BYTES: Final = 8 << 20
Tap: TypeAlias = Callable[[bool, int, Buffer], None]
"""Is shown each datagram (BTH .. ICRC): sent (or received), monotonic ps, bytes to be copied."""

_SEND_WAIT_S: Final = 1.0
JUNK_PER_POLL: Final = 1024  # so that a flood of foreign datagrams cannot hold poll() for ever
_IP_MTU_DISCOVER: Final = 10  # Linux <linux/in.h>; the socket module lacks these two
_IP_PMTUDISC_DO: Final = 2
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8


class SoftRoceEndpoint(PacketEndpoint):
    """One end of a soft-RoCE link.

    Args:
        host: own address, within 127.0.0.0/8 unless ``allow_remote``. Two ends on one port need
            two addresses.
        port: UDP port of this end, both source and destination.
        qp: own queue pair number; random if None.
        rkey: own memory key; random if None, so that frames of an earlier run are refused.
        psn_start: PSN that this end expects first.
        mtu_bytes: MTU of the network.
        transport: unreliable or reliable connection.
        attributes: limits and times of RC; None: the usual ones.
        tap: is shown every datagram to and from the peer; must not block.
        allow_remote: permission to leave this machine. Who gives it answers for who may reach the
            port (``hil.node.setup.demand_permission``).

    Raises:
        LinkError: the address is not loopback and that is not permitted, or the port is taken.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int = ROCE_PORT,
        qp: int | None = None,
        rkey: int | None = None,
        psn_start: int = 0,
        mtu_bytes: int = 1500,
        transport: Transport = "uc",
        attributes: RcAttributes | None = None,
        tap: Tap | None = None,
        allow_remote: bool = False,
    ) -> None:
        self._allow_remote = allow_remote
        if not allow_remote:
            require_loopback(host)
        qp = 1 + secrets.randbelow(PSN_MASK) if qp is None else qp
        rkey = secrets.randbits(32) if rkey is None else rkey
        super().__init__(host, port, qp, rkey, psn_start, mtu_bytes, transport, attributes)
        self._socket = bound_socket(host, port, "soft_roce")
        self._buffer = bytearray(0x10000)
        self._view = memoryview(self._buffer)
        self._peer_end = ("", 0)
        self._tap = tap
        self._dropped_at_close = 0

    @property
    def receive_buffer_bytes(self) -> int:
        """Size of the socket's receive buffer as granted by the kernel."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def connect(self, peer: PeerAddress) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.connect`.

        Raises:
            LinkError: the peer is not on loopback and that is not permitted, or is this end itself.
        """
        if not self._allow_remote:
            require_loopback(peer.host)
        super().connect(peer)
        self._peer_end = (peer.host, peer.port)

    def transmit(self, datagram: bytes | bytearray) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.transmit`.

        Raises:
            LinkError: the kernel refused the datagram, or its queue stayed full for a second.
        """
        try:
            self._socket.sendto(datagram, self._peer_end)
        except BlockingIOError:
            self._wait_for_room()
            self.transmit(datagram)
            return
        except OSError as error:
            raise LinkError("datagram was not sent", where=self._name(), got=str(error)) from error
        if self._tap is not None:
            self._tap(True, monotonic_ps(), datagram)  # noqa: FBT003 - sent

    def poll(self, max_completions: int) -> list[Completion]:
        """See :meth:`hil.link.endpoint.Endpoint.poll`.

        Raises:
            LinkError: the endpoint is closed.
        """
        found: list[Completion] = []
        receive, view, end = self._socket.recvfrom_into, self._view, self._peer_end
        for _ in range(max_completions + JUNK_PER_POLL):
            if len(found) == max_completions:
                break
            try:
                length, sender = receive(view)
            except BlockingIOError:
                break
            except OSError as error:
                raise LinkError("endpoint is closed", where=self._name(), got=str(error)) from error
            t_rx_ps = monotonic_ps()
            if sender != end:
                self._drop("drop_peer")
                continue
            if self._tap is not None:
                self._tap(False, t_rx_ps, view[:length])  # noqa: FBT003 - received
            completion = self._arrived(view[:length], t_rx_ps)
            if completion is not None:
                found.append(completion)
        self._timers(monotonic_ps())
        return found

    def fileno(self) -> int:
        """Descriptor of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """See :meth:`hil.link.endpoint.Endpoint.close`."""
        self._dropped_at_close = self._overflow()
        self._socket.close()

    def _wait_for_room(self) -> None:
        if not select.select((), (self._socket,), (), _SEND_WAIT_S)[1]:
            raise LinkError("send queue stayed full for 1 s", where=self._name())

    def _overflow(self) -> int:
        closed = self._socket.fileno() < 0
        return self._dropped_at_close if closed else dropped_by_kernel(self._socket)

    def _name(self) -> str:
        return f"soft_roce {self._host}:{self._port}"


def require_loopback(host: str, backend: str = "soft_roce") -> None:
    """Refuse every address outside 127.0.0.0/8.

    Raises:
        LinkError: not an IPv4 loopback address.
    """
    try:
        if ipaddress.IPv4Address(host).is_loopback:
            return
    except ValueError:
        pass
    raise LinkError(
        f"{backend} listens and sends on loopback only",
        got=repr(host),
        allowed="an address in 127.0.0.0/8, such as 127.0.0.1",
        fix="`hil node serve` and `hil rack stream` leave this machine with --allow-remote",
    )


def dropped_by_kernel(opened: socket.socket) -> int:
    """Datagrams that found the receive buffer full, as the kernel counts them."""
    info = opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
    words = struct.unpack(f"={len(info) // 4}I", info)
    return int(words[_MEMINFO_DROPS])


def bound_socket(host: str, port: int, backend: str) -> socket.socket:
    """A UDP socket that does not block and sends DF; ``backend`` names it in errors.

    Raises:
        LinkError: the port is taken, or the address cannot be bound.
    """
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.settimeout(0.0)
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        taken = error.errno == errno.EADDRINUSE
        raise LinkError(
            "UDP port is taken" if taken else "UDP socket could not be opened",
            where=f"{backend} {host}:{port}",
            got=str(error),
            fix=f"stop the process that owns UDP {host}:{port} (`ss -lunp`), "
            "or choose another loopback address or udp_port"
            if taken
            else "",
        ) from error
    return opened
