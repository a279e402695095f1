from __future__ import annotations

import struct

import pytest
from node_peer import (
    BLOCKS,
    BOARDS,
    DECIDE,
    EPOCH,
    T0_PS,
    Peer,
    R,
    config,
    enqueue,
    get,
    resealed,
    statuses,
)

from gpu_decoder.protocol import Reason
from hil.node.session import HISTORY_SHOTS, Session
from hil.node.shots import (
    Answerer,
    Hold,
    Start,
)
from hil.rack.timeline import Path as RackPath
from hil.timebase import MISSING_PS, PS_PER_MS
from hil.wire.rpc import (
    Envelope,
    Request,
    ResetDecoder,
    Status,
    build_request,
    pad,
)


def test_codes_of_answerers_equal_those_of_the_rack() -> None:
    assert {a.name: int(a) for a in Answerer} == {p.name: int(p) for p in RackPath}


def test_a_shot_in_order_is_answered_with_the_decoders_bits() -> None:
    peer = Peer(Session(config(), (2, 0)))
    assert statuses(peer.whole(0)) == [0] * R
    assert peer.starts == [Start(False, 0, b"\x00", 0)]
    assert not peer.owned, "slots are free as soon as the window is taken"
    assert peer.send(get(0)) == []
    assert not peer.owned, "a request holds its slot only while the window waits"
    (reply,) = peer.primary(0)
    assert (reply.status, reply.result, reply.request_id) == (0, b"\x05\x01", R)
    assert reply.envelope == Envelope(EPOCH, BOARDS, 78)
    row = peer.rows[0]
    assert (row["path"], row["reason"], row["executed_primary"]) == (0, 0, 2)
    assert row["t_reply_tx_ps"] == peer.now_ps
    assert row["t_decode_end_ps"] == peer.now_ps
    assert [f.counter for f in peer.frames] == [0, 1, 2]
    assert all(f.t_visible_ps - f.t_rx_ps == 10 for f in peer.frames)


def test_a_ready_answer_goes_out_with_the_request() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    assert peer.primary(0) == []
    assert statuses(peer.send(get(0))) == [0]


@pytest.mark.parametrize("detector", range(7))
def test_walking_one_lands_on_its_detector(detector: int) -> None:
    peer = Peer(Session(config()))
    for block, places in enumerate(BLOCKS):
        peer.send(enqueue(0, block, [int(place == detector) for place in places]))
    assert peer.starts[0].detectors_b8 == bytes([1 << detector])


def test_blocks_land_by_counter_whatever_their_order() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0, [1, 0]))
    assert statuses(peer.send(enqueue(0, 2, [0, 1]))) == [Status.SYNDROMES_DROPPED]
    assert peer.send(get(0)) == []
    assert statuses(peer.send(enqueue(0, 1, [1, 1, 1]))) == [0]
    assert peer.starts[0].detectors_b8 == bytes([1 << 4 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 5])
    assert peer.session.counters()["reordered"] == 1
    assert peer.session.counters()["lost"] == 0
    assert statuses(peer.primary(0)) == [0]


def test_a_lost_block_is_declared_when_a_newer_shot_shows() -> None:
    peer = Peer(Session(config()))
    peer.whole(0, blocks=(0, 2))
    assert peer.send(get(0)) == []
    replies = peer.send(enqueue(1, 0))
    assert statuses(replies) == [Status.SYNDROMES_DROPPED, 0]
    assert peer.rows[0]["reason"] == Reason.TRANSPORT_LOSS
    assert peer.rows[0]["path"] == Answerer.UNANSWERED
    late = peer.send(enqueue(0, 1))
    assert statuses(late) == [Status.SYNDROMES_DROPPED]
    assert peer.starts == [], "a late block never completes a shot that is settled"
    assert peer.owned == {R + 1}, "only the newer shot's frame holds a slot"


def test_a_lost_request_leaves_its_shot_undelivered() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    peer.primary(0)
    for shot in range(1, HISTORY_SHOTS + 3):
        peer.whole(shot)
        peer.send(get(shot))
        peer.primary(shot)
    assert peer.rows[0]["t_reply_tx_ps"] == MISSING_PS
    assert peer.session.counters()["answers_undelivered"] == 1
    assert peer.send(get(0)) == [], "stale: it gets no reply"
    assert peer.session.counters()["stale"] == 1


def test_a_shot_that_was_never_seen_is_declared_to_its_late_request() -> None:
    peer = Peer(Session(config()))
    peer.whole(1)
    assert statuses(peer.send(get(0))) == [Status.SYNDROMES_DROPPED]
    assert peer.session.counters()["lost"] == R


