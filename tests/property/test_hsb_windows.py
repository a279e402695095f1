"""Windows of the sensor bridge: packets and back, and every fault named."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import WireError
from hil.wire.hsb import Metadata, Stamp, Window, WindowReader, WindowRing, round128, window_packets
from hil.wire.roce import Opcode, Packet, parse_packet

BASE, QP, RKEY = 0x1000_0000, 0x1234, 0xABCD


def ring_of(window: int, *, metadata: bool, mtu: int = 1500, slots: int = 4) -> WindowRing:
    stride = round128(window) + 128
    return WindowRing(window, stride, slots, BASE, QP, RKEY, metadata, mtu)


def stamp_of(ring: WindowRing, number: int) -> Stamp | None:
    return Stamp(number, 10**10 + number, 10**10 + number + 160) if ring.metadata else None


def stream(ring: WindowRing, n: int, psn: int = 0, first: int = 0) -> list[list[Packet]]:
    """Packets of ``n`` windows, window by window; window ``i`` is full of bytes ``i``."""
    packets = []
    for i in range(n):
        data = bytes([i % 251]) * ring.window_bytes
        slot = (first + i) % ring.n_slots
        packets.append(window_packets(ring, data, slot, psn, stamp_of(ring, i)))
        psn = (psn + len(packets[-1])) % 2**24
    return packets


def read(ring: WindowRing, packets: list[Packet]) -> tuple[list[Window], WindowReader]:
    reader = WindowReader(ring)
    windows = [reader.packet(packet) for packet in packets]
    return [window for window in windows if window is not None], reader


@given(
    units=st.integers(1, 300),
    metadata=st.booleans(),
    mtu=st.sampled_from([256, 1500, 4096, 9000]),
    psn=st.integers(0, 2**24 - 1),
    first=st.integers(0, 3),
)
def test_windows_come_back_whole_and_obey_the_layout(
    units: int, metadata: bool, mtu: int, psn: int, first: int
) -> None:
    ring = ring_of(32 * units, metadata=metadata, mtu=mtu)
    made = stream(ring, 6, psn, first)
    flat = [parse_packet(p.pack() + bytes(4)) for window in made for p in window]
    windows, reader = read(ring, flat)
    assert [(w.slot, w.data[0], len(w.data)) for w in windows] == [
        ((first + i) % 4, i, 32 * units) for i in range(6)
    ]
    assert all(w.faults == () for w in windows)
    assert reader.counts == {"packets": len(flat), "windows": 6}
    assert [w.metadata is not None for w in windows] == [metadata] * 6
    for window in made:
        *plain, last = window
        assert {p.bth.opcode for p in plain} <= {Opcode.UC_WRITE_ONLY}
        assert last.bth.opcode == Opcode.UC_WRITE_ONLY_IMM
        assert all(len(p.payload) <= ring.packet_bytes for p in window)
        starts = [p.reth.va for p in window if p.reth]
        data = starts[:-1] if metadata else starts
        assert all(b - a == ring.packet_bytes for a, b in pairwise(data))
        if metadata:
            assert starts[-1] - starts[0] == round128(ring.window_bytes)
            assert len(last.payload) == 128
        assert [p.bth.psn for p in window] == [
            (window[0].bth.psn + k) % 2**24 for k in range(len(window))
        ]


@given(
    flags=st.integers(0, 2**32 - 1),
    psn=st.integers(0, 2**24 - 1),
    crc=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**62),
    valid=st.integers(0, 2**64 - 1),
    frame=st.integers(0, 2**16 - 1),
)
def test_metadata_round_trip(
    flags: int, psn: int, crc: int, first: int, valid: int, frame: int
) -> None:
    made = Metadata(flags, psn, crc, first, valid, frame, first + 1)
    assert Metadata.unpack(made.pack()) == made


def test_metadata_refuse_what_does_not_fit() -> None:
    good = Metadata(0, 0, 0, 0, 64, 0, 0)
    for bad in (replace(good, frame_number=2**16), replace(good, first_data_ns=-1)):
        with pytest.raises(WireError, match="does not fit"):
            bad.pack()
    with pytest.raises(WireError, match="length of metadata"):
        Metadata.unpack(bytes(127))
    with pytest.raises(WireError, match="PTP time"):
        Metadata.unpack(good.pack()[:20] + b"\xff" * 4 + good.pack()[24:])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"window_bytes": 0}, "window of 32"),
        ({"window_bytes": 40}, "window of 32"),
        ({"n_slots": 0}, "1..4096 slots"),
        ({"n_slots": 4097}, "1..4096 slots"),
        ({"base_va": BASE + 64}, "multiples of 128"),
        ({"stride": 200}, "multiples of 128"),
        ({"stride": 128}, "stride >= 256 B"),
        ({"window_bytes": 512, "metadata": False, "stride": 512}, "stride >= 640 B"),
        ({"base_va": 2**39 - 1024}, "2\\^39"),
        ({"base_va": 2**33 - 512}, "8 GiB"),
        ({"mtu_bytes": 201}, "mtu"),
    ],
)
def test_rings_that_the_bridge_cannot_write_are_refused(
    changes: dict[str, object], rule: str
) -> None:
    fields: dict[str, object] = dict(
        *[{"window_bytes": 64, "stride": 256, "n_slots": 4, "base_va": BASE, "metadata": True}],
        qp=QP,
        rkey=RKEY,
    )
    WindowRing(**fields)  # type: ignore[arg-type]
    with pytest.raises(WireError, match=rule):
        WindowRing(**{**fields, **changes})  # type: ignore[arg-type]


def test_limits_that_are_still_allowed() -> None:
    WindowRing(64, 128, 4096, 2**33 - 4096 * 128, QP, RKEY)
    WindowRing(128, 128, 1, 0, QP, RKEY)
    WindowRing(32, 256, 64, 2**39 - 2**20, QP, RKEY, metadata=True)


def test_a_window_or_stamp_that_does_not_fit_is_refused() -> None:
    ring = ring_of(64, metadata=False)
    for window, slot in ((bytes(63), 0), (bytes(64), 4), (bytes(64), -1)):
        with pytest.raises(WireError, match="does not fit the ring"):
            window_packets(ring, window, slot, 0)
    with pytest.raises(WireError, match="stamp"):
        window_packets(ring, bytes(64), 0, 0, Stamp(0, 0, 0))
    with pytest.raises(WireError, match="stamp"):
        window_packets(ring_of(64, metadata=True), bytes(64), 0, 0)


def respoiled(packet: Packet, name: str) -> Packet:
    """One packet with one thing wrong."""
    bth, reth = packet.bth, packet.reth
    assert reth is not None
    data = packet.payload
    return {
        "qp": replace(packet, bth=bth._replace(dest_qp=QP + 1)),
        "opcode": replace(packet, bth=bth._replace(opcode=Opcode.UC_WRITE_FIRST)),
        "rkey": replace(packet, reth=reth._replace(rkey=RKEY + 1)),
        "length": replace(packet, reth=reth._replace(length=reth.length - 32)),
        "bounds": replace(packet, reth=reth._replace(va=BASE - 256)),
        "imm": replace(packet, imm=(packet.imm or 0) ^ 1),
        "metadata": replace(packet, payload=data[:20] + b"\xff" * 4 + data[24:]),
        "metadata_psn": replace(packet, payload=data[:7] + b"\x7f" + data[8:]),
        "window_crc": replace(packet, payload=data[:8] + b"\x00" * 4 + data[12:]),
        "valid_bytes": replace(packet, payload=data[:31] + b"\x20" + data[32:]),
        "frame_number": replace(packet, payload=data[:34] + b"\x09\x09" + data[36:]),
    }[name]


@pytest.mark.parametrize("name", ["qp", "opcode", "rkey", "length", "bounds"])
def test_packets_outside_the_ring_end_their_window_alone(name: str) -> None:
    ring = ring_of(320, metadata=True, mtu=256)
    made = stream(ring, 4)
    made[1][1] = respoiled(made[1][1], name)
    windows, reader = read(ring, [p for window in made for p in window])
    assert [w.data[0] for w in windows] == [0, 2, 3]
    assert reader.counts[name] == 1
    assert (reader.counts["windows"], reader.counts["incomplete"]) == (3, 1)
    assert windows[1].faults == ("slot_order", "frame_number")
    assert windows[2].faults == ()


@pytest.mark.parametrize(
    "name",
    ["imm", "metadata", "metadata_psn", "window_crc", "valid_bytes", "frame_number"],
)
def test_faults_of_a_window_are_named_and_counted_once(name: str) -> None:
    ring = ring_of(320, metadata=True, mtu=256)
    made = stream(ring, 4)
    made[2][-1] = respoiled(made[2][-1], name)
    windows, reader = read(ring, [p for window in made for p in window])
    assert len(windows) == 4
    assert windows[2].faults == (name,)
    after = ("frame_number",) if name in {"frame_number", "metadata"} else ()
    assert windows[3].faults == after
    assert reader.counts[name] == 1 + (name == "frame_number")


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_lost_packet_costs_its_window_and_nothing_is_spliced(metadata: bool, which: int) -> None:
    ring = ring_of(320, metadata=metadata, mtu=256)
    made = stream(ring, 5, psn=2**24 - 7)
    del made[2][which]
    windows, reader = read(ring, [p for window in made for p in window])
    assert [w.data for w in windows] == [bytes([i]) * 320 for i in (0, 1, 3, 4)]
    assert windows[2].faults == (("slot_order", "frame_number") if metadata else ("slot_order",))
    assert (reader.counts["psn_gap"], reader.counts["psn_lost"]) == (1, 1)
    assert reader.counts["incomplete"] == (0 if which == 0 else 1)


def test_copies_and_late_packets_change_nothing() -> None:
    ring = ring_of(320, metadata=True, mtu=256)
    flat = [p for window in stream(ring, 3) for p in window]
    windows, reader = read(ring, [*flat[:5], flat[1], *flat[4:]])
    assert [w.faults for w in windows] == [(), (), ()]
    assert reader.counts["psn_behind"] == 2


def test_metadata_joined_to_the_last_packet_as_the_software_emulator_sends_them() -> None:
    ring = ring_of(64, metadata=True)
    data, behind = window_packets(ring, bytes(range(64)), 1, 9, Stamp(3, 5, 6))
    assert data.reth is not None
    metadata = replace(Metadata.unpack(behind.payload), psn=9)
    payload = data.payload + bytes(64) + metadata.pack()
    bth = data.bth._replace(opcode=Opcode.UC_WRITE_ONLY_IMM)
    joined = Packet(bth, data.reth._replace(length=256), imm=9 << 12 | 1, payload=payload)
    (window,), _ = read(ring, [joined])
    assert (window.data, window.metadata, window.faults) == (bytes(range(64)), metadata, ())


def test_numbers_wrap_without_a_fault() -> None:
    """PSN (24 bit), its copy in the immediate (20 bit), frame number (16 bit) and slots."""
    ring = ring_of(64, metadata=True)
    for psn in (2**24 - 3, 2**20 - 3, 2**21 - 3):
        packets: list[Packet] = []
        for i in range(6):
            stamp = Stamp(2**16 - 3 + i, i, i)
            packets += window_packets(ring, bytes(64), i % 4, psn + 2 * i, stamp)
        windows, reader = read(ring, packets)
        assert [w.faults for w in windows] == [()] * 6
        assert reader.counts == {"packets": 12, "windows": 6}


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(0, 11))
def test_anything_may_come_between(junk: list[bytes], at: int) -> None:
    """Whatever else parses as a packet: no exception, and no window with other data."""
    ring = ring_of(64, metadata=True)
    flat = [p for window in stream(ring, 6) for p in window]
    extra = []
    for raw in junk:
        try:
            extra.append(parse_packet(b"\x2a\x00\xff\xff\x00\x00\x12\x34\x00" + raw))
        except WireError:
            continue
    windows, _ = read(ring, flat[:at] + extra + flat[at:])
    assert all(w.data == w.data[:1] * 64 for w in windows if not w.faults)
