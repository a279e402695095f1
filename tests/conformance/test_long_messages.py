"""Writes longer than a packet: one message of several packets, over every transport.

The receiver must complete a message only if all its packets came, in order, without a hole; each
way of spoiling one is tried on each of its packets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from hil.errors import LinkError
from hil.link.endpoint import Completion, Endpoint
from hil.link.faults import FaultPlan, Faulty
from hil.link.soft_roce import SoftRoceEndpoint
from hil.link.virtual import virtual_pair
from hil.wire.roce import payload_limit
from hil.wire.rpc_batch import predecode_row_bytes

MTU = 512
PACKET = payload_limit(MTU)
STRIDE = 2048
LENGTH = 4 * PACKET + 23  # five packets
SLOTS = 4


@dataclass
class Pair:
    rack: Endpoint
    node: Endpoint
    memory: memoryview

    def take(self, count: int) -> list[Completion]:
        """Completions of the node until there are ``count``; 0: all that come in 30 ms."""
        found: list[Completion] = []
        end = time.monotonic() + (5 if count else 0.03)
        while time.monotonic() < end and (not count or len(found) < count):
            found += self.node.poll(16)
        return found

    def bytes_of(self, done: Completion) -> bytes:
        return bytes(self.memory[done.slot * STRIDE :][: done.length])


def joined(rack: Endpoint, node: Endpoint) -> Pair:
    rack.register(SLOTS, 128)
    memory = node.register(SLOTS, STRIDE)
    rack.connect(node.address())
    node.connect(rack.address())
    return Pair(rack, node, memory)


def virtual() -> tuple[Endpoint, Endpoint]:
    return virtual_pair(mtu_bytes=MTU)


def soft() -> tuple[Endpoint, Endpoint]:
    return (
        SoftRoceEndpoint("127.7.3.2", mtu_bytes=MTU),
        SoftRoceEndpoint("127.7.3.1", mtu_bytes=MTU),
    )


@pytest.fixture(params=[virtual, soft], ids=["virtual", "soft_roce"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, Endpoint]]:
    make: Callable[[], tuple[Endpoint, Endpoint]] = request.param
    rack, node = make()
    yield rack, node
    rack.close()
    node.close()


def message(seed: int, length: int = LENGTH) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


@pytest.mark.parametrize("length", [0, 1, PACKET, PACKET + 1, 4 * PACKET, LENGTH, STRIDE])
def test_a_message_of_any_length_arrives_as_one(
    ends: tuple[Endpoint, Endpoint], length: int
) -> None:
    pair = joined(*ends)
    payload = message(length, length)
    pair.rack.post_write_imm(payload, 2)
    (done,) = pair.take(1)
    assert (done.slot, done.length, done.header) == (2, length, payload[:24])
    assert pair.bytes_of(done) == payload
    packets = max(1, -(-length // PACKET))
    assert pair.rack.counters()["tx"] == packets
    counters = pair.node.counters()
    assert counters["rx_ok"] == packets
    assert not any(count for name, count in counters.items() if name.startswith(("drop", "psn")))


def test_what_is_longer_than_the_slot_is_refused_before_it_is_sent(
    ends: tuple[Endpoint, Endpoint],
) -> None:
    pair = joined(*ends)
    with pytest.raises(LinkError, match="does not fit the peer"):
        pair.rack.post_write_imm(bytes(STRIDE + 1), 0)
    with pytest.raises(LinkError, match="does not fit the peer"):
        pair.rack.post_write(bytes(PACKET + 1), 0)
    assert pair.rack.counters()["tx"] == 0


@pytest.mark.parametrize("at", range(5))
def test_a_message_with_a_hole_never_completes_and_the_next_one_does(
    ends: tuple[Endpoint, Endpoint], at: int
) -> None:
    rack, node = ends
    pair = joined(Faulty(rack, FaultPlan(drop=frozenset({at}))), node)
    pair.rack.post_write_imm(message(1), 1)
    assert pair.take(0) == []
    pair.rack.post_write_imm(message(2), 1)
    (done,) = pair.take(1)
    assert pair.bytes_of(done) == message(2), "nothing of the first message is left in it"
    assert pair.node.counters()["psn_lost"] == 1
    assert pair.node.counters()["drop_bounds"] == 4 - at


@pytest.mark.parametrize("at", range(5))
def test_a_duplicated_packet_changes_nothing(ends: tuple[Endpoint, Endpoint], at: int) -> None:
    rack, node = ends
    pair = joined(Faulty(rack, FaultPlan(duplicate={at: 0})), node)
    pair.rack.post_write_imm(message(1), 1)
    done = [d for d in pair.take(1) if not d.busy]
    assert [pair.bytes_of(d) for d in done] == [message(1)]
    assert pair.take(0) == []
    assert pair.node.counters()["psn_dup"] == 1


@pytest.mark.parametrize("at", range(4))
def test_packets_out_of_order_are_no_message(ends: tuple[Endpoint, Endpoint], at: int) -> None:
    rack, node = ends
    pair = joined(Faulty(rack, FaultPlan(reorder={at: 1})), node)
    pair.rack.post_write_imm(message(1), 1)
    assert pair.take(0) == []
    assert pair.node.counters()["psn_reorder"] == 1


def test_a_late_packet_of_an_older_message_does_not_enter_a_newer_one(
    ends: tuple[Endpoint, Endpoint],
) -> None:
    rack, node = ends
    pair = joined(Faulty(rack, FaultPlan(reorder={1: 4})), node)  # arrives behind packet 5
    pair.rack.post_write_imm(message(1), 1)
    pair.rack.post_write_imm(message(2), 1)
    assert [pair.bytes_of(d) for d in pair.take(1)] == [message(2)]


def test_an_owned_slot_refuses_the_whole_message_and_shows_its_header(
    ends: tuple[Endpoint, Endpoint],
) -> None:
    pair = joined(*ends)
    pair.rack.post_write_imm(message(1), 3)
    pair.rack.post_write_imm(message(2), 3)
    first, second = pair.take(2)
    assert (first.busy, second.busy) == (False, True)
    assert second.header == message(2)[:24]
    assert pair.bytes_of(first) == message(1)
    pair.node.release(3)
    pair.rack.post_write_imm(message(3), 3)
    assert [pair.bytes_of(d) for d in pair.take(1)] == [message(3)]


def test_another_write_between_two_packets_breaks_the_message(
    ends: tuple[Endpoint, Endpoint],
) -> None:
    """The node's own frames may not slip in: PSNs of a message follow each other."""
    rack, node = ends
    pair = joined(rack, node)
    seen: list[bytes] = []

    def note(datagram: bytes) -> list[bytes]:
        seen.append(datagram)
        return []

    rack.intercept(note)
    rack.post_write_imm(message(1), 1)
    rack.intercept(None)
    for datagram in seen[:2]:
        rack.transmit(datagram)
    rack.post_write_imm(b"single", 2)
    for datagram in seen[2:]:
        rack.transmit(datagram)
    assert [d.slot for d in pair.take(1)] == [2]
    assert pair.take(0) == []
    assert node.counters()["drop_bounds"] == 3


def test_the_largest_published_shot_is_five_packets() -> None:
    """predecode at d = 13, T = 104: 24 + 17,472 bytes, padded, at the largest RoCEv2 MTU."""
    rack, node = virtual_pair(mtu_bytes=4096)
    rack.register(SLOTS, 128)
    memory = node.register(SLOTS, predecode_row_bytes(17_472))
    rack.connect(node.address())
    node.connect(rack.address())
    payload = message(13, 17_536)
    rack.post_write_imm(payload, 3)
    (done,) = node.poll(16)
    at = done.slot * node.address().stride
    assert (done.length, rack.counters()["tx"]) == (17_536, 5)
    assert bytes(memory[at : at + done.length]) == payload
