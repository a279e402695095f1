"""A million frames: no alarm on clean ones, exactly the injected counts on faulty ones."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from hil.link.faults import FaultPlan, Faulty
from hil.link.sequence import SequenceAudit
from hil.link.soft_roce import SoftRoceEndpoint
from hil.wire import rpc, rpc_batch

MILLION = 1_000_000
CHUNK = 20_000
LOSSES, COPIES, LATE = 400, 300, 300


def loopback(last: int) -> str:
    number = os.getpid() * 4 + last
    return f"127.{11 + (number >> 16) % 200}.{number >> 8 & 255}.{number & 255}"


def audited(order: np.ndarray, bits: int, start: int) -> SequenceAudit:
    audit = SequenceAudit(bits, start)
    numbers = order.astype(np.uint64) + np.uint64(start)
    for at in range(0, len(numbers), CHUNK):
        audit.update(numbers[at : at + CHUNK])
    return audit


# PSN: wraps near the middle; counter: wraps 2^64 after ten frames
STREAMS = pytest.mark.parametrize(("bits", "start"), [(24, 2**24 - 500_000), (64, 2**64 - 10)])


@STREAMS
def test_a_million_clean_frames_raise_no_alarm(bits: int, start: int) -> None:
    audit = audited(FaultPlan().arrivals(MILLION), bits, start)
    alarms = {name: n for name, n in audit.counts().items() if n}
    assert alarms == {"received": MILLION}
    assert audit.close((start + MILLION) % 2**bits) == 0


@STREAMS
@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_faults_in_a_million_frames_are_counted_exactly(
    bits: int, start: int, seed: int
) -> None:
    plan = FaultPlan.seeded(seed, MILLION, drop=LOSSES, duplicate=COPIES, reorder=LATE)
    audit = audited(plan.arrivals(MILLION), bits, start)
    assert audit.counts() == {
        "received": MILLION - LOSSES + COPIES,
        "gaps": LOSSES + LATE,
        "lost": LOSSES,
        "duplicate": COPIES,
        "reordered": LATE,
        "stale": 0,
    }


def test_an_audit_that_forgets_would_be_noticed() -> None:
    """The broken peer of the test above: with too short a memory late frames stay lost."""
    plan = FaultPlan.seeded(1, 100_000, drop=50, duplicate=50, reorder=50)
    audit = SequenceAudit(24, 0, memory=2)
    audit.update(plan.arrivals(100_000))
    assert audit.lost > 50
    assert audit.stale > 0


def test_faults_on_real_frames_are_counted_exactly_at_both_levels() -> None:
    """20,000 RPC frames over soft_roce: PSN audit of the endpoint and counters of the messages."""
    frames, slots = 20_000, 64
    plan = FaultPlan.seeded(3, frames, drop=120, duplicate=100, reorder=100, flip=80)
    node = SoftRoceEndpoint(loopback(1), psn_start=2**24 - 7_000)
    plain = SoftRoceEndpoint(loopback(0))
    memory = node.register(slots, 128)
    plain.register(1, 128)
    plain.connect(node.address())
    node.connect(plain.address())
    rack = Faulty(plain, plan)

    first = 2**32 - 9_000  # request_id wraps on the way
    counters = np.arange(frames, dtype=np.uint64)[:, None] + np.uint64(first)
    bits = np.random.default_rng(5).integers(0, 256, (frames, 1, 3), np.uint8)
    messages = rpc_batch.build_enqueue_batch(
        bits, np.array([24]), counters=counters, ptp_timestamps=np.zeros_like(counters)
    )[:, 0]
    prepared = rack.prepare(messages, np.arange(frames) % slots)
    audit, identities = SequenceAudit(64, first), SequenceAudit(32, first % 2**32)
    seen = np.zeros(frames, np.int64)

    def take() -> None:
        while done := node.poll(1):  # one by one: a copy sent at once finds its slot free again
            (one,) = done
            slot = memory[one.slot * 128 : one.slot * 128 + one.length]
            message = rpc.parse_request(slot)
            assert isinstance(message, rpc.EnqueueSyndromes)
            assert not one.busy
            audit.observe(message.counter)
            identities.observe(message.request_id)
            assert message.bits == bits[message.counter - first, 0].tobytes()
            seen[message.counter - first] += 1
            node.release(one.slot)

    for i in range(frames):
        rack.post(prepared, i)
        take()
    rack.flush()
    wanted, end = frames - 200 + 100, time.monotonic() + 5
    while seen.sum() < wanted and time.monotonic() < end:
        take()
    assert (
        audit.counts()
        == identities.counts()
        == {
            "received": wanted,
            "gaps": 200 + 100,
            "lost": 200,
            "duplicate": 100,
            "reordered": 100,
            "stale": 0,
        }
    )
    assert {k: v for k, v in node.counters().items() if v} == {
        "rx_ok": wanted,
        "drop_icrc": 80,
        "psn_gap": 300,
        "psn_lost": 200,
        "psn_dup": 100,
        "psn_reorder": 100,
    }
    assert set(np.flatnonzero(seen == 0)) == set(plan.drop) | set(plan.flip)
    assert set(np.flatnonzero(seen == 2)) == set(plan.duplicate)
    rack.close()
    node.close()
