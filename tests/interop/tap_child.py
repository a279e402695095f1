"""``soft_roce`` against the guest: a tap device in a network namespace of this process's own.

Arguments: inherited descriptors of the guest's Ethernet link and of the channel. Frames are carried
between the link and the tap device; UDP, IPv4 and ARP are those of this machine's kernel. The
namespace and the device end with the process. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading

from link_to_guest import (
    DEVICE,
    GUEST,
    HOST,
    HOST_MAC,
    MTU_BYTES,
    PATIENT,
    PSN_START,
    SLOTS,
    STRIDE,
    numbered,
    transfer,
)
from remote_queue import Line, RemoteQueue

from hil.link import soft_roce
from hil.link.endpoint import Completion, PeerAddress
from hil.link.verbs import VerbsEndpoint
from hil.wire.icrc import IcrcPath

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA  # Linux <linux/if_tun.h>
IFF_TAP, IFF_NO_PI = 2, 0x1000
N = 60


class Unseen(IcrcPath):
    """A UDP socket does not show the identification that rxe numbers its packets with."""

    def check(self, datagram: bytearray | memoryview) -> bool:
        return True


class AnyPort(tuple):  # noqa: SLOT001 - it holds nothing more
    """An address that equals every port of its host: rxe sends from one of its own."""

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, tuple) or other[0] != self[0]


class TrustingSoftRoce(soft_roce.SoftRoceEndpoint):
    def connect(self, peer: PeerAddress) -> None:
        super().connect(peer)
        self._peer_end = AnyPort(self._peer_end)

    def _arrived(
        self, datagram: memoryview, t_rx_ps: int, path: IcrcPath | None = None
    ) -> Completion | None:
        return super()._arrived(datagram, t_rx_ps, Unseen(GUEST, HOST, 4791, 4791))


def tap_device() -> int:
    """A tap device with the host's address, up, in a namespace that this call makes.

    Raises:
        OSError: not permitted, or no /dev/net/tun.
        subprocess.CalledProcessError: the device cannot be configured.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"t0", IFF_TAP | IFF_NO_PI))
    for command in (
        f"link set t0 address {HOST_MAC.hex(':')}",
        f"addr add {HOST}/24 dev t0",
        "link set t0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
    return tap


def carry(tap: int, link: socket.socket) -> None:
    """Frames between tap and link, for ever."""
    os.set_blocking(tap, False)
    while True:
        for ready in select.select([tap, link], (), ())[0]:
            if ready is link:
                os.write(tap, link.recv(1 << 16))
            else:
                frame = os.read(tap, 1 << 16)
                select.select((), (link,), ())
                link.send(frame)


def exchange(line: Line, transport: str) -> dict[str, object]:
    host = TrustingSoftRoce(
        HOST, psn_start=PSN_START, mtu_bytes=MTU_BYTES, transport=transport,
        attributes=PATIENT if transport == "rc" else None,
    )  # fmt: skip
    guest = VerbsEndpoint(
        DEVICE, GUEST, psn_start=PSN_START, mtu_bytes=MTU_BYTES, transport=transport,
        open_queue=lambda *args: RemoteQueue(line, f"tap {transport}", *args),
    )  # fmt: skip
    line.pump = lambda: select.select((), (), (), 0.002)
    there, back = guest.register(SLOTS, STRIDE), host.register(SLOTS, STRIDE)
    host.connect(guest.address())
    guest.connect(host.address())
    messages = numbered(N)
    if transport == "uc":
        messages = [message for message in messages if len(message) < 100]
    to_guest = transfer(host, guest, there, messages).messages == messages
    from_guest = transfer(guest, host, back, messages).messages == messages
    guest.close()
    found = {"to guest": to_guest, "from guest": from_guest, "error": host.error}
    host.close()
    return found


def main() -> int:
    tap = tap_device()
    if sys.argv[1:] == ["probe"]:
        return 0
    link, channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    link.setblocking(True)
    threading.Thread(target=carry, args=(tap, link), daemon=True).start()
    soft_roce.require_loopback = lambda *_: None
    line = Line(channel)
    sys.stdout.write(json.dumps({kind: exchange(line, kind) for kind in ("rc", "uc")}))
    sys.stdout.flush()
    os._exit(0)  # the thread holds descriptors that are not its own


if __name__ == "__main__":
    sys.exit(main())
