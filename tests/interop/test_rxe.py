"""Our endpoints against Linux rdma_rxe: whole frames to the kernel of a guest, pyverbs in it.

``host``: our ``frames`` endpoint, here. ``guest``: our ``verbs`` endpoint; its calls run in the
guest on the device ``rxe0``. All PSNs begin at 0xFFFFF0 and wrap.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from link_to_guest import (
    PSN_START,
    SLOTS,
    STRIDE,
    Joint,
    Received,
    is_ack,
    lossy,
    numbered,
    seconds,
    transfer,
    wait,
)

from hil.link.sequence import Arrival

pytestmark = [
    pytest.mark.slow,
    pytest.mark.live,
    pytest.mark.needs("rxe_vm"),
    pytest.mark.timeout(300),
]

N = 200
MESSAGES = numbered(N)
SHORT = [message for message in MESSAGES if len(message) < 100]


def payload_packets(messages: list[bytes]) -> int:
    return sum(-(-len(message) // 1024) for message in messages)


@pytest.mark.parametrize("to_guest", [True, False], ids=["to rxe", "from rxe"])
def test_rc_delivers_all_once_and_in_order(joint: Joint, *, to_guest: bool) -> None:
    ends = joint.ends("rc")
    if to_guest:
        got = transfer(ends.host, ends.guest, ends.guest_memory, MESSAGES)
    else:
        got = transfer(ends.guest, ends.host, ends.host_memory, MESSAGES)
    assert got.messages == MESSAGES
    last = (PSN_START + payload_packets(MESSAGES) - 1) & 0xFFFFFF
    assert got.completions[-1].psn == last < PSN_START
    assert all(done.arrival == Arrival.IN_ORDER for done in got.completions)
    counters = ends.host.counters()
    assert (ends.host.error, ends.guest.error) == ("", "")
    assert counters["drop_icrc"] == counters["tx_nak"] == 0
    ends.close()


@pytest.mark.parametrize("to_guest", [True, False], ids=["to rxe", "from rxe"])
def test_rc_delivers_all_once_and_in_order_over_ten_percent_loss(
    joint: Joint, *, to_guest: bool
) -> None:
    ends = joint.ends("rc")
    ends.wire.harm = lossy(5, 0.1)
    if to_guest:
        got = transfer(ends.host, ends.guest, ends.guest_memory, MESSAGES)
    else:
        got = transfer(ends.guest, ends.host, ends.host_memory, MESSAGES)
    assert got.messages == MESSAGES
    assert len(ends.wire.lost) > 10
    counters = ends.host.counters()
    repeats = counters["retransmit"] if to_guest else counters["rx_duplicate"] + counters["tx_nak"]
    assert repeats > 0
    assert (ends.host.error, ends.guest.error) == ("", "")
    ends.close()


def test_rc_repeats_what_arrived_spoiled(joint: Joint) -> None:
    """One payload bit is turned in every tenth data packet: rxe drops it without a word."""
    ends = joint.ends("rc")
    seen = spoiled = 0

    def spoil(frame: bytes, outwards: bool) -> bytes:
        nonlocal seen, spoiled
        if not outwards or is_ack(frame):
            return frame
        seen += 1
        if seen % 10:
            return frame
        spoiled += 1
        return frame[:-5] + bytes([frame[-5] ^ 1]) + frame[-4:]

    ends.wire.harm = spoil
    got = transfer(ends.host, ends.guest, ends.guest_memory, MESSAGES[:80])
    assert got.messages == MESSAGES[:80]
    assert spoiled >= 8
    assert ends.host.counters()["retransmit"] >= spoiled - 1
    ends.close()


def test_frames_of_rxe_that_are_spoiled_on_the_way_are_dropped_here(joint: Joint) -> None:
    ends = joint.ends("rc")
    seen = 0

    def spoil(frame: bytes, outwards: bool) -> bytes:
        nonlocal seen
        seen += not outwards
        bad = not outwards and seen % 10 == 0
        return frame[:-5] + bytes([frame[-5] ^ 1]) + frame[-4:] if bad else frame

    ends.wire.harm = spoil
    got = transfer(ends.guest, ends.host, ends.host_memory, MESSAGES[:80])
    assert got.messages == MESSAGES[:80]
    assert ends.host.counters()["drop_icrc"] == seen // 10 >= 8
    ends.close()


@pytest.mark.parametrize("to_guest", [True, False], ids=["to rxe", "from rxe"])
def test_lost_acknowledgements_repeat_nothing_twice(joint: Joint, *, to_guest: bool) -> None:
    """All acknowledgements of the first 20 messages are lost once."""
    ends = joint.ends("rc")
    left = 20

    def lose(frame: bytes, outwards: bool) -> bytes | None:
        nonlocal left
        if is_ack(frame) and outwards != to_guest and left:
            left -= 1
            return None
        return frame

    ends.wire.harm = lose
    if to_guest:
        got = transfer(ends.host, ends.guest, ends.guest_memory, MESSAGES[:60])
    else:
        got = transfer(ends.guest, ends.host, ends.host_memory, MESSAGES[:60])
    assert got.messages == MESSAGES[:60]
    assert left == 0
    ends.close()


@pytest.mark.parametrize("to_guest", [True, False], ids=["to rxe", "from rxe"])
def test_a_receiver_that_is_not_ready_is_waited_for(joint: Joint, *, to_guest: bool) -> None:
    """Twelve messages for four slots: RNR NAKs until slots are released, all four at once."""
    ends = joint.ends("rc", host_slots=4, guest_slots=4)
    sender, receiver, memory = ends.host, ends.guest, ends.guest_memory
    if not to_guest:
        sender, receiver, memory = ends.guest, ends.host, ends.host_memory
    messages = [f"message {i}".encode() for i in range(12)]
    for i, message in enumerate(messages):
        sender.post_write_imm(message, i % 4)
    got: list[bytes] = []
    held: list[int] = []
    since_s = time.monotonic()
    for now_s in seconds(20):
        sender.poll(1)
        for done in receiver.poll(4):
            assert not done.busy
            got.append(bytes(memory[done.slot * STRIDE :][: done.length]))
            held.append(done.slot)
            since_s = now_s
        assert len(held) <= 4
        if len(held) == 4 and now_s - since_s > 0.2:
            while held:
                receiver.release(held.pop())
        if len(got) == len(messages):
            break
        wait((sender, receiver))
    assert got == messages
    assert ends.host.counters()["rx_rnr" if to_guest else "tx_rnr"] >= 2
    assert (ends.host.error, ends.guest.error) == ("", "")
    ends.close()


def test_uc_delivers_what_was_not_lost_and_both_sides_count(joint: Joint) -> None:
    """One packet a message; with a MIDDLE lost, rxe 6.1 would never deliver again (rdma_rxe)."""
    ends = joint.ends("uc")
    ends.wire.harm = lossy(6, 0.1)
    there = transfer(
        ends.host, ends.guest, ends.guest_memory, SHORT,
        lost=lambda: len(ends.wire.lost), quiet_s=0.5,
    )  # fmt: skip
    lost = len(ends.wire.lost)
    assert lost > 5
    assert len(there.messages) == len(SHORT) - lost
    assert there.numbers == sorted(set(there.numbers))
    assert ends.guest.counters()["psn_lost"] + _lost_at_the_end(there, SHORT) == lost
    ends.wire.lost.clear()
    back = transfer(
        ends.guest, ends.host, ends.host_memory, MESSAGES,
        lost=lambda: len(ends.wire.lost), quiet_s=0.5,
    )  # fmt: skip
    lost = len(ends.wire.lost)
    assert set(back.messages) <= set(MESSAGES)
    assert back.numbers == sorted(set(back.numbers))
    at_end = (PSN_START + payload_packets(MESSAGES) - 1 - back.completions[-1].psn) & 0xFFFFFF
    assert 5 < lost - at_end <= ends.host.counters()["psn_lost"] <= lost
    assert len(MESSAGES) - lost <= len(back.messages) < len(MESSAGES)
    ends.close()


def _lost_at_the_end(got: Received, messages: list[bytes]) -> int:
    return len(messages) - 1 - messages.index(got.messages[-1])


@pytest.mark.parametrize("transport", ["rc", "uc"])
def test_two_queue_pairs_of_the_guest_through_pyverbs(joint: Joint, transport: str) -> None:
    joint.line.pump = lambda: time.sleep(0.001)
    first = joint.queue(f"first {transport}", transport, psn_start=PSN_START)
    second = joint.queue(f"second {transport}", transport, psn_start=PSN_START)
    memory, answers = second.register(SLOTS, STRIDE), first.register(8, STRIDE)
    first.connect(second.address())
    second.connect(first.address())
    got = transfer(first, second, memory, MESSAGES)
    assert got.messages == MESSAGES
    assert all(done.arrival == Arrival.IN_ORDER for done in got.completions)
    assert got.completions[-1].psn < PSN_START
    second.post_send(b"an answer")
    for _ in seconds(10):
        if done := first.poll(1):
            break
    assert (done[0].kind, done[0].slot, done[0].length) == ("send", 0, 9)
    assert bytes(answers[:9]) == b"an answer"
    first.close()
    second.close()


@pytest.mark.parametrize("what", ["key", "bounds"])
def test_rxe_refuses_access_and_our_pair_ends_in_error(joint: Joint, what: str) -> None:
    ends = joint.ends("rc")
    peer = ends.guest.address()
    change = {"rkey": peer.rkey ^ 0x55} if what == "key" else {"base_va": peer.base_va + (1 << 30)}
    ends.host.connect(replace(peer, **change))
    ends.host.post_write_imm(b"x", 0)
    for _ in seconds(10):
        ends.host.poll(1)
        if ends.host.error:
            break
    assert "0x62" in ends.host.error
    assert not any(ends.guest_memory[:64])
    ends.close()


@pytest.mark.soak
@pytest.mark.needs("tap")
def test_soft_roce_through_a_tap_device(joint: Joint) -> None:
    """UDP, IPv4 and ARP are this machine's kernel's: the ICRC that we computed is right there."""
    cable = joint.cable()
    numbers = [cable.fileno(), joint.guest.channel.fileno()]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tap_child.py")), *map(str, numbers)],
        pass_fds=numbers, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    cable.close()
    assert done.returncode == 0, done.stdout + done.stderr
    right = {"to guest": True, "from guest": True, "error": ""}
    assert json.loads(done.stdout) == {"rc": right, "uc": right}
