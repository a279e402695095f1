"""Whole frames: ARP, what is refused and how it is counted, foreign ICRCs, an interface."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.errors import LinkError, WireError
from hil.link.endpoint import PeerAddress
from hil.link.frame_wires import PacketFrames, UnixFrames, unix_wires
from hil.link.frames_endpoint import UNRESOLVED_DEPTH, FramesEndpoint
from hil.timebase import PS_PER_S, monotonic_ps
from hil.wire.arp import REPLY, REQUEST, Arp, parse_arp
from hil.wire.ethernet import Ethernet, ipv4_checksum
from hil.wire.icrc import FrameIcrc, IcrcPath
from hil.wire.pcap import read_capture
from hil.wire.roce import Flow, Target, write_only_imm

DATA = Path(__file__).parents[1] / "data"
MAC, PEER_MAC = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
HOST, PEER = "192.0.2.1", "192.0.2.2"
GUEST_MAC = bytes.fromhex("525400123456")


class Cable:
    """An endpoint, and the other end of its wire in the hands of the test."""

    def __init__(self, **more: object) -> None:
        self.far, near = unix_wires()
        self.end = FramesEndpoint(near, MAC, HOST, qp=0x42, rkey=0x1F02, **more)
        self.memory = self.end.register(4, 128)

    def connect(self) -> None:
        self.end.connect(PeerAddress(PEER, 4791, 0x41, 0, 1, 0, 128, 4))

    def close(self) -> None:
        self.end.close()
        self.far.close()

    def sent(self) -> list[bytes]:
        frames = []
        while (frame := self.far.receive()) is not None:
            frames.append(bytes(frame))
        return frames


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable(peer_mac=PEER_MAC)
    cable.connect()
    yield cable
    cable.close()
    cable.close()


def good(psn: int = 0, slot: int = 1) -> bytearray:
    packet = write_only_imm(Target(0x42, 0x1F02, 0x1000_0000, 128), psn, slot, b"payload.")
    return bytearray(Flow(PEER_MAC, MAC, PEER, HOST, 4791, 4791).frame(packet))


def test_an_arp_message_has_the_bytes_of_the_standard() -> None:
    asked = Arp(REQUEST, MAC, HOST, bytes(6), PEER)
    text = "ffffffffffff02000000000a0806" + "0001080006040001" + "02000000000ac0000201"
    assert asked.frame().hex() == text + "000000000000c0000202"
    assert parse_arp(asked.frame() + bytes(18)) == asked
    answer = asked.reply(PEER_MAC)
    assert answer == Arp(REPLY, PEER_MAC, PEER, MAC, HOST)
    assert parse_arp(answer.frame()) == answer
    for bad in (
        asked.frame()[:41],
        asked.frame()[:21] + b"\x09" + asked.frame()[22:],
        bytes(60),
    ):
        with pytest.raises(WireError, match="ARP"):
            parse_arp(bad)


def test_the_peer_is_asked_for_and_what_waits_goes_when_it_answers() -> None:
    cable = Cable()
    cable.connect()
    (asked,) = map(parse_arp, cable.sent())
    assert asked == Arp(REQUEST, MAC, HOST, bytes(6), PEER)
    for i in range(UNRESOLVED_DEPTH + 3):
        cable.end.post_send(bytes([i]))
    assert cable.sent() == []
    stranger = Arp(REPLY, PEER_MAC, "192.0.2.77", MAC, HOST)
    group = Arp(REPLY, b"\x01" + PEER_MAC[1:], PEER, MAC, HOST)
    for message in (stranger, group, asked.reply(PEER_MAC), asked.reply(b"\x02" + bytes(5))):
        cable.far.send(message.frame())
        assert cable.end.poll(1) == []
    frames = cable.sent()
    assert len(frames) == UNRESOLVED_DEPTH
    assert all(frame[:12] == PEER_MAC + MAC for frame in frames)
    assert [frame[54] for frame in frames] == list(range(UNRESOLVED_DEPTH))
    counters = cable.end.counters()
    assert (counters["tx_unresolved"], counters["arp_asked"]) == (3, 1)
    assert cable.end.next_timer_ps() is None
    cable.close()


def test_an_unanswered_request_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    cable = Cable()
    cable.connect()
    timer_ps = cable.end.next_timer_ps()
    assert timer_ps is not None
    cable.sent()
    cable.end.poll(1)
    assert cable.sent() == []
    monkeypatch.setattr("hil.link.frames_endpoint.monotonic_ps", lambda: timer_ps)
    cable.end.poll(1)
    assert len(cable.sent()) == 1
    cable.close()


def test_a_request_for_our_address_is_answered_and_no_other(cable: Cable) -> None:
    for target in (HOST, "192.0.2.9"):
        cable.far.send(Arp(REQUEST, PEER_MAC, PEER, bytes(6), target).frame() + bytes(18))
    cable.end.poll(1)
    (answer,) = cable.sent()
    assert parse_arp(answer) == Arp(REPLY, MAC, HOST, PEER_MAC, PEER)
    assert cable.end.counters()["arp_answered"] == 1


def _set(at: int, form: str, value: int) -> Callable[[bytearray], bytes]:
    def change(frame: bytearray) -> bytes:
        struct.pack_into(form, frame, at, value)
        if 14 <= at < 34 and at != 24:
            struct.pack_into("!H", frame, 24, 0)
            struct.pack_into("!H", frame, 24, ipv4_checksum(bytes(frame[14:34])))
        return bytes(frame)

    return change


def _tagged(frame: bytearray) -> bytes:
    return bytes(frame[:12]) + bytes.fromhex("8100002a") + bytes(frame[12:])


def _with_options(frame: bytearray) -> bytes:
    total = int.from_bytes(frame[16:18], "big") + 4
    head = bytearray(frame[14:34]) + bytes.fromhex("01010101")
    head[0] = 0x46
    struct.pack_into("!HHHBBH", head, 2, total, 0, 0x4000, 64, 17, 0)
    struct.pack_into("!H", head, 10, ipv4_checksum(bytes(head)))
    return bytes(frame[:14]) + bytes(head) + bytes(frame[34:])


REFUSED: list[tuple[str, str, Callable[[bytearray], bytes]]] = [
    ("drop_vlan", "802.1Q tag", _tagged),
    ("other_ethertype", "IPv6", _set(12, "!H", 0x86DD)),
    ("other_ethertype", "no header", lambda f: bytes(f[:9])),
    ("other_ethertype", "ARP, cut", lambda f: bytes(f[:12]) + b"\x08\x06" + bytes(20)),
    ("other_mac", "another card", _set(5, "!B", 0x0C)),
    ("drop_ip", "cut", lambda f: bytes(f[:40])),
    ("drop_ip", "version", _set(14, "!B", 0x65)),
    ("drop_ip", "checksum", _set(24, "!H", 0x1234)),
    ("drop_ip", "longer than the frame", _set(16, "!H", 300)),
    ("drop_ip", "shorter than its headers", _set(16, "!H", 27)),
    ("drop_options", "router alert", _with_options),
    ("drop_fragment", "more fragments", _set(20, "!H", 0x2000)),
    ("drop_fragment", "not the first", _set(20, "!H", 0x0001)),
    ("drop_peer", "another sender", _set(29, "!B", 3)),
    ("drop_peer", "another receiver", _set(33, "!B", 9)),
    ("drop_udp", "TCP", _set(23, "!B", 6)),
    ("drop_udp", "port", _set(36, "!H", 4790)),
    ("drop_udp", "length", _set(38, "!H", 9)),
    ("drop_icrc", "identification rewritten on the way", _set(18, "!H", 7)),
    ("drop_icrc", "DF taken off on the way", _set(20, "!H", 0)),
]


@pytest.mark.parametrize(
    ("cause", "what", "change"), REFUSED, ids=[f"{c}: {w}" for c, w, _ in REFUSED]
)
def test_a_frame_that_is_not_for_us_is_counted_by_cause(
    cable: Cable, cause: str, what: str, change: Callable[[bytearray], bytes]
) -> None:
    cable.far.send(change(good()))
    assert cable.end.poll(4) == []
    assert {k: v for k, v in cable.end.counters().items() if v} == {cause: 1}, what
    assert not any(cable.memory)


@pytest.mark.parametrize(
    "change",
    [
        bytes,
        lambda f: bytes(f) + bytes(20),  # padding behind the packet
        _set(15, "!B", 0x03),  # TOS and TTL may change on the way
        _set(22, "!B", 1),
        _set(40, "!H", 0xBEEF),  # UDP checksum
    ],
)
def test_what_may_change_on_the_way_does_no_harm(
    cable: Cable, change: Callable[[bytearray], bytes]
) -> None:
    cable.far.send(change(good()))
    (done,) = cable.end.poll(4)
    assert (done.slot, bytes(cable.memory[128:136])) == (1, b"payload.")


def test_a_flood_of_foreign_frames_delays_but_never_holds_a_poll(cable: Cable) -> None:
    """In portions: the pair of sockets holds some hundred frames."""
    for _ in range(11):
        for _ in range(100):
            cable.far.send(_tagged(good()))
        assert cable.end.poll(1) == []
    cable.far.send(good())
    assert len(cable.end.poll(1)) == 1
    assert cable.end.counters()["drop_vlan"] == 1100


# -- frames that Linux rdma_rxe really sent ------------------------------------------------------


def test_uc_writes_of_rxe_are_taken_with_their_own_identification_and_port() -> None:
    """Group J of the recorded frames: three UC writes; ICRC over ident 0 would be wrong."""
    recorded = [f.data for f in read_capture(DATA / "rxe" / "rxe.pcap")][45:48]
    known = json.loads((DATA / "rxe" / "frames.json").read_text())[45:48]
    shown: list[bytes] = []
    far, near = unix_wires()
    mac = recorded[0][:6]
    usual = IcrcPath(PEER, HOST, 4791, 4791)
    end = FramesEndpoint(
        near, mac, HOST, qp=0x32, psn_start=0x1000, peer_mac=GUEST_MAC,
        tap=lambda sent, t_ps, datagram: shown.append(bytes(datagram)),
    )  # fmt: skip
    end.register(4, 64)
    end.connect(PeerAddress(PEER, 4791, 0x16, 0, 1, 0, 128, 4))
    for frame in recorded:
        far.send(frame)
    end.poll(4)
    counters = end.counters()
    assert counters["drop_icrc"] == 0
    assert counters["drop_rkey"] + counters["drop_bounds"] == 3  # that memory is not ours
    assert [d[-4:].hex() for d in shown] == [entry["icrc"] for entry in known]
    for frame, datagram in zip(recorded, shown, strict=True):
        assert FrameIcrc(frame[14:42]).check(bytearray(datagram))
        assert not usual.check(bytearray(datagram))
    end.close()
    far.close()


# -- wires ---------------------------------------------------------------------------------------


def test_a_group_address_is_no_card() -> None:
    wires = unix_wires()
    for mac in (b"", b"\x01" + bytes(5), bytes(7)):
        with pytest.raises(LinkError, match="does not name one network card"):
            FramesEndpoint(wires[0], mac, HOST)
    for wire in wires:
        wire.close()


def test_only_a_datagram_pair_carries_frames() -> None:
    first, second = socket.socketpair()
    with first, second, pytest.raises(LinkError, match="AF_UNIX datagram"):
        UnixFrames(first)


def test_what_finds_the_queue_full_is_lost_and_counted_and_nobody_waits(cable: Cable) -> None:
    before = monotonic_ps()
    for _ in range(20_000):
        cable.end.post_send(b"x")
    assert monotonic_ps() - before < 10 * PS_PER_S
    lost = cable.end.counters()["buffer_overflow"]
    assert lost > 0
    assert len(cable.sent()) == 20_000 - lost
    cable.far.close()
    with pytest.raises(LinkError, match="not sent"):
        cable.end.post_send(b"x")


def test_a_closed_endpoint_says_so(cable: Cable) -> None:
    cable.end.close()
    with pytest.raises(LinkError, match="closed"):
        cable.end.poll(1)


@pytest.mark.needs("net_raw")
def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(LinkError, match="cannot be used") as caught:
        PacketFrames("no-such-port")
    assert "no-such-port" in caught.value.where


VETH = Path(__file__).with_name("veth_child.py")


@pytest.mark.needs("veth")
def test_frames_cross_a_pair_of_interfaces_in_a_namespace_of_their_own() -> None:
    command = [sys.executable, str(VETH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "slots": [0, 1, 2, 3, 4, 5, 6, 7],
        "answers": 8,
        "vlan": 1,
        "asked": 1,
        "answered": 1,
        "own": 0,
    }


def test_time_of_arrival_is_that_of_the_frame(cable: Cable) -> None:
    before = monotonic_ps()
    cable.far.send(good())
    (done,) = cable.end.poll(1)
    assert before <= done.t_rx_ps <= monotonic_ps()
    assert Ethernet(MAC, PEER_MAC).pack() == bytes(good()[:14])
