"""Captures of Ethernet frames: pcap and pcapng are read, pcapng is written.

Times are whole nanoseconds since the epoch of the capture's clock (``t_ns``), as the files hold
them. Only link type 1 (Ethernet) is accepted. Formats: the pcap and pcapng Internet drafts
(draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

from hil.errors import WireError

ETHERNET: Final = 1
_PCAP_MAGICS: Final = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_SECTION: Final = 0x0A0D0D0A
_SECTION_BYTES: Final = _SECTION.to_bytes(4, "big")
_INTERFACE: Final = 1
_SIMPLE: Final = 3
_ENHANCED: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_OPTION_TSRESOL: Final = 9
_OPTION_TSOFFSET: Final = 14
_MAX_BLOCK_BYTES: Final = 1 << 26
_NS_PER_S: Final = 1_000_000_000


class Captured(NamedTuple):
    """One captured frame; ``original_bytes`` exceeds ``len(data)`` if the capture cut it."""

    t_ns: int
    data: bytes
    original_bytes: int


class _Interface(NamedTuple):
    linktype: int
    ticks_per_s: int
    offset_s: int
    snap_bytes: int


def read_capture(source: Path | BinaryIO, name: str = "", start: bytes = b"") -> Iterator[Captured]:
    """Frames of a pcap or pcapng file in file order; the kind is told by the first bytes.

    Args:
        source: file, or stream of bytes (also a pipe).
        name: of the stream, for errors.
        start: bytes that were read from the stream already.

    Raises:
        WireError: not a capture, cut short, damaged, or not Ethernet.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield from read_capture(file, str(source))
        return
    reader = _Reader(source, name, start)
    first = reader.take(4)
    if first == _SECTION_BYTES:
        yield from _pcapng(reader, first)
    else:
        yield from _pcap(reader, first)


def is_capture(start: bytes) -> bool:
    """Whether these four bytes begin a pcap or pcapng file."""
    words = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    return len(start) == 4 and (start == _SECTION_BYTES or not words.isdisjoint(_PCAP_MAGICS))


class _Reader:
    def __init__(self, file: BinaryIO, name: str, start: bytes) -> None:
        self.file, self.name, self.order = file, name, "<"
        self.start, self.at = start, 0

    def take(self, count: int) -> bytes:
        data = self.maybe(count)
        if not data and count:
            raise self.error("capture is cut short", f"0 of {count} B")
        return data

    def maybe(self, count: int) -> bytes:
        """So many bytes, or none at a clean end of the file."""
        begun, self.start = self.start[:count], self.start[count:]
        data = begun + self.file.read(count - len(begun))
        self.at += len(data)
        if data and len(data) != count:
            raise self.error("capture is cut short", f"{len(data)} of {count} B")
        return data

    def numbers(self, form: str, data: bytes, at: int = 0) -> tuple[int, ...]:
        if at + struct.calcsize(self.order + form) > len(data):
            raise self.error("capture is damaged", f"block of {len(data)} B")
        return struct.unpack_from(self.order + form, data, at)

    def error(self, what: str, got: str = "", allowed: str = "") -> WireError:
        where = f"{self.name}: byte {self.at}"
        return WireError(what, where=where, got=got, allowed=allowed)

    def ethernet(self, linktype: int) -> None:
        if linktype != ETHERNET:
            raise self.error("capture is not of Ethernet", f"link type {linktype}", "1")


def _pcap(reader: _Reader, first: bytes) -> Iterator[Captured]:
    magic = int.from_bytes(first, "little")
    if magic not in _PCAP_MAGICS:
        reader.order, magic = ">", int.from_bytes(first, "big")
    if magic not in _PCAP_MAGICS:
        raise reader.error("neither pcap nor pcapng", f"first word 0x{magic:08x}")
    unit = _PCAP_MAGICS[magic]
    *_, network = reader.numbers("HHiIII", reader.take(20))
    reader.ethernet(network & 0xFFFF)
    while head := reader.maybe(16):
        sec, fraction, kept, original = reader.numbers("IIII", head)
        if kept > _MAX_BLOCK_BYTES:
            raise reader.error("capture is damaged", f"frame of {kept} B")
        yield Captured(sec * _NS_PER_S + fraction * unit, reader.take(kept), original)


