"""Frames from a file or a pipe: a capture (pcap, pcapng), or text with one frame of hex a line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, TypeAlias

from hil.errors import WireError
from hil.wire.pcap import is_capture, read_capture

Unit: TypeAlias = Literal["packet", "line"]

_LINE_BYTES: Final = 1 << 20
"""Longest line of text that is looked at; a frame has at most 128 KiB in hex."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One packet of a capture, or one line of text.

    Attributes:
        unit: what is counted: ``packet`` of a capture or ``line`` of text.
        number: of the packet or of the line, from 1.
        t_ns: time of the capture; None for text.
        frame: the bytes; empty if there is an ``error``.
        error: why there are none.
        original_bytes: length on the wire; more than ``frame`` if the capture cut it.
    """

    unit: Unit
    number: int
    t_ns: int | None
    frame: bytes
    error: str = ""
    original_bytes: int = 0


def read_frames(stream: BinaryIO, name: str) -> Iterator[Entry]:
    """All frames; what cannot be read is an entry with an error, and never raises.

    Text: blank lines and lines that begin with ``#`` are skipped; spaces, colons and a leading
    ``0x`` are allowed. A damaged capture, or a zero byte in text, ends with an error.

    Args:
        stream: open for reading bytes; may be a pipe.
        name: of the file, for errors.
    """
    source = io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
    start = source.read(4)
    if is_capture(start):
        yield from _capture(source, name, start)
    else:
        yield from _text(source, start)


def _capture(source: BinaryIO, name: str, start: bytes) -> Iterator[Entry]:
    number = 0
    try:
        for number, found in enumerate(read_capture(source, name, start), start=1):
            yield Entry(
                "packet", number, found.t_ns, found.data, original_bytes=found.original_bytes
            )
    except WireError as error:
        yield Entry("packet", number + 1, None, b"", error.message.replace("\n   ", ";"))


def _text(source: BinaryIO, start: bytes) -> Iterator[Entry]:
    for number, line in enumerate(_lines(source, start), start=1):
        text = line.decode("ascii", errors="replace").strip()
        if not text or text.startswith("#"):
            continue
        if "\0" in text:
            yield Entry("line", number, None, b"", "neither a capture nor text")
            return
        try:
            frame = bytes.fromhex(text.removeprefix("0x").replace(":", ""))
        except ValueError:
            long = "..." if len(text) > 40 else ""
            yield Entry("line", number, None, b"", f"not a frame in hex: {text[:40]!a}{long}")
            continue
        yield Entry("line", number, None, frame, original_bytes=len(frame))


def _lines(source: BinaryIO, start: bytes) -> Iterator[bytes]:
    *whole, rest = start.split(b"\n")
    yield from whole
    while line := source.readline(_LINE_BYTES):
        yield rest + line
        rest = b""
    if rest:
        yield rest
