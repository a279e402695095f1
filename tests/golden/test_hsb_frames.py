"""Frames recorded from NVIDIA's sensor-bridge RTL: read back whole, and compared with ours."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from hil.link.receiver import Receiver
from hil.link.sequence import Arrival
from hil.link.slots import Slots
from hil.link.virtual import virtual_pair
from hil.node.config import NodeConfig
from hil.node.session import Session
from hil.node.shots import Reply, Start
from hil.wire import rpc
from hil.wire.decode import decode
from hil.wire.hsb import Metadata, Stamp, WindowReader, WindowRing, window_packets
from hil.wire.roce import Flow, Packet, parse_frame

DATA = Path(__file__).parents[1] / "data" / "hsb_frames"
BRIDGE, HOST = bytes.fromhex("cafec0ffee00"), bytes.fromhex("123456789abc")
WITH_METADATA = WindowRing(64, 256, 4, 0x1000_0000, 0x1234, 0xABCD, metadata=True)
WITHOUT = WindowRing(512, 1024, 4, 0x1000_0000, 0x1234, 0xABCD)
FILES = [("hsb_window64_meta.txt", WITH_METADATA), ("hsb_window512_nometa.txt", WITHOUT)]

DECLARED = {
    *("ethernet.dst", "ethernet.src"),  # zero on loopback, where our captures are made
    *("ip.src", "ip.dst", "ip.checksum"),  # 127.0.0.2 -> 127.0.0.1
    "udp.src_port",  # the socket's own port 4791, the bridge writes 0x3000
    "icrc",  # covers the addresses and the port
}
"""All that may differ between a frame of ours and one of the bridge for the same payload."""


def recorded(name: str) -> list[bytes]:
    lines = (DATA / name).read_text().splitlines()
    return [bytes.fromhex(line.split()[-1]) for line in lines if line.startswith("DATA ")]


def packets_of(name: str) -> list[Packet]:
    frames = [parse_frame(raw) for raw in recorded(name)]
    assert all(frame.icrc_ok for frame in frames)
    return [frame.packet for frame in frames]


@pytest.mark.parametrize(("name", "ring"), FILES)
def test_every_recorded_frame_is_read_into_its_window(name: str, ring: WindowRing) -> None:
    reader, found = WindowReader(ring), []
    for packet in packets_of(name):
        window = reader.packet(packet)
        found += [window] if window is not None else []
    assert [(w.slot, len(w.data), w.faults) for w in found] == [
        (slot, ring.window_bytes, ()) for slot in range(3)
    ]
    assert reader.counts == {"packets": 6 if ring.metadata else 3, "windows": 3}
    stamps_ns = [rpc.ptp_to_ns(int.from_bytes(w.data[16:24], "little")) for w in found]
    assert stamps_ns == [99_960, *((101_960, 103_970) if ring.metadata else (101_980, 104_010))]
    if not ring.metadata:
        return
    requests = [rpc.parse_request(w.data, "nvidia") for w in found]
    assert all(isinstance(r, rpc.EnqueueSyndromes) for r in requests)
    assert [(r.request_id, r.counter, r.bits) for r in requests] == [  # type: ignore[union-attr]
        (i, i, bytes([0xA0 + i])) for i in range(3)
    ]
    metadata = [w.metadata for w in found if w.metadata is not None]
    assert [(m.flags, m.psn, m.frame_number, m.valid_bytes) for m in metadata] == [
        (0, 2 * i + 1, i, 64) for i in range(3)
    ]
    assert [m.window_crc for m in metadata] == [0x5BF08467, 0x44636932, 0x9F4FA412]
    first_ns = [m.first_data_ns for m in metadata]
    assert first_ns == [stamp - 10 for stamp in stamps_ns]  # one PTP tick earlier
    assert (first_ns[0], metadata[0].created_ns) == (99_950, 100_110)


@pytest.mark.parametrize(("name", "ring"), FILES)
def test_windows_built_from_their_content_are_the_recorded_frames(
    name: str, ring: WindowRing
) -> None:
    """Byte for byte, on the bridge's own path."""
    flow = Flow(BRIDGE, HOST, "192.168.0.2", "192.168.0.101")
    reader, made, psn = WindowReader(ring), [], 0
    for packet in packets_of(name):
        window = reader.packet(packet)
        if window is None:
            continue
        meta = window.metadata
        stamp = Stamp(meta.frame_number, meta.first_data_ns, meta.created_ns) if meta else None
        made += [flow.frame(p) for p in window_packets(ring, window.data, window.slot, psn, stamp)]
        psn = window.psn + 1
    assert made == recorded(name)


