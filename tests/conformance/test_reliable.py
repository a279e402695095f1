"""What every link endpoint must do on a reliable connection, whatever happens to its datagrams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from test_endpoint import PAIRS, PSN_START, SLOTS, STRIDE, Pair, joined

from hil.errors import LinkError
from hil.link.endpoint import Completion, Endpoint
from hil.link.rc_requester import RcAttributes
from hil.link.sequence import Arrival
from hil.link.virtual import virtual_pair
from hil.timebase import PS_PER_S, monotonic_ps
from hil.wire.roce import Bth, Opcode, Packet, Target, write_only_imm
from hil.wire.segments import acknowledgement, send_packets, write_packets

NODE = Target(0x42, 0x1F02, 0x1000_0000, STRIDE)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from joined(request.param, "rc")


def inner(endpoint: Endpoint) -> Endpoint:
    return getattr(endpoint, "inner", endpoint)


def settle(pair: Pair, wanted: int, seconds: float = 5.0) -> list[Completion]:
    """Poll both ends until the node has so many completions and the rack every ACK."""
    found: list[Completion] = []
    end = time.monotonic() + seconds
    while len(found) < wanted or pair.rack.next_timer_ps() is not None:
        assert time.monotonic() < end, (len(found), pair.rack.counters(), pair.node.counters())
        found += pair.node.poll(16)
        assert pair.rack.poll(16) == []
    return found


@dataclass
class Stage:
    """Spoils chosen datagrams by their number, the first of each way of sending being 0."""

    lose: frozenset[int] = frozenset()
    repeat: frozenset[int] = frozenset()
    flip: frozenset[int] = frozenset()
    hold: frozenset[int] = frozenset()
    seen: int = 0
    held: list[bytes] = field(default_factory=list)

    def __call__(self, datagram: bytes) -> list[bytes]:
        number, self.seen = self.seen, self.seen + 1
        if number in self.lose:
            return []
        if number in self.hold:
            self.held.append(datagram)
            return []
        if number in self.flip:
            datagram = datagram[:11] + bytes([datagram[11] ^ 4]) + datagram[12:]
        out = [datagram] * (2 if number in self.repeat else 1) + self.held
        self.held = []
        return out


SOME = frozenset({0, 3, 4, 9, 11})


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (Stage(lose=SOME), None),
        (Stage(lose=frozenset({11})), None),
        (Stage(flip=SOME), None),
        (Stage(repeat=SOME), None),
        (Stage(hold=frozenset({2, 5, 6})), None),
        (None, Stage(lose=frozenset({0, 1}))),
        (None, Stage(flip=frozenset({0}), repeat=frozenset({1}))),
        (Stage(lose=SOME, repeat=frozenset({5})), Stage(lose=frozenset({1, 3}))),
    ],
    ids=["loss", "tail loss", "corruption", "copies", "reordering", "lost ACKs", "bad ACK", "all"],
)
def test_every_message_arrives_once_and_in_order(
    pair: Pair, up: Stage | None, down: Stage | None
) -> None:
    fresh = [None if s is None else Stage(s.lose, s.repeat, s.flip, s.hold) for s in (up, down)]
    inner(pair.rack).intercept(fresh[0])
    inner(pair.node).intercept(fresh[1])
    for k in range(12):
        pair.rack.post_write_imm(bytes([k]) * (k + 1), k % SLOTS)
        if k == 5:
            settled = settle(pair, 6)
            for done in settled:
                pair.node.release(done.slot)
    settled += settle(pair, 6)
    assert [(d.slot, d.length, d.arrival, d.busy) for d in settled] == [
        (k % SLOTS, k + 1, Arrival.IN_ORDER, False) for k in range(12)
    ]
    assert [d.psn for d in settled] == [(PSN_START + k) % 2**24 for k in range(12)]
    rack, node = pair.rack.counters(), pair.node.counters()
    assert (rack["tx"], node["rx_ok"]) == (12, 12)
    assert not pair.rack.error
    assert not pair.node.error
    assert rack["retransmit"] == 0 or rack["rx_nak"] + rack["timeouts"] > 0
    assert node["rx_duplicate"] > 0 or node["rx_ahead"] > 0 or rack["timeouts"] > 0


def test_an_owned_slot_makes_the_sender_wait_and_nothing_is_lost(pair: Pair) -> None:
    for k in range(3):
        pair.rack.post_write_imm(bytes([k]) * 8, 5)
    found: list[Completion] = []
    end = time.monotonic() + 5
    while len(found) < 3 and time.monotonic() < end:
        for done in pair.node.poll(16):
            assert bytes(pair.memory[5 * STRIDE :][:8]) == bytes([len(found)]) * 8
            found.append(done)
            for _ in range(50):  # the application takes its time; the peer asks again
                pair.rack.poll(16)
                assert pair.node.poll(16) == []
            pair.node.release(5)
        pair.rack.poll(16)
    assert [done.slot for done in found] == [5, 5, 5]
    rack, node = pair.rack.counters(), pair.node.counters()
    assert node["tx_rnr"] == rack["rx_rnr"] > 0
    assert (node["rx_ok"], node["rx_busy"], rack["timeouts"]) == (3, 0, 0)


def test_sends_wait_for_their_slot_too(pair: Pair) -> None:
    for k in range(6):
        pair.node.post_send(bytes([k]) * 4)
    found: list[int] = []
    end = time.monotonic() + 5
    while len(found) < 6 and time.monotonic() < end:
        for done in pair.rack.poll(16):
            found.append(pair.answers[128 * done.slot])
            pair.rack.release(done.slot)
        pair.node.poll(16)
    assert found == list(range(6))


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 4096, 5000])
def test_long_messages_go_in_several_packets(size: int) -> None:
    rack, node = virtual_pair(transport="rc")
    memory = node.register(2, 5000)
    rack.register(2, 5000)
    rack.connect(node.address())
    node.connect(rack.address())
    payload = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    rack.post_write(payload[::-1], 1)
    rack.post_write_imm(payload, 1)
    node.post_send(payload)
    (done,) = node.poll(16)
    assert (done.slot, done.length, done.header) == (1, size, payload[:24])
    assert bytes(memory[node.address().stride :][:size]) == payload
    (answer,) = rack.poll(16)
    assert (answer.slot, answer.length, answer.imm) == (0, size, 0)
    assert rack.counters()["tx"] == 2 * max(1, -(-size // 1024))
    with pytest.raises(LinkError, match="does not fit"):
        rack.post_write_imm(bytes(node.address().stride + 1), 0)
    rows = np.zeros((1, 1028), np.uint8)
    with pytest.raises(LinkError, match="does not fit"):
        rack.prepare(rows, np.array([0]))


def test_a_timer_runs_while_something_is_unacknowledged(pair: Pair) -> None:
    assert pair.rack.next_timer_ps() is None
    before_ps = monotonic_ps()
    pair.rack.post_write_imm(b"x", 0)
    timer_ps = pair.rack.next_timer_ps()
    assert timer_ps is not None
    assert before_ps < timer_ps < before_ps + PS_PER_S
    settle(pair, 1)
    assert pair.rack.next_timer_ps() is None


def test_a_full_send_queue_refuses_and_counts() -> None:
    rules = RcAttributes(queue_packets=4, window_packets=2)
    rack, node = virtual_pair(transport="rc", attributes=rules)
    node.register(8, 128)
    rack.register(1, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    for slot in range(7):
        rack.post_write_imm(bytes([slot]), slot)
    assert rack.counters()["tx_refused"] == 3
    assert (rack.counters()["tx"], rack.error) == (2, "")
    slots = []
    for _ in range(6):
        slots += [done.slot for done in node.poll(16)]
        rack.poll(16)
    assert slots == [0, 1, 2, 3]
    rack.post_write_imm(b"x", 7)
    assert [done.slot for done in node.poll(16)] == [7]


def test_a_peer_that_is_gone_ends_in_error() -> None:
    rules = RcAttributes(timeout=4, retry_cnt=3)
    rack, node = virtual_pair(transport="rc", attributes=rules)
    node.register(1, 128)
    rack.register(1, 128)
    rack.connect(node.address())
    node.close()
    rack.post_write_imm(b"x", 0)
    end = time.monotonic() + 5
    while not rack.error and time.monotonic() < end:
        rack.poll(16)
    assert "does not acknowledge" in rack.error
    counters = rack.counters()
    assert (counters["timeouts"], counters["retransmit"]) == (4, 3)
    rack.post_write_imm(b"x", 0)
    assert rack.counters()["tx_refused"] == 1
    assert rack.next_timer_ps() is None


# -- datagrams that are not for us, and requests that are refused ---------------------------------


def write(psn: int, slot: int = 1) -> Packet:
    (packet,) = write_packets(NODE, psn, slot, b"payload.", 1024, with_imm=True)
    return packet


def changed(psn: int, **header: int) -> bytes:
    packet = write(psn)
    return Bth(**(packet.bth._asdict() | header)).pack() + packet.pack()[12:]


SILENT: list[tuple[str, str, Callable[[int], bytes]]] = [
    ("drop_opcode", "UC write", lambda p: write_only_imm(NODE, p, 1, b"payload.").pack()),
    ("drop_opcode", "RDMA READ", lambda p: changed(p, opcode=0x0C)),
    ("drop_opcode", "version", lambda p: changed(p, version=1)),
    ("drop_pkey", "partition", lambda p: changed(p, pkey=0x7FFF)),
    ("drop_qp", "queue pair", lambda p: changed(p, dest_qp=0x43)),
    ("drop_length", "cut inside the RETH", lambda p: changed(p)[:20]),
    ("drop_length", "not a multiple of 4", lambda p: changed(p) + b"\0"),
    ("drop_length", "long ACK", lambda p: acknowledgement(0x42, p, 0x1F, 1).pack() + bytes(4)),
    ("drop_length", "short ACK", lambda p: Bth(Opcode.RC_ACKNOWLEDGE, 0x42, p).pack()),
    ("drop_opcode", "reserved syndrome", lambda p: acknowledgement(0x42, p, 0x40, 1).pack()),
]


@pytest.mark.parametrize(("cause", "what", "make"), SILENT, ids=[f"{c}: {w}" for c, w, _ in SILENT])
def test_what_is_not_for_us_is_dropped_in_silence_and_changes_nothing(
    pair: Pair, cause: str, what: str, make: Callable[[int], bytes]
) -> None:
    datagram = bytearray(make(PSN_START) + bytes(4))
    pair.rack.seal(datagram)
    pair.rack.transmit(bytes(datagram))
    counters = pair.settled(pair.node, cause, 1)
    assert {k: v for k, v in counters.items() if v} == {cause: 1}, what
    assert not any(pair.memory)
    pair.rack.post_write_imm(b"after", 1)
    assert [done.slot for done in settle(pair, 1)] == [1]


FATAL: list[tuple[str, int, Callable[[int], Packet]]] = [
    ("drop_rkey", 0x62, lambda p: _with_reth(write(p), rkey=1)),
    ("drop_bounds", 0x62, lambda p: _with_reth(write(p), va=NODE.base_va + 8 * STRIDE)),
    ("drop_bounds", 0x62, lambda p: _with_reth(write(p), va=NODE.base_va + 4)),
    ("drop_length", 0x61, lambda p: _with_reth(write(p), length=9)),
    ("drop_length", 0x61, lambda p: send_packets(0x42, p, bytes(1000), 1024)[0]),
    ("drop_opcode", 0x61, lambda p: send_packets(0x42, p - 1, bytes(1028), 1024)[1]),
]


def _with_reth(packet: Packet, **fields: int) -> Packet:
    assert packet.reth is not None
    return Packet(packet.bth, packet.reth._replace(**fields), None, packet.imm, packet.payload)


@pytest.mark.parametrize(("cause", "syndrome", "make"), FATAL)
def test_a_wrong_request_kills_the_pair_on_both_ends(
    pair: Pair, cause: str, syndrome: int, make: Callable[[int], Packet]
) -> None:
    """The rack's own packet is replaced by a wrong one, so that its requester sees the NAK."""

    def replace(datagram: bytes) -> list[bytes]:
        wrong = bytearray(make(PSN_START).pack() + bytes(4))
        wrong[8] |= datagram[8] & 0x80
        pair.rack.seal(wrong)
        return [bytes(wrong)]

    inner(pair.rack).intercept(replace)
    pair.rack.post_write_imm(b"payload.", 1)
    inner(pair.rack).intercept(None)
    end = time.monotonic() + 5
    while not pair.rack.error and time.monotonic() < end:
        assert pair.node.poll(16) == []
        assert pair.rack.poll(16) == []
    assert f"0x{syndrome:02x}" in pair.rack.error
    assert cause in pair.node.error
    assert (pair.node.counters()[cause], pair.node.counters()["tx_nak"]) == (1, 1)
    assert not any(pair.memory)
    for endpoint in (pair.rack, pair.node):
        endpoint.post_send(b"x")
        assert endpoint.counters()["tx_refused"] == 1
        assert endpoint.next_timer_ps() is None
    datagram = bytearray(write(PSN_START).pack() + bytes(4))
    pair.rack.seal(datagram)
    pair.rack.transmit(bytes(datagram))
    assert pair.settled(pair.node, "drop_qp", 1)["drop_qp"] == 1
    assert not any(pair.memory)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(LinkError, match="mtu_bytes"):
        virtual_pair(transport="rc", mtu_bytes=255)
    with pytest.raises(LinkError, match="path_mtu"):
        virtual_pair(transport="rc", mtu_bytes=1023, attributes=RcAttributes(path_mtu=1024))
