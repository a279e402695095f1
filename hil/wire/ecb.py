"""Register access of NVIDIA's sensor bridge over UDP (ECB): requests and replies, big-endian.

Request: command u8, flags u8, sequence u16, reserved u16, then pairs (address u32, data u32); a
single read omits the data. Reply: command + 0x80, flags, sequence, status u8, reserved u8, pairs,
the sequence number that the device has latched u16, and sometimes zeros behind it. Facts: HSB
``controlplane.mdx`` (revision 1a1febe); bytes recorded from RTL (``tests/data/hsb_frames``).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from hil.errors import WireError

PORT: Final = 8192
FIRST_SEQUENCE: Final = 0x100
MAX_PAIRS: Final = 183
"""Pairs of a packet of at most 1472 bytes."""

ACKNOWLEDGE: Final = 1
CHECK_SEQUENCE: Final = 2
REPLY: Final = 0x80
UNMAPPED: Final = 0xBADADD12
"""Data of a read that hit nothing."""

_HEADER: Final = struct.Struct("!BBHH")
_PAIR: Final = struct.Struct("!II")
_SHORT_BYTES: Final = 5
Pair: TypeAlias = tuple[int, int]


class Command(IntEnum):
    """What a request asks for."""

    WR_DWORD = 0x04
    WR_BLOCK = 0x09
    RD_DWORD = 0x14
    RD_BLOCK = 0x19


class EcbStatus(IntEnum):
    """What a device answers."""

    OK = 0
    GENERAL = 2
    ADDRESS = 3
    COMMAND = 4
    LENGTH = 5
    FLAGS = 6
    FULL = 7
    BLOCK_SIZE = 8
    INDIRECT = 9
    TIMEOUT = 10
    SEQUENCE = 11


class Reply(NamedTuple):
    """A reply. ``latched``: the device's sequence number, ``None`` where it does not tell."""

    command: int
    flags: int
    sequence: int
    status: int
    pairs: tuple[Pair, ...]
    latched: int | None


def build_write(pairs: Sequence[Pair], sequence: int, flags: int = ACKNOWLEDGE) -> bytes:
    """WR_DWORD of one pair, WR_BLOCK of several.

    Raises:
        WireError: no or too many pairs, or a field that does not fit.
    """
    _limit(len(pairs))
    command = Command.WR_DWORD if len(pairs) == 1 else Command.WR_BLOCK
    return _packed(command, flags, sequence, b"".join(_pair(a, d) for a, d in pairs))


def build_read(addresses: Sequence[int], sequence: int, flags: int = ACKNOWLEDGE) -> bytes:
    """RD_DWORD of one address, without data; RD_BLOCK of several, with zeros for data.

    Raises:
        WireError: as ``build_write``.
    """
    _limit(len(addresses))
    if len(addresses) == 1:
        return _packed(Command.RD_DWORD, flags, sequence, _pair(addresses[0], 0)[:4])
    body = b"".join(_pair(address, 0) for address in addresses)
    return _packed(Command.RD_BLOCK, flags, sequence, body)


def parse_request(data: bytes) -> tuple[int, int, int, tuple[Pair, ...]]:
    """Command, flags, sequence and pairs of a request; data that was omitted is 0.

    Raises:
        WireError: too short, or not a whole number of pairs.
    """
    if len(data) < _HEADER.size:
        raise WireError("too short for a register request", got=f"{len(data)} bytes")
    command, flags, sequence, _ = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if command == Command.RD_DWORD and len(body) == 4:
        body += bytes(4)
    return command, flags, sequence, _pairs(body)


def build_reply(reply: Reply, trailer: bytes = b"") -> bytes:
    """A reply as a device sends it; ``trailer``: what stands behind the latched number."""
    head = struct.pack("!BBHBB", reply.command, reply.flags, reply.sequence, reply.status, 0)
    latched = b"" if reply.latched is None else struct.pack("!H", reply.latched)
    return head + b"".join(_pair(a, d) for a, d in reply.pairs) + latched + trailer


def parse_reply(data: bytes, request: bytes) -> Reply | None:
    """The reply to ``request``, or ``None`` if ``data`` answers something else.

    Taken as well: zeros behind the latched number (RTL 2 bytes, HSB's emulator 4 in its place),
    the command without 0x80, and acknowledgements of 5 bytes (NVIDIA's FPGA emulator).

    Raises:
        WireError: it answers this request, but is damaged.
    """
    asked, _, sequence, _ = _HEADER.unpack_from(request)
    if len(data) < _SHORT_BYTES:
        return None
    command, flags, replied, status = struct.unpack_from("!BBHB", data)
    if replied != sequence or command not in {asked | REPLY, asked}:
        return None
    reads = asked in {Command.RD_DWORD, Command.RD_BLOCK}
    if len(data) == _SHORT_BYTES and not reads:
        return Reply(command, flags, replied, status, (), None)
    _, _, _, wanted = parse_request(request)
    end = _HEADER.size + _PAIR.size * len(wanted)
    if status != EcbStatus.OK and len(data) < end:
        return Reply(command, flags, replied, status, (), None)
    pairs = _pairs(data[_HEADER.size : end])
    tail = data[end:]
    if len(pairs) != len(wanted) or [a for a, _ in pairs] != [a for a, _ in wanted]:
        raise WireError(
            "a reply with other addresses than were asked for",
            got=f"{len(data)} bytes",
            allowed=f"{len(wanted)} pairs, in order",
        )
    latched = int.from_bytes(tail[:2], "big") if len(tail) >= 2 else None
    if any(tail[2:]) or len(tail) > 4:
        raise WireError("a reply with more than it should say", got=tail.hex())
    return Reply(command, flags, replied, status, pairs, latched)


def _limit(pairs: int) -> None:
    if not 1 <= pairs <= MAX_PAIRS:
        raise WireError("too many pairs for a packet", got=str(pairs), allowed=f"1..{MAX_PAIRS}")


def _packed(command: Command, flags: int, sequence: int, body: bytes) -> bytes:
    try:
        return _HEADER.pack(command, flags, sequence, 0) + body
    except struct.error as error:
        raise WireError("a field does not fit its place", got=str(error)) from error


def _pair(address: int, data: int) -> bytes:
    try:
        return _PAIR.pack(address, data)
    except struct.error as error:
        raise WireError(
            "a field does not fit its place", got=f"{address:#x}, {data:#x}", allowed="32 bits"
        ) from error


def _pairs(body: bytes) -> tuple[Pair, ...]:
    if len(body) % _PAIR.size:
        raise WireError("not a whole number of pairs", got=f"{len(body)} bytes")
    return tuple((a, d) for a, d in _PAIR.iter_unpack(body))
