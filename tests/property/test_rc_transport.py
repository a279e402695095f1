"""The two halves of an RC queue pair over a channel that loses, repeats, reorders and spoils.

No socket and no clock: time is a number that the test moves on. Whatever the channel does, the
receiver must get every message once, in order and unchanged, or the sender must be in error.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.link.rc_pair import RcPair
from hil.link.rc_requester import RcAttributes
from hil.link.slots import BASE_VA, Slots
from hil.wire.icrc import IcrcPath
from hil.wire.roce import Target

SLOTS, STRIDE, MTU = 4, 1024, 256
UP, DOWN = (
    IcrcPath("10.0.0.1", "10.0.0.2", 4791, 4791),
    IcrcPath("10.0.0.2", "10.0.0.1", 4791, 4791),
)
FLIGHT_PS = 2_000_000
RULES = RcAttributes(path_mtu=MTU, timeout=5, window_packets=16, queue_packets=64, min_rnr_timer=1)


@dataclass(frozen=True)
class Trouble:
    """Probabilities per datagram; ``spread_ps``: random extra flight time, which reorders."""

    lose: float = 0.0
    repeat: float = 0.0
    spoil: float = 0.0
    spread_ps: int = 0


@dataclass
class World:
    """Two joined pairs; ``rack`` sends, ``node`` receives and lends slots for ``hold_ps``."""

    trouble: Trouble
    seed: int
    psn: int = 0
    hold_ps: int = 0
    rules: RcAttributes = RULES
    now_ps: int = 0
    delivered: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.slots = Slots(0x77)
        self.memory = self.slots.register(SLOTS, STRIDE)
        self.rack = RcPair(1, 0, Slots(0), self.rules)
        self.node = RcPair(2, self.psn, self.slots, self.rules)
        self.rack.connect(Target(2, 0x77, BASE_VA, STRIDE), self.psn)
        self.node.connect(Target(1, 0, 0, 128), 0)
        self.air: list[tuple[int, int, bool, bytearray]] = []
        self.lent: list[tuple[int, int]] = []
        self.count = 0

    def send(self, payload: bytes, slot: int) -> bool:
        """Post one write with immediate, or a send for slot -1."""
        packets = (
            self.rack.send_packets(payload)
            if slot < 0
            else self.rack.write_packets(payload, slot, with_imm=True)
        )
        return self.rack.post([bytearray(p.pack() + bytes(4)) for p in packets])

    def launch(self) -> None:
        """Put on the wire what the two ends want to send now, through the trouble."""
        for pair, path in ((self.rack, UP), (self.node, DOWN)):
            for datagram in pair.outgoing(self.now_ps):
                path.seal(datagram)
                dice = self.random.random
                if dice() < self.trouble.lose:
                    continue
                for _ in range(1 + (dice() < self.trouble.repeat)):
                    copy = bytearray(datagram)
                    if dice() < self.trouble.spoil:
                        copy[self.random.randrange(len(copy))] ^= 1 << self.random.randrange(8)
                    delay_ps = FLIGHT_PS + self.random.randrange(self.trouble.spread_ps + 1)
                    self.count += 1
                    entry = (self.now_ps + delay_ps, self.count, pair is self.rack, copy)
                    heapq.heappush(self.air, entry)

    def step(self) -> bool:
        """Move to the next event and carry it out; False if nothing will ever happen."""
        pairs = (self.rack, self.node)
        timers = [t for t in (pair.next_timer_ps() for pair in pairs) if t is not None]
        timers += [self.air[0][0]] if self.air else []
        timers += [self.lent[0][0]] if self.lent else []
        if not timers:
            return False
        self.now_ps = max(self.now_ps, min(timers))
        while self.lent and self.lent[0][0] <= self.now_ps:
            self.slots.release(self.lent.pop(0)[1])
        while self.air and self.air[0][0] <= self.now_ps:
            _, _, up, datagram = heapq.heappop(self.air)
            pair, path = (self.node, UP) if up else (self.rack, DOWN)
            done = pair.accept(memoryview(datagram), path, self.now_ps)
            if done is not None:
                at = done.slot * STRIDE
                self.delivered.append(bytes(self.memory[at : at + done.length]))
                self.lent.append((self.now_ps + self.hold_ps, done.slot))
            if self.lent and not self.hold_ps:
                self.slots.release(self.lent.pop()[1])
        for pair in pairs:
            pair.expire(self.now_ps)
        self.launch()
        return True

    def run(self, messages: list[tuple[bytes, int]], steps: int = 50_000) -> None:
        """Send all messages, waiting for room, and go on until nothing happens any more."""
        waiting = list(messages)
        for _ in range(steps):
            while waiting and not self.rack.error and self.send(*waiting[0]):
                waiting.pop(0)
            self.launch()
            if not self.step():
                break
        else:
            raise AssertionError("never comes to rest")
        assert self.rack.error or (not waiting and self.rack.requester.idle)


def messages(seed: int, number: int, *, sends: bool) -> list[tuple[bytes, int]]:
    rng = random.Random(seed)
    sizes = [rng.choice((0, 1, 48, MTU, MTU + 1, 3 * MTU, STRIDE)) for _ in range(number)]
    return [(rng.randbytes(size), -1 if sends else k % SLOTS) for k, size in enumerate(sizes)]


TROUBLES = st.builds(
    Trouble,
    lose=st.sampled_from((0.0, 0.02, 0.1, 0.3)),
    repeat=st.sampled_from((0.0, 0.05, 0.3)),
    spoil=st.sampled_from((0.0, 0.02, 0.1)),
    spread_ps=st.sampled_from((0, 3_000_000, 30_000_000)),
)


@settings(max_examples=80, deadline=None)
@given(
    TROUBLES,
    st.integers(0, 2**32),
    st.sampled_from((0, 1, 2**23 - 5, 2**24 - 1, 2**24 - 16)),
    st.sampled_from((0, 1_000_000, 50_000_000)),
    st.booleans(),
)
def test_every_message_arrives_once_and_in_order_or_the_sender_is_in_error(
    trouble: Trouble, seed: int, psn: int, hold_ps: int, sends: bool
) -> None:
    world = World(trouble, seed, psn, hold_ps)
    wanted = messages(seed, 25, sends=sends)
    world.run(wanted)
    payloads = [payload for payload, _ in wanted]
    assert world.delivered == payloads[: len(world.delivered)]
    if not world.rack.error:
        assert world.delivered == payloads
        assert world.rack.requester.psn == world.node.responder.expected
    assert not world.node.error, "trouble on the wire is never the peer's fault"


def test_moderate_trouble_never_ends_in_error() -> None:
    """8 of 8 in a row lost has probability 0.19^8 per packet: the runs must all come through."""
    totals = dict.fromkeys(("retransmit", "timeouts", "rx_nak", "rx_rnr"), 0)
    for seed in range(15):
        world = World(Trouble(0.1, 0.05, 0.02, 5_000_000), seed, 0xFFFFF0, 20_000_000)
        wanted = messages(seed, 40, sends=False)
        world.run(wanted)
        assert not world.rack.error
        assert world.delivered == [payload for payload, _ in wanted]
        for name in totals:
            totals[name] += world.rack.counts[name]
        assert world.node.counts["drop_icrc"] + world.rack.counts["drop_icrc"] > 0
    assert min(totals.values()) > 30, totals


def test_a_clean_channel_costs_nothing_extra() -> None:
    world = World(Trouble(), 1)
    wanted = messages(1, 40, sends=False)
    world.run(wanted)
    packets = sum(max(1, -(-len(payload) // MTU)) for payload, _ in wanted)
    rack, node = world.rack.counts, world.node.counts
    assert (rack["tx"], node["rx_ok"]) == (packets, packets)
    assert 1 <= node["tx_ack"] == rack["rx_ack"] <= 40
    extra = ("retransmit", "timeouts", "rx_nak", "rx_rnr")
    assert not any(rack[name] for name in extra)
    assert not any(node[name] for name in ("rx_duplicate", "rx_ahead", "tx_nak", "tx_rnr"))


def test_a_dead_channel_ends_in_error_after_retry_cnt_repetitions() -> None:
    world = World(Trouble(lose=1.0), 1)
    world.run([(b"x", 0)])
    assert "does not acknowledge" in world.rack.error
    counts = world.rack.counts
    assert (counts["timeouts"], counts["retransmit"]) == (RULES.retry_cnt + 1, RULES.retry_cnt)
    assert not world.send(b"y", 1)
    assert world.rack.counts["tx_refused"] == 1
    assert world.rack.outgoing(10**15) == []


@pytest.mark.parametrize("up", [True, False])
def test_random_bytes_change_nothing(up: bool) -> None:
    """Of either half: 20,000 datagrams without a right ICRC, and as many sealed for another QP."""
    world = World(Trouble(), 3)
    assert world.send(b"message", 1)
    world.launch()
    pair, path = (world.node, UP) if up else (world.rack, DOWN)
    before = state(pair)
    rng = random.Random(5)
    for k in range(20_000):
        junk = bytearray(rng.randbytes(rng.randrange(64)))
        if k % 2 and len(junk) >= 16:
            junk[2:4] = b"\xff\xff"
            path.seal(junk)
            if junk[5:8] in (b"\0\0\1", b"\0\0\2"):
                continue
        assert pair.accept(memoryview(junk), path, k) is None
    assert state(pair) == before
    assert not any(world.memory)


def state(pair: RcPair) -> tuple[object, ...]:
    requester, responder = pair.requester, pair.responder
    halves = ((requester, "counts _attributes"), (responder, "counts _slots _attributes"))
    return tuple(
        repr(getattr(half, name))
        for half, left_out in halves
        for name in half.__slots__
        if name not in left_out.split()
    )