@pytest.mark.parametrize(("name", "ring"), FILES)
def test_our_receiver_and_node_take_the_recorded_frames(name: str, ring: WindowRing) -> None:
    """With metadata on as well: they land behind the window, in the same slot."""
    slots = Slots(ring.rkey, ring.base_va)
    memory = slots.register(ring.n_slots, ring.stride)
    memory[:] = b"\xee" * len(memory)
    receiver, path = Receiver(ring.qp, 0, slots), Flow(BRIDGE, HOST, "192.168.0.2", "192.168.0.101")
    done = [
        receiver.accept(memoryview(bytearray(raw[42:])), path.path, 0) for raw in recorded(name)
    ]
    whole = [completion for completion in done if completion is not None]
    length = 256 if ring.metadata else ring.window_bytes
    assert [(c.slot, c.length, c.arrival) for c in whole] == [
        (slot, length, Arrival.IN_ORDER) for slot in range(3)
    ]
    assert receiver.audit.gaps == 0
    if not ring.metadata:
        return
    for completion in whole:
        slot = bytes(memory[completion.slot * ring.stride :][: ring.stride])
        assert slot[64:128] == bytes(64), "what lies between is not of an earlier message"
        assert Metadata.unpack(slot[128:256]).frame_number == completion.slot
    node = Session(
        NodeConfig.create(
            rack_address="127.0.0.2",
            node_address="127.0.0.1",
            ring_slots=ring.n_slots,
            block_detectors=(tuple(range(8)), tuple(range(8, 16)), tuple(range(16, 24))),
            n_observables=1,
            envelope="nvidia",
            start="open",
            dem_text="not read here",
            primary="pymatching",
            mode="measure",
            deadline_ps=1,
        )
    )
    started: list[bytes] = []
    for completion in whole:
        data = memory[completion.slot * ring.stride :][: completion.length]
        actions = node.message(data, completion.slot, 0, 0)
        replies = [a.data for a in actions if isinstance(a, Reply)]
        assert [rpc.parse_response(data, "nvidia").status for data in replies] == [0]
        started += [a.detectors_b8 for a in actions if isinstance(a, Start)]
    assert started == [b"\xa0\xa1\xa2"], "the bits of the three requests"


def flat(frame: bytes) -> dict[str, object]:
    """Every field of a frame by name."""
    found = parse_frame(frame)
    fields: dict[str, object] = {}
    for layer in ("ethernet", "ip", "udp", "packet"):
        header = getattr(found, layer)
        items = asdict(header) if is_dataclass(header) else header._asdict()
        for key, value in items.items():
            nested = value._asdict() if hasattr(value, "_asdict") else {"": value}
            fields |= {f"{layer}.{key}.{part}".rstrip("."): v for part, v in nested.items()}
    return fields | {"icrc": found.icrc}


@pytest.mark.parametrize("how", ["one by one", "prepared", "windows"])
def test_frames_of_our_endpoint_differ_in_declared_fields_only(how: str) -> None:
    """The 512-byte windows as our rack sends them, against the bridge's own frames."""
    theirs = recorded("hsb_window512_nometa.txt")
    payloads = [packet.payload for packet in packets_of("hsb_window512_nometa.txt")]
    sent: list[bytes] = []

    def note(datagram: bytes) -> list[bytes]:
        sent.append(datagram)
        return []

    rack, node = virtual_pair(qps=(0x41, 0x1234), rkeys=(0x1F01, 0xABCD))
    node.register(4, 1024)
    rack.connect(node.address())
    rack.intercept(note)
    if how == "prepared":
        rows = np.frombuffer(b"".join(payloads), np.uint8).reshape(3, 512)
        prepared = rack.prepare(rows, np.arange(3))
        for i in range(3):
            rack.post(prepared, i)
    else:
        for slot, payload in enumerate(payloads):
            rack.post_write_imm(payload, slot)
    if how == "windows":
        flow = Flow(bytes(6), bytes(6), "127.0.0.2", "127.0.0.1", 4791, 4791)
        made = [window_packets(WITHOUT, w, slot, slot) for slot, w in enumerate(payloads)]
        assert [flow.frame(p)[42:] for packets in made for p in packets] == sent
    head = Flow(bytes(6), bytes(6), "127.0.0.2", "127.0.0.1", 4791, 4791).header(len(sent[0]))
    for mine, other in zip(sent, theirs, strict=True):
        ours, bridge = flat(head + mine), flat(other)
        assert ours.keys() == bridge.keys()
        differing = {key for key in ours if ours[key] != bridge[key]}
        assert differing == DECLARED


def test_metadata_frames_in_words() -> None:
    frames = [decode(raw) for raw in recorded("hsb_window64_meta.txt")]
    assert [fields["drop"] for fields in frames] == [None] * 6
    assert [("metadata" in fields, "rpc" in fields) for fields in frames[:2]] == [
        *((False, True), (True, False)),
    ]
    assert frames[1]["metadata"] == {
        **{"flags": 0, "psn": 1, "window_crc": 0x5BF08467, "first_data_ns": 99_950},
        **{"valid_bytes": 64, "frame_number": 0, "created_ns": 100_110},
    }
