"""Random loss, copies, disorder, full slots, foreign messages and worker timing: every message
gets at most one reply, every shot exactly one fate, and no answer was decoded from spliced bits."""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.node.config import NodeConfig
from hil.node.session import Session
from hil.node.shots import (
    Action,
    Answerer,
    Decode,
    Hold,
    Release,
    Reply,
    StampFrame,
    StampShot,
    Start,
)
from hil.wire.rpc import (
    EnqueueSyndromes,
    Envelope,
    GetCorrections,
    Status,
    build_request,
    pad,
    parse_response,
    ptp_from_ns,
)

BLOCKS = ((3, 0), (1, 4), (2, 5))
R = len(BLOCKS)
STEP_PS = 1_000_000
START_PS = 10**12
ENVELOPE = Envelope(1, 1, 0)


@dataclass(frozen=True)
class Weather:
    """What one example does to the stream."""

    shots: int
    slots: int
    drop: float
    copy: float
    delay: float
    foreign: float
    slow: int  # longest decode in frame times
    decide: bool
    fallback: bool
    workers: int
    queue_delay: int
    seed: int


WEATHER = st.builds(
    Weather,
    shots=st.integers(1, 14),
    slots=st.sampled_from([2, 4, 5, 16, 64]),
    drop=st.sampled_from([0.0, 0.05, 0.3]),
    copy=st.sampled_from([0.0, 0.1, 0.4]),
    delay=st.sampled_from([0.0, 0.1, 0.5]),
    foreign=st.sampled_from([0.0, 0.1]),
    slow=st.integers(1, 30),
    decide=st.booleans(),
    fallback=st.booleans(),
    workers=st.integers(1, 2),
    queue_delay=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)


def make_config(weather: Weather) -> NodeConfig:
    return NodeConfig.create(
        rack_address="127.0.0.2",
        node_address="127.0.0.1",
        ring_slots=weather.slots,
        block_detectors=BLOCKS,
        n_observables=8,
        epoch=1,
        dem_text="",
        primary="pymatching_corr",
        primary_workers=weather.workers,
        fallback="pymatching" if weather.fallback else None,
        mode="decide" if weather.decide else "measure",
        deadline_ps=20 * STEP_PS,
        primary_deadline_ps=9 * STEP_PS,
        primary_pred_ps=3 * STEP_PS,
        fallback_pred=((0, 4 * STEP_PS),),
        gap_timeout_ps=500 * STEP_PS,
        delays={"queue_ps": weather.queue_delay * STEP_PS},
    )


def oracle(detectors_b8: bytes) -> bytes:
    """A decoder whose answer gives its input away."""
    return bytes([zlib.crc32(detectors_b8) & 0xFF])


@dataclass
class World:
    """Slots, workers and clock around a session; checks the rules that hold at every step."""

    weather: Weather
    rng: random.Random
    session: Session
    now_ps: int = START_PS
    owned: set[int] = field(default_factory=set)
    jobs: list[tuple[int, int, Start | Hold]] = field(default_factory=list)
    order: itertools.count = field(default_factory=itertools.count)
    replies: list[tuple[int, int, bytes]] = field(default_factory=list)
    rows: dict[int, dict[str, object]] = field(default_factory=dict)
    stamped: list[int] = field(default_factory=list)
    running: Counter[bool] = field(default_factory=Counter)

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    reply = parse_response(action.data)
                    self.replies.append((reply.request_id, reply.status, reply.result))
                    if action.shot >= 0:
                        self.take(self.session.reply_sent(action.shot, self.now_ps))
                case Release():
                    assert set(action.slots) <= self.owned, "released twice or never owned"
                    assert len(set(action.slots)) == len(action.slots)
                    self.owned -= set(action.slots)
                case Start():
                    self.running[action.fallback] += 1
                    limit = 1 if action.fallback else self.weather.workers
                    assert self.running[action.fallback] <= limit
                    end_ps = self.now_ps + self.rng.randint(1, self.weather.slow) * STEP_PS
                    heapq.heappush(self.jobs, (end_ps, next(self.order), action))
                case Hold():
                    due_ps = self.now_ps + action.delay_ps
                    heapq.heappush(self.jobs, (due_ps, next(self.order), action))
                case StampShot():
                    assert action.shot not in self.rows, "two fates"
                    self.rows[action.shot] = action.row
                case StampFrame():
                    self.stamped.append(action.counter)

    def advance(self, to_ps: int) -> None:
        """Results of workers and timers until ``to_ps``, in order of time."""
        while True:
            timer_ps = self.session.next_timer_ps()
            job_ps = self.jobs[0][0] if self.jobs else None
            next_ps = min((t for t in (timer_ps, job_ps) if t is not None), default=to_ps + 1)
            if next_ps > to_ps:
                break
            self.now_ps = max(self.now_ps, next_ps)
            if job_ps is not None and job_ps <= self.now_ps:
                self.finish_job()
            else:
                self.take(self.session.tick(self.now_ps))
        self.now_ps = to_ps

    def finish_job(self) -> None:
        _, _, job = heapq.heappop(self.jobs)
        if isinstance(job, Hold):
            self.take(self.session.eligible(job.shot, self.now_ps))
            return
        self.running[job.fallback] -= 1
        result = Decode(self.now_ps - 1, self.now_ps, oracle(job.detectors_b8))
        done = self.session.fallback_done if job.fallback else self.session.primary_done
        self.take(done(job.shot, result, self.now_ps))

    def arrive(self, data: bytes, slot: int) -> bool:
        """A frame at the memory: stored, or refused because the slot is owned."""
        if slot in self.owned:
            self.take(self.session.refused(data[:24], slot, self.now_ps))
            return False
        self.owned.add(slot)
        self.take(self.session.message(memoryview(data), slot, self.now_ps, self.now_ps))
        return True


