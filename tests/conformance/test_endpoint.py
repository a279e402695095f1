"""What every link endpoint must do, run over all implementations."""

from __future__ import annotations

import functools
import operator
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest

from hil.errors import LinkError
from hil.link.endpoint import Completion, Endpoint, PeerAddress, Transport
from hil.link.faults import FaultPlan, Faulty
from hil.link.frame_wires import unix_wires
from hil.link.frames_endpoint import FramesEndpoint
from hil.link.packets import COUNTERS
from hil.link.sequence import Arrival
from hil.link.soft_roce import SoftRoceEndpoint
from hil.link.virtual import DEPTH, virtual_pair
from hil.timebase import monotonic_ps
from hil.wire.roce import Bth, Opcode, Target, payload_limit, send_only, write_only, write_only_imm

PSN_START = 2**24 - 3
SLOTS, STRIDE = 8, 256


def loopback(last: int) -> str:
    """An address of this process alone, so that parallel test processes do not collide."""
    number = os.getpid() * 4 + last
    return f"127.{11 + (number >> 16) % 200}.{number >> 8 & 255}.{number & 255}"


def soft_pair(transport: Transport = "uc") -> tuple[Endpoint, Endpoint]:
    first = SoftRoceEndpoint(loopback(0), qp=0x41, rkey=0x1F01, transport=transport)
    second = SoftRoceEndpoint(
        loopback(1), qp=0x42, rkey=0x1F02, psn_start=PSN_START, transport=transport
    )
    return first, second


def memory_pair(transport: Transport = "uc") -> tuple[Endpoint, Endpoint]:
    return virtual_pair(psn_starts=(0, PSN_START), transport=transport)


def faulty_pair(transport: Transport = "uc") -> tuple[Endpoint, Endpoint]:
    first, second = memory_pair(transport)
    return Faulty(first, FaultPlan()), Faulty(second, FaultPlan())


MACS = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000bb")


def frames_pair(transport: Transport = "uc") -> tuple[Endpoint, Endpoint]:
    wires, mac = unix_wires(), MACS
    first = FramesEndpoint(
        *(wires[0], mac[0], "10.9.0.1"),
        **{"qp": 0x41, "rkey": 0x1F01, "peer_mac": mac[1], "transport": transport},
    )
    second = FramesEndpoint(
        *(wires[1], mac[1], "10.9.0.2"),
        **{"qp": 0x42, "rkey": 0x1F02, "peer_mac": mac[0], "transport": transport},
        psn_start=PSN_START,
    )
    return first, second


PAIRS: dict[str, Callable[[Transport], tuple[Endpoint, Endpoint]]] = {
    "virtual": memory_pair,
    "soft_roce": soft_pair,
    "faulty": faulty_pair,
    "frames": frames_pair,
}
"""Factories of (rack, node), memory and peer still missing: all tests run over each, those of a
``pair`` on both transports, those of a ``uc_pair`` or ``rc_pair`` on that one."""


@dataclass
class Pair:
    """``rack`` writes into ``node``; both are connected."""

    rack: Endpoint
    node: Endpoint
    memory: memoryview
    answers: memoryview

    def drain(self, endpoint: Endpoint, wanted: int, seconds: float = 5.0) -> list[Completion]:
        """Poll until so many completions are there and nothing more follows."""
        found: list[Completion] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            more = endpoint.poll(16)
            found += more
            if not more and len(found) >= wanted:
                return found
        raise AssertionError(f"{len(found)} of {wanted} completions, {endpoint.counters()}")

    def settled(self, endpoint: Endpoint, name: str, value: int) -> dict[str, int]:
        """Poll until a counter has its value; nothing may complete meanwhile."""
        end = time.monotonic() + 5.0
        while endpoint.counters()[name] != value and time.monotonic() < end:
            assert endpoint.poll(16) == []
        return endpoint.counters()


def joined(name: str, transport: Transport) -> Iterator[Pair]:
    rack, node = PAIRS[name](transport)
    memory, answers = node.register(SLOTS, STRIDE), rack.register(4, 100)
    rack.connect(node.address())
    node.connect(PeerAddress(**asdict(rack.address())))
    yield Pair(rack, node, memory, answers)
    rack.close()
    node.close()
    node.close()


BOTH: tuple[Transport, ...] = ("uc", "rc")


