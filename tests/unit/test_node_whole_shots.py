"""RPC predecode inside the session: a whole shot in one message, settled once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_peer import (
    BLOCKS,
    DECIDE,
    OBSERVABLES,
    SLOTS,
    T0_NS,
    T0_PS,
    R,
    config,
    enqueue,
    get,
)

from gpu_decoder.protocol import Reason
from hil.errors import UsageError
from hil.node.endpoints import slot_bytes
from hil.node.session import Session
from hil.node.shots import Action, Answerer, Decode, Release, Reply, StampShot, Start
from hil.timebase import PS_PER_MS
from hil.wire.predecode import Correction, Predecode, build_predecode, parse_correction
from hil.wire.rpc import Status, pad, ptp_from_ns

D = sum(len(block) for block in BLOCKS)
BITS = np.array([1, 0, 1, 1, 0, 0, 1], np.uint8)
WHOLE = {"predecode": True, "n_observables": 1}


def whole(shot: int, detectors: bytes = BITS.tobytes(), stamp: int = ptp_from_ns(T0_NS)) -> bytes:
    return pad(build_predecode(Predecode(shot & 0xFFFFFFFF, stamp, detectors)))


class Peer:
    """Feeds a session; keeps the answers, the jobs and the rows."""

    def __init__(self, **changes: object) -> None:
        self.session = Session(config(**WHOLE, **changes), (1, 2))
        self.now_ps = T0_PS
        self.answers: list[tuple[int, int, Correction | None]] = []
        self.starts: list[Start] = []
        self.rows: dict[int, dict[str, object]] = {}
        self.released: list[int] = []

    def send(self, data: bytes, slot: int | None = None) -> None:
        where = int.from_bytes(data[12:16], "little") % SLOTS if slot is None else slot
        self.keep(self.session.message(memoryview(data), where, self.now_ps, self.now_ps))

    def keep(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    response, correction = parse_correction(action.data)
                    self.answers.append((response.request_id, response.status, correction))
                    if action.shot >= 0:
                        self.keep(self.session.reply_sent(action.shot, self.now_ps))
                case Start():
                    self.starts.append(action)
                case Release():
                    self.released += action.slots
                case StampShot():
                    self.rows[action.shot] = action.row

    def done(self, shot: int, prediction: bytes, failed: Reason = Reason.NONE) -> None:
        result = Decode(self.now_ps - 5, self.now_ps, prediction, failed)
        self.keep(self.session.primary_done(shot, result, self.now_ps))

    def fallback(self, shot: int, prediction: bytes) -> None:
        result = Decode(self.now_ps - 5, self.now_ps, prediction)
        self.keep(self.session.fallback_done(shot, result, self.now_ps))


def test_a_whole_shot_is_decoded_and_answered_once() -> None:
    peer = Peer()
    peer.send(whole(0))
    (job,) = peer.starts
    bits = np.unpackbits(np.frombuffer(job.detectors_b8, np.uint8), count=D, bitorder="little")
    assert bits.tolist() == BITS.tolist(), "byte i of the message is detector i"
    assert peer.released == [0], "the slot is free as soon as a worker has the shot"
    assert peer.answers == []
    peer.done(0, b"\x01")
    assert peer.answers == [(0, Status.OK, Correction(1, 1))]
    assert peer.rows[0]["path"] == Answerer.PRIMARY
    assert peer.rows[0]["n_events"] == 4
    peer.send(whole(0))
    assert len(peer.answers) == len(peer.starts) == 1
    assert peer.session.counters()["duplicate"] == R + 1


def test_an_answer_of_the_fallback_has_not_converged() -> None:
    peer = Peer(**DECIDE)
    peer.send(whole(0))
    peer.done(0, b"", Reason.PREDECODER_ERROR)
    assert [job.fallback for job in peer.starts] == [False, True]
    peer.fallback(0, b"\x01")
    assert peer.answers == [(0, Status.OK, Correction(1, 0))]
    assert peer.rows[0]["reason"] == Reason.PREDECODER_ERROR


def test_the_deadline_counts_from_the_stamp_of_the_message() -> None:
    peer = Peer(**DECIDE)
    peer.send(whole(0))
    peer.now_ps += 2 * PS_PER_MS
    peer.keep(peer.session.tick(peer.now_ps))
    assert [job.fallback for job in peer.starts] == [False, True]


def test_both_ways_of_sending_share_one_session() -> None:
    peer = Peer()
    for block in range(R):
        peer.session.message(memoryview(enqueue(0, block)), block, 0, peer.now_ps)
    peer.session.message(memoryview(get(0, return_size=1)), R, 0, peer.now_ps)
    peer.send(whole(1))
    in_blocks = peer.session.primary_done(0, Decode(0, 1, b"\x00"), peer.now_ps)
    assert [a.shot for a in in_blocks if isinstance(a, Reply)] == [0]
    peer.keep([a for a in in_blocks if isinstance(a, Start)])
    peer.done(1, b"\x01")
    assert peer.answers == [(1, Status.OK, Correction(1, 1))]
    counters = peer.session.counters()
    assert (counters["gaps"], counters["lost"], counters["enqueue"]) == (0, 0, R)
    assert counters["predecode"] == 1


def test_a_lost_whole_shot_is_counted_by_its_messages() -> None:
    peer = Peer()
    peer.send(whole(0))
    peer.send(whole(2))
    counters = peer.session.counters()
    assert (counters["gaps"], counters["lost"]) == (1, R + 1)


def test_a_late_whole_shot_is_declared_not_decoded() -> None:
    peer = Peer()
    peer.send(whole(1))
    peer.send(whole(0))
    assert [job.shot for job in peer.starts] == [1]
    peer.done(1, b"\x00")
    assert sorted(peer.answers) == [
        (0, Status.SYNDROMES_DROPPED, None),
        (1, Status.OK, Correction(0, 1)),
    ]


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (whole(0, bytes([0, 1])), "bad_request"),
        (whole(0, BITS.tobytes() + b"\x00"), "bad_request"),
        (whole(0, stamp=0), "bad_request"),
        (whole(0, stamp=1_000_000_000), "bad_request"),
        (whole(0)[:24] + b"\x02" + whole(0)[25:], "bad_arguments"),
        (whole(0)[:8] + b"\xff\xff\x00\x00" + whole(0)[12:], "bad_length"),
        (whole(0)[:8] + bytes(4) + whole(0)[12:], "bad_length"),
    ],
    ids=["short", "long", "no stamp", "no nanosecond", "no bit", "beyond the slot", "empty"],
)
def test_what_cannot_be_served_is_answered_once_and_counted(data: bytes, counted: str) -> None:
    peer = Peer()
    peer.send(data)
    peer.send(data)
    assert peer.answers == [(0, Status.BAD_REQUEST, None)]
    assert peer.session.counters()[counted] >= 1
    assert peer.starts == []
    assert peer.released == [0, 0]
    peer.send(whole(1))
    assert len(peer.starts) == 1, "the next shot is served"


def test_a_wrong_slot_is_refused() -> None:
    peer = Peer()
    peer.send(whole(1), slot=5)
    assert peer.answers == [(1, Status.BAD_REQUEST, None)]
    assert peer.starts == []


def test_a_whole_shot_that_finds_its_slot_owned_is_answered_busy() -> None:
    peer = Peer()
    peer.keep(peer.session.refused(whole(3)[:24], 3, peer.now_ps))
    assert peer.answers == [(3, Status.BUSY, None)]
    assert peer.rows[3]["reason"] == Reason.QUEUE_FULL


def test_a_shot_that_came_in_blocks_is_not_taken_again() -> None:
    peer = Peer()
    peer.session.message(memoryview(enqueue(0, 0)), 0, 0, peer.now_ps)
    peer.send(whole(0))
    assert peer.answers == [(0, Status.BAD_REQUEST, None)]
    assert peer.starts == []


def test_request_ids_wrap_where_shots_do_not() -> None:
    first = (1 << 32) - 2
    peer = Peer(first_shot=first)
    for shot in range(first, first + 4):
        peer.send(whole(shot))
        peer.done(shot, b"\x01")
    assert [(rid, status) for rid, status, _ in peer.answers] == [
        (shot & 0xFFFFFFFF, Status.OK) for shot in range(first, first + 4)
    ]
    assert peer.session.counters()["gaps"] == 0


def test_a_node_that_does_not_serve_it_says_nothing() -> None:
    """Without its envelope the request id of an unknown function cannot be trusted."""
    session = Session(config())
    actions = session.message(memoryview(whole(0)), 0, 0, T0_PS)
    assert actions == [Release((0,))]
    assert session.counters()["bad_function"] == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 255)), max_size=12))
def test_whatever_comes_no_shot_is_answered_twice(frames: list[tuple[int, int, int]]) -> None:
    """Messages of six shots, each with one byte overwritten, copies and late ones among them."""
    peer = Peer()
    for shot, at, value in frames:
        data = bytearray(whole(shot))
        data[at] = value
        peer.send(bytes(data), slot=shot)
        for job in peer.starts:
            if job.shot not in peer.rows:
                peer.done(job.shot, b"\x01")
    settled = [rid for rid, status, _ in peer.answers if status == Status.OK]
    assert len(settled) == len(set(settled)) == len(peer.starts)
    assert sorted(set(peer.released)) == sorted({shot for shot, _, _ in frames})
    assert len(peer.released) == len(frames), "every frame gave its slot back"


def test_configuration() -> None:
    assert slot_bytes(config(**WHOLE)) >= 24 + D
    big = config(
        **{**WHOLE, "block_detectors": (tuple(range(17_472)),)},
    )
    assert slot_bytes(big) == 17_536
    with pytest.raises(UsageError, match="predecode"):
        config(predecode=True, n_observables=OBSERVABLES)