def frames_of(weather: Weather, truth: np.ndarray) -> list[tuple[int, bytes]]:
    """All messages of the stream, as (counter, bytes)."""
    frames: list[tuple[int, bytes]] = []
    for shot in range(weather.shots):
        for block in range(R + 1):
            counter = shot * (R + 1) + block
            t0_ps = START_PS + counter * STEP_PS
            common = (counter, ptp_from_ns(t0_ps // 1000), 0)
            if block == R:
                message = GetCorrections(*common, 8, 1, ENVELOPE)
            else:
                bits = np.packbits(truth[shot, list(BLOCKS[block])], bitorder="little").tobytes()
                message = EnqueueSyndromes(*common, counter, 2, bits, ENVELOPE)
            frames.append((counter, pad(build_request(message))))
    return frames


def schedule(
    weather: Weather, rng: random.Random, frames: list[tuple[int, bytes]]
) -> list[tuple[int, int, bytes]]:
    """When which frame arrives: (instant in ps, counter or -1 for a foreign one, bytes)."""
    arrivals: list[tuple[int, int, bytes]] = []
    for counter, data in frames:
        if rng.random() < weather.drop:
            continue
        late = rng.randint(1, 9) if rng.random() < weather.delay else 0
        arrivals.append((START_PS + (counter + late) * STEP_PS, counter, data))
        if rng.random() < weather.copy:
            again = late + rng.randint(0, 12)
            arrivals.append((START_PS + (counter + again) * STEP_PS + 1, counter, data))
        if rng.random() < weather.foreign:
            spoiled = bytearray(data)
            spoiled[rng.choice([0, 1, 13, 17, 30, 48, 57])] ^= 1 << rng.randrange(8)
            arrivals.append((START_PS + counter * STEP_PS + 2, -1, bytes(spoiled)))
    return sorted(arrivals, key=lambda one: one[0])


def run(weather: Weather) -> tuple[World, np.ndarray, set[int], set[int]]:
    rng = random.Random(weather.seed)
    truth = np.random.default_rng(weather.seed).integers(0, 2, (weather.shots, 6), np.uint8)
    world = World(weather, rng, Session(make_config(weather), (2, 1)))
    arrived: set[int] = set()
    stored: set[int] = set()
    for when_ps, counter, data in schedule(weather, rng, frames_of(weather, truth)):
        world.advance(max(when_ps, world.now_ps))
        slot = rng.randrange(weather.slots) if counter < 0 else counter % weather.slots
        kept = world.arrive(data, slot)
        if counter >= 0 and counter not in arrived:
            arrived.add(counter)
            if kept:
                stored.add(counter)
    world.advance(world.now_ps + 10_000 * STEP_PS)
    assert world.jobs == []
    assert world.session.next_timer_ps() is None
    return world, truth, arrived, stored


@settings(max_examples=400, deadline=None)
@given(WEATHER)
def test_every_message_one_reply_every_shot_one_fate(weather: Weather) -> None:
    world, truth, arrived, stored = run(weather)
    replied = Counter(request_id for request_id, _, _ in world.replies)
    clean = weather.foreign == 0  # a spoiled header may be answered under a wrong id
    if clean:
        assert replied == Counter(arrived), "one reply for each message that arrived, none else"
    for shot in range(weather.shots):
        counters = set(range(shot * (R + 1), (shot + 1) * (R + 1)))
        answers = [r for r in world.replies if r[0] == shot * (R + 1) + R]
        if clean:
            assert len(answers) == (shot * (R + 1) + R in arrived)
        for _, status, result in answers:
            if status != Status.OK:
                assert result == b""
                continue
            assert counters <= arrived
            if clean:
                assert counters <= stored, "no refused or lost block was ever assembled"
            whole = np.packbits(truth[shot], bitorder="little").tobytes()
            assert result == oracle(whole), "the answer belongs to this very shot"
    world.take(world.session.finish(None))
    seen = {counter // (R + 1) for counter in arrived}
    assert seen <= set(world.rows), "every shot that was seen has a fate"
    assert world.owned == set(), "every slot was given back"


@settings(max_examples=100, deadline=None)
@given(WEATHER)
def test_books_add_up(weather: Weather) -> None:
    world, _, arrived, _ = run(weather)
    world.take(world.session.finish(weather.shots * (R + 1)))
    counters = world.session.counters()
    fates = sum(counters.get(f"shots_{a.name.lower()}", 0) for a in Answerer)
    assert fates == len(world.rows)
    if weather.foreign == 0:
        assert counters["lost"] == weather.shots * (R + 1) - len(arrived)
        assert counters["received"] == len(arrived) + counters["duplicate"] + counters["stale"]
        assert len(world.stamped) == len(set(world.stamped))


def test_a_session_that_ignores_counters_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken peer of this test: blocks land in order of arrival, as in the reference."""
    weather = Weather(12, 64, 0.0, 0.0, 0.5, 0.0, 1, False, False, 1, 0, 5)
    place = Session._place

    def splice(self: Session, shot: object, request: EnqueueSyndromes, block: int) -> None:
        place(self, shot, request, bin(shot.received).count("1"))

    monkeypatch.setattr(Session, "_place", splice)
    with pytest.raises(AssertionError):
        test_every_message_one_reply_every_shot_one_fate.hypothesis.inner_test(weather)
