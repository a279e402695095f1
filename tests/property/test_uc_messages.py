"""UC messages of several packets over a channel that loses, repeats and reorders.

FIRST .. LAST and the sensor bridge's WRITE ONLYs, plain and with immediate, and SENDs: whatever
arrives in whatever order, a completion shows exactly the message whose last packet made it.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.link.endpoint import Completion
from hil.link.receiver import Receiver
from hil.link.slots import BASE_VA, Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import Packet, Target
from hil.wire.segments import UC_OFFSET, send_packets, write_packets

PATH = IcrcPath("10.0.0.1", "10.0.0.2", 4791, 4791)
MTU, STRIDE, SLOTS = 64, 512, 2
TARGET = Target(2, 7, BASE_VA, STRIDE)


def of_kind(kind: str, psn: int, slot: int, payload: bytes) -> list[Packet]:
    """One message: ``segments``, ``segments+imm``, ``writes+imm`` (each its own RETH), ``send``."""
    if kind == "send":
        packets = send_packets(2, psn, payload, MTU)
    else:
        packets = write_packets(TARGET, psn, slot, payload, MTU, with_imm=kind != "segments")
    out = []
    for k, packet in enumerate(packets):
        opcode, reth = packet.bth.opcode + UC_OFFSET, packet.reth
        if kind == "writes+imm":
            opcode = 0x2B if packet.imm is not None else 0x2A
            at = BASE_VA + slot * STRIDE + k * MTU
            reth = packets[0].reth and packets[0].reth._replace(va=at, length=len(packet.payload))
        out.append(
            Packet(packet.bth._replace(opcode=opcode), reth, None, packet.imm, packet.payload)
        )
    return out


def sealed(packet: Packet) -> bytearray:
    datagram = bytearray(packet.pack() + bytes(4))
    PATH.seal(datagram)
    return datagram


class Bench:
    def __init__(self, start: int) -> None:
        self.slots = Slots(7)
        self.memory = self.slots.register(SLOTS, STRIDE)
        self.receiver = Receiver(2, start, self.slots)

    def give(self, packet: Packet) -> Completion | None:
        return self.receiver.accept(memoryview(sealed(packet)), PATH, 0)

    def shown(self, done: Completion) -> bytes:
        return bytes(self.memory[done.slot * STRIDE :][: done.length])


KINDS = ("segments", "segments+imm", "writes+imm", "send")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 64, 65, 200, 512])
def test_a_message_of_any_length_completes_once_unless_it_is_a_plain_write(
    kind: str, size: int
) -> None:
    bench, payload = Bench(2**24 - 1), random.Random(size).randbytes(size)
    slot = 0 if kind == "send" else 1
    done = [bench.give(packet) for packet in of_kind(kind, 2**24 - 1, 1, payload)]
    assert bytes(bench.memory[slot * STRIDE :][:size]) == payload
    assert not any(done[:-1])
    last = done[-1]
    assert (last is None) == (kind == "segments")
    if last is not None:
        assert (last.slot, last.length, last.header) == (slot, size, payload[:24])
    assert not any(v for name, v in bench.receiver.counts.items() if name.startswith("drop"))


@pytest.mark.parametrize("kind", ["segments+imm", "writes+imm", "send"])
@pytest.mark.parametrize("lost", range(4))
def test_a_hole_makes_the_message_forgotten_and_the_next_one_complete(kind: str, lost: int) -> None:
    bench = Bench(0)
    first = of_kind(kind, 0, 0, bytes([1]) * 200)
    del first[lost]
    assert [bench.give(packet) for packet in first] == [None] * 3
    done = [bench.give(packet) for packet in of_kind(kind, 4, 0, bytes([2]) * 200)]
    assert done[-1] is not None
    assert bench.shown(done[-1]) == bytes([2]) * 200
    assert bench.receiver.audit.lost == 1


@pytest.mark.parametrize("kind", ["segments+imm", "writes+imm", "send"])
def test_what_a_gap_made_forgotten_is_not_taken_up_again_by_late_packets(kind: str) -> None:
    bench = Bench(0)
    packets = of_kind(kind, 0, 0, bytes(200))
    assert [bench.give(packets[k]) for k in (0, 2, 1, 2, 3)] == [None] * 5
    assert bench.receiver.counts["drop_bounds"] == 4


def test_first_must_be_followed_by_its_own_kind() -> None:
    bench = Bench(0)
    write, send = (of_kind(k, 0, 0, bytes(200)) for k in ("segments+imm", "send"))
    assert [bench.give(packet) for packet in (write[0], *send[1:])] == [None] * 4
    assert bench.receiver.counts["drop_bounds"] == 3


def test_a_message_longer_or_shorter_than_announced_is_dropped() -> None:
    for length in (199, 201):
        bench = Bench(0)
        packets = of_kind("segments+imm", 0, 0, bytes(200))
        assert packets[0].reth is not None
        packets[0] = Packet(
            packets[0].bth, packets[0].reth._replace(length=length), payload=packets[0].payload
        )
        assert [bench.give(packet) for packet in packets] == [None] * 4
        assert bench.receiver.counts["drop_length"] == 1
    bench = Bench(0)
    assert not any(bench.give(packet) for packet in of_kind("send", 0, 0, bytes(STRIDE + 1)))
    assert bench.receiver.counts["drop_bounds"] == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, STRIDE)), min_size=1, max_size=8),
    st.integers(0, 2**32),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.integers(0, 6),
    st.sampled_from((0, 2**24 - 5)),
)
def test_no_completion_ever_shows_a_mixture(
    wanted: list[tuple[str, int]], seed: int, lose: float, repeat: float, reach: int, start: int
) -> None:
    """``reach``: how many places a packet may be overtaken by."""
    rng = random.Random(seed)
    psn, packets, content = start, [], {}
    for kind, size in wanted:
        payload = rng.randbytes(size)
        message = of_kind(kind, psn, rng.randrange(SLOTS), payload)
        content[message[-1].bth.psn] = payload
        packets += message
        psn = (psn + len(message)) % 2**24
    arriving = [p for p in packets for _ in range(1 + (rng.random() < repeat))]
    arriving = [p for p in arriving if rng.random() >= lose]
    order = sorted(range(len(arriving)), key=lambda k: k + rng.uniform(0, reach + 1))
    bench = Bench(start)
    for k in order:
        done = bench.give(arriving[k])
        if done is not None:
            assert not done.busy
            assert bench.shown(done) == content[done.psn]
            bench.slots.release(done.slot)
