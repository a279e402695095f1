"""What carries whole Ethernet frames: a pair of UNIX sockets, or an interface of this machine."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, Protocol

from hil.errors import LinkError

QUEUE_BYTES: Final = 4 << 20
"""Asked for; the kernel may grant less (``net.core.wmem_max``). One small frame takes 1 KiB."""

_FRAME_BYTES: Final = 0x10000
_ETH_P_ALL: Final = 3  # Linux <linux/if_ether.h>, <linux/if_packet.h>
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_AUXDATA: Final = 8
_PACKET_IGNORE_OUTGOING: Final = 23
_AUXDATA: Final = struct.Struct("=IIIHHHH")  # status, len, snaplen, mac, net, vlan_tci, vlan_tpid
_VLAN_VALID: Final = 0x10


class FrameWire(Protocol):
    """An Ethernet port: frames without FCS go in and come out, whole or not at all."""

    def send(self, frame: bytes | bytearray) -> None:
        """Put a frame on the wire. Never waits: without room it is lost and counted.

        Raises:
            LinkError: the wire is gone.
        """
        ...

    def receive(self) -> memoryview | None:
        """The next frame, writable and valid until the next call; None if none is there."""
        ...

    def fileno(self) -> int:
        """Descriptor for ``select``; -1 once closed."""
        ...

    def dropped(self) -> int:
        """Frames lost for want of room: sent into a full queue, or not received soon enough."""
        ...

    def close(self) -> None:
        """Let go of it; closing twice is fine."""
        ...


class UnixFrames:
    """One end of a connected pair of AF_UNIX datagram sockets: one datagram is one frame.

    This is how QEMU joins a guest's network card (``-netdev dgram``). The queue is the sender's:
    what finds it full is lost and counted there.

    Args:
        end: the socket; it is taken over.
    """

    def __init__(self, end: socket.socket) -> None:
        if end.family != socket.AF_UNIX or end.type != socket.SOCK_DGRAM:
            raise LinkError("frames need an AF_UNIX datagram socket", got=str(end))
        end.settimeout(0.0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        self._socket = end
        self._dropped = 0
        self._view = memoryview(bytearray(_FRAME_BYTES))

    def send(self, frame: bytes | bytearray) -> None:
        """See :meth:`FrameWire.send`."""
        self._dropped += not _sent(self._socket, frame, "UNIX frame pair")

    def receive(self) -> memoryview | None:
        """See :meth:`FrameWire.receive`."""
        try:
            length = self._socket.recv_into(self._view)
        except (BlockingIOError, ConnectionResetError):
            return None
        return self._view[:length]

    def fileno(self) -> int:
        """See :meth:`FrameWire.fileno`."""
        return self._socket.fileno()

    def dropped(self) -> int:
        """See :meth:`FrameWire.dropped`."""
        return self._dropped

    def close(self) -> None:
        """See :meth:`FrameWire.close`."""
        self._socket.close()


def unix_wires() -> tuple[UnixFrames, UnixFrames]:
    """Both ends of a cable within this machine."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return UnixFrames(first), UnixFrames(second)


class PacketFrames:
    """An interface of this machine, through a packet socket (Linux, CAP_NET_RAW).

    Sees every frame that the interface receives, none that leaves by it. The kernel's own network
    stack sees them too: give the endpoint an IPv4 address that no interface has. A frame whose
    VLAN tag the kernel took off is put together again, so that it is seen for what it is.

    Args:
        interface: its name; nothing but this one interface is used.

    Raises:
        LinkError: no such interface, or packet sockets are not permitted.
    """

    def __init__(self, interface: str) -> None:
        self._name = f"interface {interface}"
        self._dropped = 0
        self._view = memoryview(bytearray(_FRAME_BYTES))
        try:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except (AttributeError, OSError) as error:
            raise LinkError(
                "packet sockets are not permitted",
                where=self._name,
                got=str(error),
                fix="run on Linux with CAP_NET_RAW, or use the soft_roce backend",
            ) from error
        try:
            opened.settimeout(0.0)
            opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            opened.bind((interface, _ETH_P_ALL))
        except OSError as error:
            opened.close()
            raise LinkError(
                "interface cannot be used",
                where=self._name,
                got=str(error),
                fix="choose one that `ip link` shows as UP",
            ) from error
        self._socket = opened

    @property
    def mac(self) -> bytes:
        """MAC address of the interface, 6 bytes."""
        address: bytes = self._socket.getsockname()[4]
        return address

    def send(self, frame: bytes | bytearray) -> None:
        """See :meth:`FrameWire.send`."""
        self._dropped += not _sent(self._socket, frame, self._name)

    def receive(self) -> memoryview | None:
        """See :meth:`FrameWire.receive`."""
        view = self._view
        try:
            length, extra, _, _ = self._socket.recvmsg_into([view], socket.CMSG_SPACE(20))
        except (BlockingIOError, InterruptedError):
            return None
        for _, _, data in extra:
            status, *_, tci, tpid = _AUXDATA.unpack(data)
            if status & _VLAN_VALID:
                view[16 : length + 4] = bytes(view[12:length])
                struct.pack_into("!HH", view, 12, tpid or 0x8100, tci)
                length += 4
        return view[:length]

    def fileno(self) -> int:
        """See :meth:`FrameWire.fileno`."""
        return self._socket.fileno()

    def dropped(self) -> int:
        """See :meth:`FrameWire.dropped`; what was not received is counted by the kernel."""
        if self._socket.fileno() >= 0:  # reading resets the kernel's count
            seen = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            self._dropped += struct.unpack("=II", seen)[1]
        return self._dropped

    def close(self) -> None:
        """See :meth:`FrameWire.close`."""
        self.dropped()
        self._socket.close()


def _sent(end: socket.socket, frame: bytes | bytearray, name: str) -> bool:
    """Whether there was room for a frame."""
    try:
        end.send(frame)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ENOBUFS:  # the queue of an interface
            return False
        raise LinkError("frame was not sent", where=name, got=str(error)) from error
    return True