@pytest.fixture(params=[(name, transport) for name in PAIRS for transport in BOTH], ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from joined(*request.param)


@pytest.fixture(params=PAIRS)
def uc_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from joined(request.param, "uc")


@pytest.fixture(params=PAIRS)
def rc_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from joined(request.param, "rc")


def test_both_ends_are_endpoints_and_count_all_names(pair: Pair) -> None:
    for endpoint in (pair.rack, pair.node):
        assert isinstance(endpoint, Endpoint)
        counters = endpoint.counters()
        assert set(COUNTERS) <= set(counters)
        assert not any(counters.values())


def test_addresses_tell_what_a_sender_must_know(pair: Pair) -> None:
    node, rack = pair.node.address(), pair.rack.address()
    assert (node.qp, node.rkey, node.psn, node.stride, node.n_slots) == (
        *(0x42, 0x1F02, PSN_START, 256, SLOTS),
    )
    assert (rack.stride, rack.n_slots, len(pair.answers)) == (128, 4, 512)
    assert node.host != rack.host
    assert node.port == rack.port == 4791
    assert len(pair.memory) == SLOTS * STRIDE


def test_a_write_with_immediate_lands_in_its_slot_and_completes_once(pair: Pair) -> None:
    before = monotonic_ps()
    payload = bytes(range(61))  # not a multiple of 4: travels with a pad
    pair.rack.post_write_imm(payload, 5)
    (done,) = pair.drain(pair.node, 1)
    assert before <= done.t_rx_ps <= monotonic_ps()
    assert done == Completion(
        5,
        (PSN_START & 0xFFFFF) << 12 | 5,
        PSN_START,
        61,
        done.t_rx_ps,
        False,
        "write_imm",
        payload[:24],
        Arrival.IN_ORDER,
    )
    assert bytes(pair.memory[5 * STRIDE :][:61]) == payload
    assert not any(pair.memory[: 5 * STRIDE])
    assert not any(pair.memory[5 * STRIDE + 61 :])
    assert pair.node.poll(16) == []


def test_a_plain_write_is_silent_and_takes_no_slot(pair: Pair) -> None:
    pair.rack.post_write(b"\x11" * 32, 2)
    counters = pair.settled(pair.node, "rx_ok", 1)
    assert bytes(pair.memory[2 * STRIDE :][:32]) == b"\x11" * 32
    pair.rack.post_write_imm(b"\x22" * 8, 2)
    (done,) = pair.drain(pair.node, 1)
    assert not done.busy
    assert counters["rx_busy"] == 0


def test_sends_fill_slots_in_turn_and_carry_no_immediate(pair: Pair) -> None:
    for i in range(6):
        pair.node.post_send(bytes([i]) * 41)
        (done,) = pair.drain(pair.rack, 1)
        assert (done.slot, done.imm, done.kind, done.length) == (i % 4, 0, "send", 41)
        assert bytes(pair.answers[128 * done.slot :][:41]) == bytes([i]) * 41
        pair.rack.release(done.slot)


def test_an_owned_slot_is_never_written_and_says_busy(uc_pair: Pair) -> None:
    uc_pair.rack.post_write_imm(b"first...", 3)
    uc_pair.rack.post_write_imm(b"second, which is longer than 24 bytes", 3)
    uc_pair.rack.post_write(b"third...", 3)
    first, second = uc_pair.drain(uc_pair.node, 2)
    assert (first.busy, second.busy) == (False, True)
    assert second.header == b"second, which is longer "
    counters = uc_pair.settled(uc_pair.node, "rx_busy", 2)
    assert bytes(uc_pair.memory[3 * STRIDE :][:8]) == b"first..."
    assert (counters["rx_ok"], counters["psn_gap"]) == (1, 0)
    uc_pair.node.release(3)
    uc_pair.rack.post_write_imm(b"fourth..", 3)
    assert not uc_pair.drain(uc_pair.node, 1)[0].busy
    assert bytes(uc_pair.memory[3 * STRIDE :][:8]) == b"fourth.."


def test_a_send_that_finds_its_slot_owned_says_busy_and_keeps_its_turn(uc_pair: Pair) -> None:
    for i in range(6):
        uc_pair.node.post_send(bytes([i]) * 4)
    done = uc_pair.drain(uc_pair.rack, 6)
    assert [(d.slot, d.busy) for d in done] == [
        *((0, False), (1, False), (2, False), (3, False), (0, True), (0, True)),
    ]
    uc_pair.rack.release(0)
    uc_pair.node.post_send(b"\x09" * 4)
    assert [(d.slot, d.busy) for d in uc_pair.drain(uc_pair.rack, 1)] == [(0, False)]
    assert bytes(uc_pair.answers[:4]) == b"\x09" * 4


def test_slots_are_released_once_and_only_when_owned(pair: Pair) -> None:
    pair.rack.post_write_imm(b"x", 1)
    pair.drain(pair.node, 1)
    pair.node.release(1)
    for slot in (1, -1, SLOTS):
        with pytest.raises(LinkError, match="not owned"):
            pair.node.release(slot)


def test_prepared_frames_may_be_interleaved_and_posted_again(pair: Pair) -> None:
    rng = np.random.default_rng(1)
    rounds = rng.integers(0, 256, (4, 64), np.uint8)
    gets = rng.integers(0, 256, (4, 41), np.uint8)
    first = pair.rack.prepare(rounds, np.arange(4))
    second = pair.rack.prepare(gets, np.arange(4, 8))
    assert len(first) == len(second) == 4
    for _ in range(2):
        for i in (3, 0, 1, 2):
            pair.rack.post(first, i)
            pair.rack.post(second, i)
        done = pair.drain(pair.node, 8)
        assert [d.slot for d in done] == [3, 7, 0, 4, 1, 5, 2, 6]
        assert all(d.arrival == Arrival.IN_ORDER and d.imm >> 12 == d.psn % 2**20 for d in done)
        for d in done:
            want = rounds[d.slot] if d.slot < 4 else gets[d.slot - 4]
            assert bytes(pair.memory[d.slot * STRIDE :][: d.length]) == want.tobytes()
            pair.node.release(d.slot)
    assert pair.node.counters()["psn_gap"] == 0


def test_prepared_sends(pair: Pair) -> None:
    rows = np.arange(20, dtype=np.uint8).reshape(4, 5)
    prepared = pair.node.prepare(rows, None, "send")
    for i in range(4):
        pair.node.post(prepared, i)
    done = pair.drain(pair.rack, 4)
    assert [bytes(pair.answers[128 * d.slot :][:5]) for d in done] == [r.tobytes() for r in rows]


def test_poll_gives_at_most_what_was_asked_for_in_order(pair: Pair) -> None:
    for slot in range(6):
        pair.rack.post_write_imm(bytes([slot]), slot)
    found: list[list[int]] = []
    end = time.monotonic() + 5
    while sum(map(len, found)) < 6 and time.monotonic() < end:
        found.append([d.slot for d in pair.node.poll(4)])
    assert max(map(len, found)) <= 4
    assert functools.reduce(operator.iadd, found, []) == list(range(6))
    assert pair.node.poll(0) == []


def test_a_file_number_becomes_readable_when_a_frame_is_there(pair: Pair) -> None:
    number = pair.node.fileno()
    if number is None:
        assert "Virtual" in type(getattr(pair.node, "inner", pair.node)).__name__
        return
    assert select.select([number], [], [], 0)[0] == []
    pair.rack.post_write_imm(b"x", 0)
    assert select.select([number], [], [], 5)[0] == [number]


def test_psn_wraps_without_an_alarm_on_both_ways_of_posting(pair: Pair) -> None:
    sent: list[bytes] = []

    def note(datagram: bytes) -> list[bytes]:
        sent.append(datagram)
        return [datagram]

    getattr(pair.rack, "inner", pair.rack).intercept(note)
    prepared = pair.rack.prepare(np.zeros((1, 4), np.uint8), np.array([0]))
    psns = []
    for i in range(8):
        if i % 2:
            pair.rack.post_write_imm(b"x", 0)
        else:
            pair.rack.post(prepared, 0)
        psns += [done.psn for done in pair.drain(pair.node, 1)]
        pair.node.release(0)
    assert psns == [(PSN_START + i) % 2**24 for i in range(8)]
    assert [int.from_bytes(datagram[9:12], "big") for datagram in sent] == psns
    answers = {"tx_ack": 8} if pair.node.transport == "rc" else {}
    assert {k: v for k, v in pair.node.counters().items() if v} == {"rx_ok": 8} | answers


def test_what_does_not_fit_the_peer_is_refused_before_it_is_sent(pair: Pair) -> None:
    rows = np.zeros((2, 8), np.uint8)
    wrong: list[Callable[[], object]] = [
        lambda: pair.rack.post_write_imm(bytes(STRIDE + 1), 0),
        lambda: pair.rack.post_write_imm(b"", SLOTS),
        lambda: pair.rack.post_write(b"", -1),
        lambda: pair.node.post_send(bytes(129)),
        lambda: pair.rack.prepare(rows, np.array([0, SLOTS])),
        lambda: pair.rack.prepare(rows, np.array([-1, 0])),
        lambda: pair.rack.prepare(np.zeros((1, STRIDE + 4), np.uint8), np.array([0])),
        lambda: pair.rack.prepare(rows, None),
        lambda: pair.rack.prepare(rows, np.array([0, 1]), "send"),
        lambda: pair.rack.register(4, 128),
    ]
    for call in wrong:
        with pytest.raises(LinkError):
            call()
    assert pair.rack.counters()["tx"] == pair.node.counters()["tx"] == 0


def test_an_endpoint_without_memory_or_peer_says_what_to_do() -> None:
    for first, second in (virtual_pair(), soft_pair()):
        with pytest.raises(LinkError, match=r"register\(\) first"):
            first.address()
        with pytest.raises(LinkError, match=r"connect\(\) first"):
            first.post_send(b"x")
        for slots, size in ((0, 64), (4097, 64), (4, 0)):
            with pytest.raises(LinkError, match="cannot be registered"):
                first.register(slots, size)
        first.register(1, 64)
        with pytest.raises(LinkError):
            first.connect(first.address())
        first.close()
        second.close()


# -- datagrams that are not for us ---------------------------------------------------------------

NODE = Target(0x42, 0x1F02, 0x1000_0000, STRIDE)


def changed(psn: int, **header: int) -> bytes:
    """A good write of slot 1 whose BTH is then changed."""
    packet = write_only_imm(NODE, psn, 1, b"payload.")
    fields = packet.bth._asdict() | header
    return Bth(**fields).pack() + packet.pack()[12:]


def spoiled(psn: int, at: int, form: str, value: int) -> bytes:
    data = bytearray(changed(psn))
    struct.pack_into(form, data, at, value)
    return bytes(data)


BASE = NODE.base_va
FOREIGN: list[tuple[str, str, Callable[[int], bytes]]] = [
    ("drop_opcode", "RC write", lambda p: changed(p, opcode=Opcode.RC_WRITE_ONLY_IMM)),
    ("drop_length", "UC first, shorter than it is", lambda p: changed(p, opcode=0x26)),
    ("drop_bounds", "UC middle of nothing", lambda p: changed(p, opcode=0x27)),
    ("drop_bounds", "UC last of nothing", lambda p: changed(p, opcode=0x29)),
    ("drop_opcode", "unknown", lambda p: changed(p, opcode=0xFF)),
    ("drop_opcode", "version", lambda p: changed(p, version=1)),
    ("drop_pkey", "partition", lambda p: changed(p, pkey=0x7FFF)),
    ("drop_qp", "queue pair", lambda p: changed(p, dest_qp=0x43)),
    ("drop_rkey", "memory key", lambda p: spoiled(p, 20, "!I", 0x1F03)),
    ("drop_length", "RETH length", lambda p: spoiled(p, 24, "!I", 9)),
    ("drop_length", "pad count", lambda p: changed(p, pad=1)),
    ("drop_length", "cut inside the RETH", lambda p: changed(p)[:20]),
    ("drop_length", "not a multiple of 4", lambda p: changed(p) + b"\0"),
    ("drop_bounds", "in front of the memory", lambda p: spoiled(p, 12, "!Q", BASE - STRIDE)),
    ("drop_bounds", "behind the memory", lambda p: spoiled(p, 12, "!Q", BASE + SLOTS * STRIDE)),
    ("drop_bounds", "wraps 2^64", lambda p: spoiled(p, 12, "!Q", 2**64 - STRIDE)),
    ("drop_bounds", "inside a slot", lambda p: spoiled(p, 12, "!Q", BASE + STRIDE + 4)),
    ("drop_length", "send without its pad", lambda p: Bth(0x24, 0x42, p).pack() + b"7 bytes"),
    (
        "drop_bounds",
        "longer than a slot",
        lambda p: write_only_imm(NODE, p, 1, bytes(STRIDE + 4)).pack(),
    ),
    (
        "drop_bounds",
        "longer than the last slot",
        lambda p: write_only(NODE, p, SLOTS - 1, bytes(STRIDE + 4)).pack(),
    ),
    ("drop_bounds", "send longer than a slot", lambda p: send_only(0x42, p, bytes(300)).pack()),
    (
        "drop_imm",
        "PSN in the immediate",
        lambda p: spoiled(p, 28, "!I", (p + 1 & 0xFFFFF) << 12 | 1),
    ),
    ("drop_imm", "slot in the immediate", lambda p: spoiled(p, 28, "!I", (p & 0xFFFFF) << 12 | 2)),
]


@pytest.mark.parametrize(
    ("cause", "what", "make"), FOREIGN, ids=[f"{c}: {w}" for c, w, _ in FOREIGN]
)
def test_a_foreign_datagram_is_counted_by_cause_and_dropped(
    uc_pair: Pair, cause: str, what: str, make: Callable[[int], bytes]
) -> None:
    datagram = bytearray(make(PSN_START) + bytes(4))
    uc_pair.rack.seal(datagram)
    uc_pair.rack.transmit(bytes(datagram))
    counters = uc_pair.settled(uc_pair.node, cause, 1)
    assert {k: v for k, v in counters.items() if v} == {cause: 1}, what
    assert not any(uc_pair.memory)
    assert uc_pair.node.poll(16) == []


def test_the_same_datagram_unchanged_is_taken(uc_pair: Pair) -> None:
    """The control of the test above: nothing but the change makes the drop."""
    for psn, migreq in ((PSN_START, 0), (PSN_START + 1, 1)):
        datagram = bytearray(changed(psn, migreq=migreq) + bytes(4))
        uc_pair.rack.seal(datagram)
        uc_pair.rack.transmit(bytes(datagram))
        (done,) = uc_pair.drain(uc_pair.node, 1)
        assert (done.slot, done.busy) == (1, False)
        uc_pair.node.release(1)


def test_every_flipped_bit_under_the_icrc_is_dropped_for_that_cause(pair: Pair) -> None:
    good = bytearray(changed(PSN_START) + bytes(4))
    pair.rack.seal(good)
    bits = [b for b in range(8 * len(good)) if b // 8 != 4]
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        pair.rack.transmit(bytes(bad))
        assert pair.node.poll(16) == []
    counters = pair.settled(pair.node, "drop_icrc", len(bits))
    assert {k: v for k, v in counters.items() if v} == {"drop_icrc": len(bits)}
    assert not any(pair.memory)


def test_datagrams_too_short_for_any_packet_are_dropped(pair: Pair) -> None:
    for length in range(16):
        pair.rack.transmit(bytes(length))
    assert pair.settled(pair.node, "drop_length", 16)["drop_length"] == 16


def test_a_lost_a_late_and_a_repeated_frame_are_told_apart(uc_pair: Pair) -> None:
    sent: list[bytes] = []

    def keep(datagram: bytes) -> list[bytes]:
        sent.append(datagram)
        return []

    inner = getattr(uc_pair.rack, "inner", uc_pair.rack)
    inner.intercept(keep)
    for slot in range(6):
        uc_pair.rack.post_write_imm(bytes([slot]) * 4, slot)
    for i in (0, 2, 1, 1, 5, 5):
        uc_pair.rack.transmit(sent[i])
    done = uc_pair.drain(uc_pair.node, 6)
    assert [(d.slot, d.arrival, d.busy) for d in done] == [
        (0, Arrival.IN_ORDER, False),
        (2, Arrival.GAP, False),
        (1, Arrival.REORDERED, False),
        (1, Arrival.DUPLICATE, True),
        (5, Arrival.GAP, False),
        (5, Arrival.DUPLICATE, True),
    ]
    got = uc_pair.node.counters()
    names = ("psn_gap", "psn_lost", "psn_dup", "psn_reorder", "psn_stale", "rx_busy")
    assert [got[name] for name in names] == [2, 2, 2, 1, 0, 2]


# -- what is particular to one of them -----------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "8.8.8.8", "localhost", "::1", ""])
def test_soft_roce_refuses_everything_but_loopback(host: str) -> None:
    with pytest.raises(LinkError, match="loopback only"):
        SoftRoceEndpoint(host)
    end = SoftRoceEndpoint(loopback(2))
    end.register(1, 64)
    with pytest.raises(LinkError, match="loopback only"):
        end.connect(PeerAddress(host, 4791, 1, 0, 0, 0, 128, 1))
    end.close()


def test_soft_roce_names_the_address_of_a_taken_port() -> None:
    host = loopback(2)
    first = SoftRoceEndpoint(host)
    with pytest.raises(LinkError, match="UDP port is taken") as caught:
        SoftRoceEndpoint(host)
    assert host in caught.value.where
    assert f"{host}:4791" in caught.value.fix
    first.close()
    SoftRoceEndpoint(host).close()


@pytest.mark.parametrize(
    "change", [{"port": 0}, {"qp": 0}, {"qp": 2**24}, {"psn_start": 2**24}, {"mtu_bytes": 100}]
)
def test_numbers_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(LinkError, match="out of range"):
        SoftRoceEndpoint(loopback(2), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"qp": 2**24},
        {"psn": -1},
        {"rkey": 2**32},
        {"n_slots": 4097},
        {"stride": 64},
        {"base_va": 2**64 - 128},
    ],
)
def test_a_peer_with_impossible_numbers_is_refused(change: dict[str, int]) -> None:
    rack, node = virtual_pair()
    node.register(SLOTS, STRIDE)
    rack.connect(node.address())
    with pytest.raises(LinkError, match="out of range"):
        rack.connect(replace(node.address(), **change))