def test_the_last_shot_is_declared_after_the_gap_timeout() -> None:
    peer = Peer(Session(config(gap_timeout_ps=PS_PER_MS)))
    peer.whole(0, blocks=(0, 1))
    peer.send(get(0))
    timer_ps = peer.session.next_timer_ps()
    assert timer_ps == peer.now_ps + PS_PER_MS
    assert peer.until(timer_ps - 1) == []
    assert statuses(peer.until(timer_ps)) == [Status.SYNDROMES_DROPPED]
    assert peer.session.next_timer_ps() is None
    assert not peer.owned


def test_duplicates_are_counted_and_get_no_second_reply() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0, [1, 0]))
    assert peer.send(enqueue(0, 0, [0, 1])) == []
    assert peer.refuse(enqueue(0, 0)) == [], "a copy that finds the original's slot is no BUSY"
    peer.send(enqueue(0, 1))
    peer.send(enqueue(0, 2))
    assert peer.starts[0].detectors_b8 == bytes([1 << 4])
    peer.send(get(0))
    assert statuses(peer.primary(0)) == [0]
    assert peer.send(get(0)) == []
    assert peer.session.counters()["duplicate"] == 3
    assert "busy" not in peer.session.counters()


def test_a_refused_block_is_answered_busy_and_declares_its_shot() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0))
    assert statuses(peer.refuse(enqueue(0, 1))) == [Status.BUSY]
    assert not peer.owned
    assert statuses(peer.send(enqueue(0, 2))) == [Status.SYNDROMES_DROPPED]
    assert statuses(peer.send(get(0))) == [Status.BUSY]
    assert peer.rows[0]["reason"] == Reason.QUEUE_FULL
    assert peer.session.counters()["busy"] == 1
    assert peer.session.counters()["lost"] == 0, "refused is not lost"


def test_a_refused_request_is_answered_busy_even_if_the_answer_is_ready() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    peer.primary(0)
    assert statuses(peer.refuse(get(0))) == [Status.BUSY]
    assert peer.rows[0]["path"] == Answerer.UNANSWERED
    counters = peer.session.counters()
    assert (counters["shots_primary"], counters["shots_unanswered"]) == (0, 1)


def test_a_window_declared_while_it_waits_never_occupies_a_worker() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    peer.send(get(0))
    peer.whole(1)
    assert not statuses(peer.refuse(get(1))), "its reply waits for the one of shot 0"
    peer.whole(2)
    assert statuses(peer.primary(0)) == [Status.OK, Status.BUSY]
    assert [start.shot for start in peer.starts] == [0, 2]


def test_replies_leave_in_the_order_of_the_requests() -> None:
    """The response ring is strictly round robin: an early answer waits for its predecessors."""
    peer = Peer(Session(config(primary_workers=2)))
    for shot in (0, 1):
        peer.whole(shot)
        peer.send(get(shot))
    assert not statuses(peer.primary(1))
    assert [reply.request_id for reply in peer.primary(0)] == [R, 2 * R + 1]


@pytest.mark.parametrize(
    ("message", "status", "cause"),
    [
        (enqueue(0, 0, decoder_id=1), Status.INVALID_DECODER, "bad_decoder_id"),
        (enqueue(0, 0, mapping_id=1), Status.BAD_REQUEST, "bad_arguments"),
        (enqueue(0, 0, num_syndromes=3), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, ptp_timestamp=0), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, ptp_timestamp=1_000_000_000), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, request_id=9), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, counter=-4, request_id=0xFFFFFFFC), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, counter=R, request_id=R), Status.BAD_REQUEST, "bad_request"),
        (enqueue(1 << 24, 0), Status.BAD_REQUEST, "bad_request"),
        (get(0, request_id=1), Status.BAD_REQUEST, "bad_request"),
        (enqueue(0, 0, envelope=Envelope(8, BOARDS, 0)), Status.BAD_REQUEST, "bad_epoch"),
        (enqueue(0, 0, envelope=Envelope(7, 1, 0)), Status.SYNDROMES_DROPPED, "bad_boards"),
        (get(0, return_size=3), Status.BAD_REQUEST, "bad_request"),
        (get(0, reset=0), Status.BAD_REQUEST, "bad_request"),
        (get(0, ptp_timestamp=0), Status.BAD_REQUEST, "bad_request"),
        (resealed(enqueue(0, 0)[:4] + b"\1\2\3\4" + enqueue(0, 0)[8:]), -1, "bad_function"),
        (enqueue(0, 0)[:4] + b"\1\2\3\4" + enqueue(0, 0)[8:], None, "bad_function"),
        (resealed(get(0)[:4] + enqueue(0, 0)[4:8] + get(0)[8:]), 2, "bad_length"),
        (enqueue(0, 0)[:8] + struct.pack("<I", 999) + enqueue(0, 0)[12:], None, "bad_length"),
        (b"\0" + enqueue(0, 0)[1:], None, "bad_magic"),
        (enqueue(0, 0)[:56] + b"\3" + enqueue(0, 0)[57:], None, "bad_envelope_crc"),
        (enqueue(0, 0)[:20], None, "bad_length"),
    ],
)
def test_every_field_is_checked_and_counted_by_cause(
    message: bytes, status: int | None, cause: str
) -> None:
    peer = Peer(Session(config()))
    assert statuses(peer.send(message)) == ([] if status is None else [status])
    assert peer.session.counters()[cause] == 1
    assert not peer.owned
    assert peer.starts == []


