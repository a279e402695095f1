"""Captures: what is written is read, foreign variants are read, damage is named."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil.errors import WireError
from hil.wire.pcap import PcapngWriter, read_capture

FRAMES = [(0, b""), (1_700_000_000_123_456_789, bytes(range(61))), (2**64 - 1, b"\xff" * 60)]


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, options: bytes = b"", linktype: int = 1, snap: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snap) + options)


def enhanced(order: str, ticks: int, data: bytes, number: int = 0) -> bytes:
    head = struct.pack(order + "5I", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(order, 6, head + data)


def read(path: Path, raw: bytes) -> list[tuple[int, bytes, int]]:
    path.write_bytes(raw)
    return [tuple(one) for one in read_capture(path)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with PcapngWriter(path) as writer:
        for t_ns, data in FRAMES:
            writer.write(t_ns, data)
    assert [(c.t_ns, c.data) for c in read_capture(path)] == FRAMES
    assert path.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=90)), max_size=5))
def test_any_frames_survive(tmp_path: Path, frames: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "b.pcapng"
    with PcapngWriter(path) as writer:
        for t_ns, data in frames:
            writer.write(t_ns, data)
    assert [(c.t_ns, c.data, c.original_bytes) for c in read_capture(path)] == [
        (t_ns, data, len(data)) for t_ns, data in frames
    ]


@pytest.mark.parametrize("t_ns", [-1, 2**64])
def test_a_time_that_does_not_fit_is_refused(tmp_path: Path, t_ns: int) -> None:
    with PcapngWriter(tmp_path / "c") as writer, pytest.raises(WireError, match="out of range"):
        writer.write(t_ns, b"")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_all_kinds_of_pcap(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    raw = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    raw += struct.pack(order + "IIII", 5, 7, 3, 60) + b"abc"
    raw += struct.pack(order + "IIII", 6, 0, 0, 0)
    assert read(tmp_path / "d", raw) == [(5 * 10**9 + 7 * unit, b"abc", 60), (6 * 10**9, b"", 0)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_other_clocks_blocks_and_sections(tmp_path: Path, order: str) -> None:
    other = ">" if order == "<" else "<"
    fine = struct.pack(order + "HHB3x", 9, 1, 12)  # picoseconds
    binary = struct.pack(order + "HHB3x", 9, 1, 0x80 | 10) + struct.pack(order + "HHq", 14, 8, 100)
    comment = struct.pack(order + "HH4s", 1, 4, b"note") + struct.pack(order + "HH", 0, 0)
    raw = section(order)
    raw += interface(order, comment) + interface(order, fine) + interface(order, binary)
    raw += block(order, 0x0BAD, b"unknown block")
    raw += enhanced(order, 3, b"us") + enhanced(order, 5_999, b"ps", 1)
    raw += enhanced(order, 512, b"half", 2)
    raw += block(order, 3, struct.pack(order + "I", 5) + b"short")
    raw += section(other) + interface(other, snap=2)
    raw += block(other, 3, struct.pack(other + "I", 9) + b"cu")
    assert read(tmp_path / "e", raw) == [
        (3000, b"us", 2),
        (5, b"ps", 2),
        (100_500_000_000, b"half", 4),
        (0, b"short", 5),
        (0, b"cu", 9),
    ]


GOOD = section("<") + interface("<") + enhanced("<", 1, b"frame")
PCAP = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "cut short"),
        (b"\0\0\0\0", "neither pcap nor pcapng"),
        (PCAP[:20], "cut short"),
        (PCAP + bytes(7), "cut short"),
        (PCAP + struct.pack("<IIII", 0, 0, 4, 4) + b"abc", "cut short"),
        (PCAP + struct.pack("<IIII", 0, 0, 1 << 30, 4), "damaged"),
        (PCAP[:20] + struct.pack("<I", 101), "not of Ethernet"),
        (GOOD[:-1], "cut short"),
        (GOOD[:-4] + bytes(4), "damaged"),
        (GOOD[:4] + struct.pack("<I", 13) + GOOD[8:], "damaged"),
        (GOOD[:8] + bytes(4) + GOOD[12:], "damaged"),
        (section("<") + interface("<") + enhanced("<", 1, b"", 1), "unknown interface"),
        (section("<") + interface("<", linktype=113) + enhanced("<", 1, b""), "not of Ethernet"),
        (section("<") + interface("<") + block("<", 6, bytes(8)), "damaged"),
        (section("<") + interface("<") + block("<", 6, struct.pack("<5I", 0, 0, 0, 9, 9)), "dama"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, raw: bytes, what: str) -> None:
    with pytest.raises(WireError) as caught:
        read(tmp_path / "broken.pcap", raw)
    assert what in str(caught.value.what) + caught.value.got
    assert "broken.pcap: byte" in caught.value.where
