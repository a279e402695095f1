"""Bulk transfer over sockets: batches and single frames are the same to the other end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from hil.errors import LinkError
from hil.link.bulk import BulkSoftRoceEndpoint, Run
from hil.link.endpoint import Completion
from hil.link.soft_roce import SoftRoceEndpoint

SLOTS = 128
PAYLOADS = np.random.default_rng(3).integers(0, 256, (100, 61), np.uint8)


def host(last: int) -> str:
    number = os.getpid() * 4 + last
    return f"127.{11 + (number >> 16) % 200}.{number >> 8 & 255}.{number & 255}"


Pair = tuple[BulkSoftRoceEndpoint, BulkSoftRoceEndpoint, memoryview]


@pytest.fixture
def pair() -> Iterator[Pair]:
    rack = BulkSoftRoceEndpoint(host(2))
    node = BulkSoftRoceEndpoint(host(3), psn_start=2**24 - 20)
    memory = node.register(SLOTS, 64)
    rack.register(16, 64)
    rack.connect(node.address())
    node.connect(rack.address())
    yield rack, node, memory
    rack.close()
    node.close()


def slots_of(found: list[Completion | Run]) -> list[int]:
    return [
        s for one in found for s in (one.slots.tolist() if isinstance(one, Run) else [one.slot])
    ]


def test_a_batch_arrives_in_runs_and_fills_its_slots(pair: Pair) -> None:
    rack, node, memory = pair
    rack.post_many(rack.prepare(PAYLOADS, np.arange(100)))
    found = node.poll_many(1000)
    assert slots_of(found) == list(range(100))
    assert all(isinstance(one, Run) and one.length == 61 for one in found)
    assert next(one.psn for one in found if isinstance(one, Run)) == 2**24 - 20
    stored = np.frombuffer(memory, np.uint8).reshape(SLOTS, -1)[:100, :61]
    assert np.array_equal(stored, PAYLOADS)
    node.release_many(np.arange(100))
    with pytest.raises(LinkError, match="not owned"):
        node.release_many(np.array([3]))
    counters = node.counters()
    assert (counters["rx_ok"], counters["psn_lost"], counters["drop_icrc"]) == (100, 0, 0)


def test_what_is_not_plain_goes_packet_by_packet(pair: Pair) -> None:
    rack, node, memory = pair
    prepared = rack.prepare(PAYLOADS, np.arange(100))
    rack.post_many(prepared, 0, 10)
    rack.post_write_imm(b"one more", 100)
    rack.post_many(prepared, 0, 20)  # the first ten slots are still owned
    found = node.poll_many(1000)
    assert slots_of(found) == [*range(10), 100, *range(10), *range(10, 20)]
    busy = [one.slot for one in found if isinstance(one, Completion) and one.busy]
    assert busy == list(range(10))
    assert bytes(memory[100 * 128 : 100 * 128 + 8]) == b"one more"
    assert node.counters()["psn_gap"] == 0


def test_a_batch_may_be_polled_frame_by_frame(pair: Pair) -> None:
    rack, node, _ = pair
    rack.post_many(rack.prepare(PAYLOADS, np.arange(100)))
    first = node.poll(7)
    assert [one.slot for one in first] == list(range(7))
    assert first[3].header == PAYLOADS[3, :24].tobytes()
    assert slots_of(node.poll_many(1000)) == list(range(7, 100))


def test_sends_go_in_batches_and_arrive_in_turn(pair: Pair) -> None:
    rack, node, _ = pair
    node.post_many(node.prepare(PAYLOADS[:10], None, "send"))
    assert slots_of(rack.poll_many(100)) == list(range(10))


def test_frames_that_a_stage_drops_are_a_gap(pair: Pair) -> None:
    rack, node, _ = pair
    seen = 0

    def every_tenth(datagram: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        return [] if seen % 10 == 0 else [datagram]

    rack.intercept(every_tenth)
    rack.post_many(rack.prepare(PAYLOADS, np.arange(100)))
    assert len(slots_of(node.poll_many(1000))) == 90
    rack.intercept(None)
    rack.post_many(rack.prepare(PAYLOADS[:1], np.array([127])))
    node.poll_many(10)
    assert (node.counters()["psn_gap"], node.counters()["psn_lost"]) == (10, 10)


def test_a_stranger_is_not_heard(pair: Pair) -> None:
    rack, node, _ = pair
    stranger = BulkSoftRoceEndpoint(host(1))
    stranger.register(1, 64)
    stranger.connect(node.address())
    stranger.post_many(stranger.prepare(PAYLOADS[:5], np.arange(5)))
    stranger.close()
    assert node.poll_many(100) == []
    assert node.counters()["drop_peer"] == 5
    rack.post_many(rack.prepare(PAYLOADS[:5], np.arange(5)))
    assert slots_of(node.poll_many(100)) == list(range(5))


def test_segments_of_a_plain_receiver_fail_the_icrc(pair: Pair) -> None:
    """A socket that does not join datagrams cannot know which segment one was."""
    rack, node, _ = pair
    node.close()
    plain = SoftRoceEndpoint(host(3))
    plain.register(SLOTS, 64)
    rack.connect(plain.address())
    plain.connect(rack.address())
    rack.post_many(rack.prepare(PAYLOADS[:5], np.arange(5)))
    assert [one.slot for one in plain.poll(10)] == [0]  # its identification is 0
    assert plain.counters()["drop_icrc"] == 4
    plain.close()


def test_bulk_is_for_uc() -> None:
    with pytest.raises(LinkError, match="bulk transfer is for UC"):
        BulkSoftRoceEndpoint(host(1), transport="rc")