@pytest.mark.parametrize("byte", [4, 12, 16, 24, 32, 48, 56, 57, 61, 65, 69])
def test_a_flipped_bit_that_no_link_check_sees_is_caught_before_placement(byte: int) -> None:
    message = bytearray(enqueue(0, 1, [1, 0, 1]))
    message[byte] ^= 2
    peer = Peer(Session(config()))
    slot = R + 2
    peer.take(peer.session.message(memoryview(message), slot, peer.now_ps, peer.now_ps))
    assert peer.frames == []
    assert sum(n for name, n in peer.session.counters().items() if name.startswith("bad_")) == 1


def test_a_message_in_a_foreign_slot_is_refused() -> None:
    peer = Peer(Session(config()))
    actions = peer.session.message(memoryview(enqueue(0, 0)), 5, peer.now_ps, peer.now_ps)
    assert statuses(peer.take(actions)) == [Status.BAD_REQUEST]
    assert peer.session.refused(enqueue(0, 0)[:24], 5, peer.now_ps) == []
    counters = peer.session.counters()
    assert (counters["bad_slot"], counters["bad_request"], counters["received"]) == (1, 1, 0)


def test_a_refused_frame_is_not_believed_far_ahead() -> None:
    """Its CRC is unknown: a wrong request id must not make the session skip shots."""
    peer = Peer(Session(config()))
    assert peer.refuse(enqueue(16, 0)) == []
    assert statuses(peer.whole(0)) == [0] * R


def test_a_malformed_block_fails_its_shot_as_in_the_reference() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0, ptp_timestamp=0))
    peer.whole(0, blocks=(1, 2))
    assert statuses(peer.send(get(0))) == [Status.INTERNAL_ERROR]


def test_a_wrong_epoch_declares_the_shot() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0, envelope=Envelope(8, BOARDS, 0)))
    peer.whole(0, blocks=(1, 2))
    peer.send(get(0))
    assert peer.rows[0]["reason"] == Reason.EPOCH_MISMATCH


def test_a_decoder_that_raises_is_reported() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    peer.send(get(0))
    assert statuses(peer.primary(0, b"")) == [Status.INTERNAL_ERROR]
    assert peer.rows[0]["reason"] == Reason.OUTPUT_INVALID
    assert peer.session.counters()["decoder_errors"] == 1


def test_reset_declares_what_is_incomplete() -> None:
    peer = Peer(Session(config()))
    peer.send(enqueue(0, 0))
    message: Request = ResetDecoder(99, 0, 0, Envelope(EPOCH, BOARDS, 0))
    assert statuses(peer.send(pad(build_request(message)))) == [0]
    peer.whole(0, blocks=(1, 2))
    assert statuses(peer.send(get(0))) == [Status.SYNDROMES_DROPPED]


def test_request_ids_wrap_where_counters_do_not() -> None:
    first = ((1 << 32) - 2) // (R + 1)
    peer = Peer(Session(config(first_shot=first)))
    for shot in range(first, first + 3):
        assert statuses(peer.whole(shot)) == [0] * R
        peer.send(get(shot))
        assert statuses(peer.primary(shot)) == [0]
    assert (first + 2) * (R + 1) > 1 << 32
    assert peer.session.counters()["gaps"] == 0


