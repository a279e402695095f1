"""The invariant CRC of RoCEv2 over IPv4: one packet at a time and whole batches of equal length.

ICRC = CRC-32 (polynomial and reflection of ``zlib.crc32``), stored little-endian in the last four
bytes of the packet, over: 8 bytes 0xFF; the IPv4 header with TOS, TTL and checksum set to 0xFF; the
UDP header with its checksum set to 0xFF; the BTH with byte 4 set to 0xFF; everything behind it up
to the ICRC unchanged. The IPv4 identification and flags are covered: a sender that uses a plain UDP
socket must know that they go out as 0 and DF (``docs/wire.md``).
"""

from __future__ import annotations

import socket
import struct
import zlib
from itertools import repeat
from typing import Final

import numpy as np
import numpy.typing as npt

from hil.errors import WireError

ICRC_BYTES: Final = 4
BTH_BYTES: Final = 12
_ONES: Final = b"\xff" * 8
_IP_UDP_BYTES: Final = 28

U1 = npt.NDArray[np.uint8]
U4 = npt.NDArray[np.uint32]


def crc32_rows(rows: U1, state: int = 0) -> npt.NDArray[np.uint32]:
    """CRC-32 of every row, each continuing from the same running value.

    One ``zlib.crc32`` call per row: about 0.4 us for 100 bytes, twice as fast as a table walk over
    columns in numpy (measured on a 2-core x86 Linux machine).

    Args:
        rows: u1[n, L] with L >= 1; any strides.
        state: running CRC of a prefix shared by all rows (0 = no prefix).

    Returns:
        u4[n].
    """
    if len(rows) == 0:
        return np.empty(0, np.uint32)
    whole = np.ascontiguousarray(rows)
    pieces = whole.view(f"V{whole.shape[1]}").ravel().tolist()
    return np.fromiter(map(zlib.crc32, pieces, repeat(state)), np.uint32, len(pieces))


def icrc_of_headers(ip: bytes | memoryview, udp: bytes | memoryview, packet: bytes) -> int:
    """ICRC from the headers as they stand on the wire.

    Args:
        ip: the IPv4 header, 20 bytes (options are not supported).
        udp: the UDP header, 8 bytes.
        packet: BTH .. end of the (padded) payload, without the ICRC; at least 12 bytes.

    Returns:
        The CRC as an integer; on the wire it is little-endian.
    """
    head = bytearray(_ONES)
    head += ip
    head[8 + 1] = head[8 + 8] = head[8 + 10] = head[8 + 11] = 0xFF
    head += udp
    head[8 + 26] = head[8 + 27] = 0xFF
    head += packet[:4]
    head += b"\xff"
    return zlib.crc32(packet[5:], zlib.crc32(head))


class IcrcPath:
    """ICRC for one direction between two UDP ports, with the constant prefix cached by length.

    The IPv4 header is taken as ours is: no options, DF, protocol 17.

    Args:
        src: sender's IPv4 address, dotted.
        dst: receiver's IPv4 address, dotted.
        src_port: UDP source port that is really on the wire.
        dst_port: UDP destination port.
        ident: IPv4 identification, 0 but for the segments of one UDP_SEGMENT call: the kernel
            numbers these 0, 1, 2, ..
    """

    __slots__ = ("_dst", "_ident", "_ports", "_src", "_states")

    def __init__(self, src: str, dst: str, src_port: int, dst_port: int, *, ident: int = 0) -> None:
        self._ident = ident
        self._src = _ipv4(src)
        self._dst = _ipv4(dst)
        self._ports = struct.pack("!HH", src_port, dst_port)
        self._states: dict[int, int] = {}

    def state(self, datagram_bytes: int) -> int:
        """Running CRC over the masked pseudo header of a datagram (BTH .. ICRC) of that length."""
        found = self._states.get(datagram_bytes)
        if found is None:
            udp_bytes = 8 + datagram_bytes
            head = (0x45, 0xFF, 20 + udp_bytes, self._ident, 0x4000, 0xFF, 17, 0xFFFF)
            prefix = (
                _ONES
                + struct.pack("!BBHHHBBH", *head)
                + (self._src + self._dst + self._ports)
                + struct.pack("!HH", udp_bytes, 0xFFFF)
            )
            found = self._states[datagram_bytes] = zlib.crc32(prefix)
        return found

    def of(self, datagram: bytearray | memoryview) -> int:
        """ICRC of one datagram (BTH .. ICRC, >= 16 bytes, writable; left as it was).

        The last four bytes are not read, so the same call serves building and checking.
        """
        kept = datagram[4]
        datagram[4] = 0xFF
        crc = zlib.crc32(memoryview(datagram)[:-ICRC_BYTES], self.state(len(datagram)))
        datagram[4] = kept
        return crc

    def seal(self, datagram: bytearray | memoryview) -> None:
        """Write the ICRC into the last four bytes of a datagram (BTH .. ICRC)."""
        struct.pack_into("<I", datagram, len(datagram) - ICRC_BYTES, self.of(datagram))

    def check(self, datagram: bytearray | memoryview) -> bool:
        """True if the last four bytes are the right ICRC."""
        return bool(
            struct.unpack_from("<I", datagram, len(datagram) - ICRC_BYTES)[0] == self.of(datagram)
        )

    def of_rows(self, datagrams: U1) -> npt.NDArray[np.uint32]:
        """ICRC of every row of u1[n, L] (datagrams of equal length, BTH .. ICRC); u4[n]."""
        masked = datagrams[:, :-ICRC_BYTES].copy()
        masked[:, 4] = 0xFF
        return crc32_rows(masked, self.state(datagrams.shape[1]))

    def seal_rows(self, datagrams: U1) -> None:
        """Write the ICRC into the last four bytes of every row of u1[n, L]."""
        crcs = self.of_rows(datagrams).astype("<u4")
        datagrams[:, -ICRC_BYTES:] = crcs.view(np.uint8).reshape(-1, ICRC_BYTES)

    def check_rows(self, datagrams: U1) -> npt.NDArray[np.bool_]:
        """bool[n]: True where the last four bytes of the row are the right ICRC."""
        wire = np.ascontiguousarray(datagrams[:, -ICRC_BYTES:]).view("<u4").ravel()
        return np.asarray(wire == self.of_rows(datagrams), dtype=np.bool_)


class FrameIcrc(IcrcPath):
    """ICRC of one packet whose IPv4 and UDP header are known as they stood on the wire.

    For foreign senders: any identification, flags, TOS, TTL and source port.

    Args:
        headers: IPv4 header without options and UDP header, 28 bytes.
    """

    __slots__ = ("_state",)

    def __init__(self, headers: bytes | memoryview) -> None:
        masked = bytearray(_ONES)
        masked += headers
        for at in (1, 8, 10, 11, 26, 27):  # TOS, TTL, both checksums
            masked[8 + at] = 0xFF
        self._state = zlib.crc32(masked)

    def state(self, datagram_bytes: int) -> int:
        """See :meth:`IcrcPath.state`."""
        return self._state


def _ipv4(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise WireError(
            "not an IPv4 address", got=repr(text), allowed="dotted form such as 127.0.0.1"
        ) from None