def _pcapng(reader: _Reader, first: bytes) -> Iterator[Captured]:
    interfaces: list[_Interface] = []
    head = first + reader.take(4)
    while head:
        kind, body = _block(reader, head)
        if kind == _SECTION:
            interfaces.clear()
        elif kind == _INTERFACE:
            interfaces.append(_interface(reader, body))
        elif kind in {_ENHANCED, _SIMPLE}:
            yield _captured(reader, kind, body, interfaces)
        head = reader.maybe(8)


def _block(reader: _Reader, head: bytes) -> tuple[int, bytes]:
    kind, size = reader.numbers("II", head)
    if kind == _SECTION:  # the same number in both byte orders; it sets the order of its section
        mark = reader.take(4)
        reader.order = "<" if struct.unpack("<I", mark)[0] == _BYTE_ORDER else ">"
        if reader.numbers("I", mark)[0] != _BYTE_ORDER:
            raise reader.error("capture is damaged", "section without byte order")
        (size,) = reader.numbers("I", head, 4)
        head += mark
    if size % 4 or not len(head) + 4 <= size <= _MAX_BLOCK_BYTES:
        raise reader.error("capture is damaged", f"block of {size} B")
    body = reader.take(size - len(head) - 4)
    if reader.numbers("I", reader.take(4))[0] != size:
        raise reader.error("capture is damaged", "the two lengths of a block differ")
    return kind, body


def _interface(reader: _Reader, body: bytes) -> _Interface:
    linktype, _, snap = reader.numbers("HHI", body)
    ticks, offset, at = 1_000_000, 0, 8
    while at + 4 <= len(body):
        code, size = reader.numbers("HH", body, at)
        at += 4
        if code == _OPTION_TSRESOL:
            (value,) = reader.numbers("B", body, at)
            ticks = 2 ** (value & 0x7F) if value & 0x80 else 10**value
        elif code == _OPTION_TSOFFSET:
            (offset,) = reader.numbers("q", body, at)
        elif code == 0:
            break
        at += -(-size // 4) * 4
    return _Interface(linktype, ticks, offset, snap)


def _captured(reader: _Reader, kind: int, body: bytes, interfaces: list[_Interface]) -> Captured:
    number, high, low, kept, start = 0, 0, 0, 0, 20
    if kind == _ENHANCED:
        number, high, low, kept, original = reader.numbers("IIIII", body)
    else:
        (original,), start = reader.numbers("I", body), 4
    if number >= len(interfaces):
        raise reader.error("capture is damaged", f"frame of unknown interface {number}")
    interface = interfaces[number]
    reader.ethernet(interface.linktype)
    if kind == _SIMPLE:
        kept = min(original, interface.snap_bytes or original)
    if start + kept > len(body):
        raise reader.error("capture is damaged", f"frame of {kept} B in a block of {len(body)} B")
    ticks = high << 32 | low
    t_ns = ticks * _NS_PER_S // interface.ticks_per_s + interface.offset_s * _NS_PER_S
    return Captured(t_ns, body[start : start + kept], original)


class PcapngWriter:
    """Writes Ethernet frames with nanosecond times to a pcapng file.

    Args:
        target: file to create (an existing one is replaced), or one open for writing.
    """

    def __init__(self, target: Path | BinaryIO) -> None:
        self._file = target.open("wb") if isinstance(target, Path) else target
        self._put(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1))
        resolution = struct.pack("<HHB3x", _OPTION_TSRESOL, 1, 9) + bytes(4)
        self._put(_INTERFACE, struct.pack("<HHI", ETHERNET, 0, 0) + resolution)

    def write(self, t_ns: int, frame: bytes) -> None:
        """Append one whole frame.

        Raises:
            WireError: the time does not fit 64 unsigned bits.
        """
        if not 0 <= t_ns < 1 << 64:
            raise WireError("capture time is out of range", got=str(t_ns), allowed="0..2^64-1 ns")
        ends = (t_ns >> 32, t_ns & 0xFFFFFFFF, len(frame), len(frame))
        self._put(_ENHANCED, struct.pack("<IIIII", 0, *ends) + frame + bytes(-len(frame) % 4))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, kind: int, body: bytes) -> None:
        size = struct.pack("<I", len(body) + 12)
        self._file.write(struct.pack("<I", kind) + size + body + size)