def test_late_primary_gives_way_to_the_fallback_and_its_result_is_discarded() -> None:
    peer = Peer(Session(config(**DECIDE), (2, 1)))
    peer.whole(0)
    peer.send(get(0))
    deadline_ps = T0_PS + DECIDE["primary_deadline_ps"]
    assert peer.session.next_timer_ps() == deadline_ps
    peer.until(deadline_ps)
    assert [start.fallback for start in peer.starts] == [False, True]
    (reply,) = peer.fallback(0)
    assert (reply.status, reply.result) == (0, b"\x02\x00")
    assert 0 not in peer.rows, "the primary is still busy with it"
    assert peer.primary(0) == []
    row = peer.rows[0]
    assert (row["path"], row["reason"]) == (Answerer.FALLBACK, Reason.DEADLINE)
    assert (row["executed_primary"], row["executed_fallback"]) == (2, 1)
    assert row["t_decode_end_ps"] == row["fallback_end_ps"]
    assert peer.session.counters()["results_discarded"] == 1


def test_a_fallback_that_cannot_make_it_is_declared() -> None:
    slow = {**DECIDE, "fallback_pred": ((0, 3 * PS_PER_MS),)}
    peer = Peer(Session(config(**slow)))
    peer.whole(0)
    peer.send(get(0))
    replies = peer.until(T0_PS + DECIDE["primary_deadline_ps"])
    assert statuses(replies) == [Status.DEADLINE_MISSED]
    assert peer.primary(0) == []
    assert (peer.rows[0]["path"], peer.rows[0]["reason"]) == (2, Reason.DEADLINE)


def test_prediction_of_the_fallback_follows_the_event_count() -> None:
    points = ((0, 100), (10, 200), (20, 1200))
    made = config(**{**DECIDE, "fallback_pred": points})
    assert [made.fallback_pred_ps(n) for n in (0, 5, 10, 11, 15, 20, 99)] == [
        *(100, 150, 200, 300, 700, 1200, 1200)
    ]


def test_measure_mode_asks_for_a_second_opinion_off_the_answers_path() -> None:
    peer = Peer(Session(config(fallback="pymatching"), (2, 1)))
    for shot in (0, 1):
        peer.whole(shot)
        peer.send(get(shot))
    assert [(s.shot, s.fallback) for s in peer.starts] == [(0, False)]
    assert statuses(peer.primary(0)) == [0]
    assert [(s.shot, s.fallback) for s in peer.starts[1:]] == [(1, False), (0, True)]
    assert peer.rows == {}
    assert peer.fallback(0) == []
    row = peer.rows[0]
    assert row["path"] == Answerer.PRIMARY
    assert bytes(row["fallback_prediction_b8"]) == b"\x02\x00"
    assert row["fallback_end_ps"] == peer.now_ps


def test_injected_queue_delay_holds_a_complete_window() -> None:
    delays = {"queue_ps": 500, "from_shot": {"queue": 1}}
    peer = Peer(Session(config(delays=delays, primary_workers=2)))
    peer.whole(0)
    peer.whole(1)
    assert [s.shot for s in peer.starts] == [0]
    assert peer.holds == [Hold(1, 500)]
    peer.take(peer.session.eligible(1, peer.now_ps + 500))
    assert [s.shot for s in peer.starts] == [0, 1]


def test_a_window_declared_while_it_is_held_is_never_queued() -> None:
    peer = Peer(Session(config(delays={"queue_ps": 500_000})))
    for shot in range(3):
        peer.whole(shot)
    peer.refuse(get(1))
    for shot in range(3):
        peer.take(peer.session.eligible(shot, peer.now_ps + 500_000))
    for shot in (0, 2):
        peer.send(get(shot))
        peer.primary(shot)
    assert [s.shot for s in peer.starts] == [0, 2]
    assert [peer.rows[shot]["queue_depth"] for shot in (0, 2)] == [0, 0]


def test_every_block_behind_a_gap_says_so() -> None:
    peer = Peer(Session(config()))
    assert statuses(peer.whole(0, blocks=(1, 2))) == [Status.SYNDROMES_DROPPED] * 2
    assert statuses(peer.whole(1)) == [Status.SYNDROMES_DROPPED, 0, 0], "shot 0's request is lost"


def test_decode_delay_and_stall_add_up_in_the_primarys_job() -> None:
    delays = {"decode_ps": 5, "stalls_ps": {1: 70}}
    peer = Peer(Session(config(delays=delays, primary_workers=2)))
    peer.whole(0)
    peer.whole(1)
    assert [s.extra_ps for s in peer.starts] == [5, 75]


def test_finish_declares_what_is_open_and_counts_the_tail() -> None:
    peer = Peer(Session(config()))
    peer.whole(0)
    peer.send(enqueue(1, 0))
    peer.take(peer.session.finish(3 * (R + 1)))
    assert peer.rows[0]["reason"] == Reason.DEVICE_LOST
    assert peer.rows[1]["reason"] == Reason.TRANSPORT_LOSS
    assert peer.session.counters()["lost"] == 3 * (R + 1) - (R + 1)