def test_soft_roce_hears_its_peer_only() -> None:
    rack, node = soft_pair()
    node.register(SLOTS, STRIDE)
    rack.register(1, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    stranger = SoftRoceEndpoint(loopback(2))
    stranger.register(1, 128)
    stranger.connect(node.address())
    stranger.post_write_imm(b"hello...", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:  # same address, other port
        other.bind((rack.address().host, 0))
        other.sendto(bytes(64), (node.address().host, 4791))
    end = time.monotonic() + 5
    while node.counters()["drop_peer"] < 2 and time.monotonic() < end:
        assert node.poll(16) == []
    assert {k: v for k, v in node.counters().items() if v} == {"drop_peer": 2}
    for endpoint in (rack, node, stranger):
        endpoint.close()


def test_a_flood_of_foreign_datagrams_delays_but_never_holds_a_poll() -> None:
    rack, node = soft_pair()
    node.register(SLOTS, STRIDE)
    rack.register(1, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    for _ in range(1100):
        rack.transmit(bytes(15))
    rack.post_write_imm(b"x", 0)
    assert node.poll(1) == []
    assert node.counters()["drop_length"] == 1025
    assert len(node.poll(1)) == 1
    rack.close()
    node.close()


def test_soft_roce_uses_another_port_when_told_and_random_keys() -> None:
    ends = [SoftRoceEndpoint(loopback(i), port=4790) for i in (0, 1)]
    for end in ends:
        end.register(2, 128)
    ends[0].connect(ends[1].address())
    ends[1].connect(ends[0].address())
    assert ends[0].address().port == 4790
    assert ends[0].address().rkey != ends[1].address().rkey
    ends[0].post_write_imm(b"x", 1)
    end = time.monotonic() + 5
    while not (done := ends[1].poll(1)) and time.monotonic() < end:
        pass
    assert done[0].slot == 1
    for one in ends:
        one.close()


def test_soft_roce_tells_what_the_kernel_dropped() -> None:
    rack, node = soft_pair()
    node.register(1, 1408)
    rack.register(1, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    prepared = rack.prepare(np.zeros((1, 1408), np.uint8), np.array([0]))
    room = node.receive_buffer_bytes // 1408
    for _ in range(room):
        rack.post(prepared, 0)
    dropped = node.counters()["buffer_overflow"]
    got = 0
    while more := node.poll(1000):
        got += len(more)
    assert dropped > 0
    assert got + dropped == room == rack.counters()["tx"]
    node.close()
    assert node.counters()["buffer_overflow"] == dropped
    rack.close()


def test_a_closed_soft_roce_endpoint_says_so_when_used() -> None:
    rack, node = soft_pair()
    node.register(1, 128)
    rack.connect(node.address())
    rack.close()
    node.close()
    with pytest.raises(LinkError, match="not sent"):
        rack.post_send(b"x")
    with pytest.raises(LinkError, match="closed"):
        node.poll(1)


def test_a_virtual_endpoint_loses_and_counts_what_finds_no_room() -> None:
    rack, node = virtual_pair()
    node.register(1, 128)
    rack.register(1, 128)
    rack.connect(node.address())
    for _ in range(DEPTH + 2):
        rack.transmit(b"")
    assert node.counters()["buffer_overflow"] == 2
    with pytest.raises(LinkError, match="other end of its pair"):
        rack.connect(PeerAddress("127.0.0.9", 4791, 1, 0, 0, 0, 128, 1))
    node.close()
    rack.transmit(b"")  # into the void, as on a wire


def test_the_payload_limit_follows_the_sensor_bridge() -> None:
    assert [payload_limit(mtu) for mtu in (1500, 4096, 9000)] == [1408, 3968, 8832]
