"""The node serves a rack that is not ours: no envelope, any first counter, raw measurements."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.protocol import Reason
from hil.errors import UsageError
from hil.node.config import DetectorMap, NodeConfig
from hil.node.session import Session
from hil.timebase import PS_PER_MS, PS_PER_S
from hil.wire import rpc
from hil.wire.rpc import Response, Status
from tests.stand_ins.nvidia_server import NvidiaServer
from tests.unit import node_peer
from tests.unit.node_peer import DECIDE, OBSERVABLES, SLOTS, Peer, R, decoded

SIZES = (3, 3, 3)
BARE = {"envelope": "nvidia", "start": "open", "block_detectors": ((0, 1, 2), (3, 4, 5), (6, 7, 8))}
PER_SHOT = len(SIZES) + 1


class ForeignRack:
    """A plain sender of the reference protocol: padded messages, slots in turn."""

    def __init__(self, made: NodeConfig, counter: int = 0, slot: int = 0, stamp: int = 0) -> None:
        self.session = Session(made)
        self.peer = Peer(self.session)
        self.counter, self.slot, self.stamp = counter, slot, stamp

    def _send(self, message: bytes) -> list[Response]:
        padded = rpc.pad(message)
        assert len(padded) == 64
        peer, slot = self.peer, self.slot
        peer.now_ps += 1000
        actions = self.session.message(memoryview(padded), slot, peer.now_ps - 10, peer.now_ps)
        self.slot = (slot + 1) % SLOTS
        self.counter += 1
        return peer.take(actions, "nvidia")

    def enqueue(self, bits: Iterable[int], **changes: int) -> list[Response]:
        values = list(bits)
        packed = np.packbits(values, bitorder="little").tobytes()
        fields = {"request_id": self.counter & 0xFFFFFFFF, "counter": self.counter} | changes
        request = rpc.EnqueueSyndromes(
            *(fields["request_id"], self.stamp, 0, fields["counter"], len(values), packed, None)
        )
        return self._send(rpc.build_request(request))

    def get(self) -> list[Response]:
        rid = self.counter & 0xFFFFFFFF
        return self._send(
            rpc.build_request(rpc.GetCorrections(rid, self.stamp, 0, OBSERVABLES, 1, None))
        )

    def reset(self) -> list[Response]:
        actions = self.session.message(
            memoryview(rpc.pad(rpc.build_request(rpc.ResetDecoder(9, 0, 0, None)))), 0, 0, 0
        )
        return self.peer.take(actions, "nvidia")

    def answered(self) -> list[Response]:
        """The window that started last is decoded."""
        start = self.peer.starts[-1]
        result = decoded(self.peer.now_ps, b"\x05\x01")
        return self.peer.take(
            self.session.primary_done(start.shot, result, self.peer.now_ps), "nvidia"
        )

    def events(self) -> list[int]:
        """What went to the decoder last."""
        packed = np.frombuffer(self.peer.starts[-1].detectors_b8, np.uint8)
        return np.unpackbits(packed, count=9, bitorder="little").tolist()


def bare(**changes: object) -> NodeConfig:
    return node_peer.config(**{**BARE, **changes})


@pytest.mark.parametrize("counter", [0, 1, 7, 2**32 - 2, 2**40 + 5])
@pytest.mark.parametrize("slot", [0, 1, SLOTS - 1])
def test_a_plain_sender_is_served_from_any_counter_and_slot(counter: int, slot: int) -> None:
    rack = ForeignRack(bare(), counter, slot, rpc.ptp_from_ns(1_000_000_250))
    shots = [[shot & 1, 1, 0] * 3 for shot in range(40)]  # slots and blocks wrap
    for bits in shots:
        rid = rack.counter & 0xFFFFFFFF
        assert [r.status for r in rack.enqueue(bits[:3])] == [0]
        assert [r.status for r in rack.enqueue(bits[3:6])] == [0]
        assert [r.status for r in rack.enqueue(bits[6:])] == [0]
        assert rack.events() == bits
        assert rack.get() == []
        (answer,) = rack.answered()
        assert (answer.status, answer.result, answer.envelope) == (0, b"\x05\x01", None)
        assert answer.request_id == (rid + 3) & 0xFFFFFFFF
        assert answer.ptp_timestamp == rack.stamp
    counts = rack.session.counters()
    assert (counts["shots_primary"], counts["received"]) == (40, 160)
    assert all(not counts.get(k) for k in ("lost", "gaps", "duplicate", "bad_request", "unstamped"))


def test_a_sender_that_loses_its_first_frame_is_served_from_the_next_shot_on() -> None:
    rack = ForeignRack(bare(), 100)
    rack.counter, rack.slot = 101, 1  # frame 100 is lost
    rack.enqueue([1, 1, 1])
    rack.enqueue([1, 1, 1])
    assert [r.status for r in rack.get()] == [Status.BAD_REQUEST]
    assert rack.peer.starts == []
    for _ in range(2):
        for bits in ([1, 0, 0], [0, 0, 0], [0, 0, 1]):
            assert rack.enqueue(bits)[-1].status in (0, Status.SYNDROMES_DROPPED)
        assert rack.events() == [1, 0, 0, 0, 0, 0, 0, 0, 1]
        rack.get()
        assert [r.status for r in rack.answered()] == [0]
    rack.peer.take(rack.session.finish(None), "nvidia")
    declared = rack.peer.rows[0]
    assert (declared["path"], declared["reason"]) == (2, Reason.TRANSPORT_LOSS)


def test_blocks_of_another_size_do_not_begin_a_stream() -> None:
    made = bare(block_detectors=((0, 1), (2, 3, 4), (5, 6, 7, 8)))
    rack = ForeignRack(made, 50)
    assert [r.status for r in rack.enqueue([1, 1, 1])] == [Status.BAD_REQUEST]
    assert [r.status for r in rack.get()] == [Status.BAD_REQUEST]
    assert [r.status for r in rack.enqueue([1, 0], request_id=3)] == [Status.BAD_REQUEST]
    for bits in ([1, 0], [0, 1, 1], [0, 0, 0, 1]):
        assert [r.status for r in rack.enqueue(bits)] == [0]
    assert rack.events() == [1, 0, 0, 1, 1, 0, 0, 0, 1]


def test_a_reset_lets_a_sender_begin_anew() -> None:
    rack = ForeignRack(bare(), 10)
    rack.enqueue([1, 1, 1])
    assert [r.status for r in rack.reset()] == [0]
    rack.counter, rack.slot = 7000, 5
    for _ in range(3):
        rack.enqueue([0, 1, 0])
    assert rack.events() == [0, 1, 0] * 3, "nothing of the shot before the reset"
    assert rack.get() == []
    assert [r.status for r in rack.answered()] == [0]


def test_a_lost_frame_costs_its_shot_and_no_other() -> None:
    rack = ForeignRack(bare(), 3)
    for shot in range(3):
        for block in range(3):
            if (shot, block) == (1, 1):
                rack.counter, rack.slot = rack.counter + 1, rack.slot + 1
                continue
            rack.enqueue([1, 0, 1])
        rack.get()
        if shot != 1:
            rack.answered()
    rack.peer.take(rack.session.finish(None), "nvidia")
    rows = rack.peer.rows
    assert [rows[i]["path"] for i in range(3)] == [0, 2, 0]
    assert rack.session.counters()["lost"] == 1


def test_a_foreign_clock_or_none_is_counted_and_needs_mode_measure() -> None:
    rack = ForeignRack(bare(), stamp=0)
    for _ in range(3):
        assert [r.status for r in rack.enqueue([0, 0, 0])] == [0]
    assert rack.session.counters()["unstamped"] == 3
    strict = ForeignRack(bare(**DECIDE), stamp=0)
    assert [r.status for r in strict.enqueue([0, 0, 0])] == [Status.BAD_REQUEST]


def test_unreadable_requests_without_envelope_are_answered_where_the_header_is_readable() -> None:
    rack = ForeignRack(bare())
    unknown = struct.pack("<IIIIQ", rpc.MAGIC_REQUEST, 0xDEADBEEF, 0, 77, 5)
    (reply,) = rack._send(unknown + bytes(20))
    assert (reply.status, reply.request_id, reply.ptp_timestamp) == (-1, 77, 5)
    long = struct.pack("<IIIIQ", rpc.MAGIC_REQUEST, rpc.ENQUEUE_SYNDROMES, 4000, 78, 5)
    assert [r.status for r in rack._send(long + bytes(20))] == [Status.BAD_REQUEST]
    empty = rpc.EnqueueSyndromes(0, 0, 0, 0, 0, b"", None)
    assert [r.status for r in rack._send(rpc.build_request(empty))] == [Status.BAD_REQUEST]
    assert rack._send(bytes(40)) == [], "no magic, no reply"
    counts = rack.session.counters()
    assert [counts[f"bad_{k}"] for k in ("function", "length", "arguments", "magic")] == [
        1,
        1,
        1,
        1,
    ]


# -- payload: measurements -----------------------------------------------------------------------

MAPS = (
    DetectorMap(rows=((0,), (0, 1), (1, 4, 7), (2,), (3, 5), (6, 8), (8,), (4,), ()), inverted=()),
    DetectorMap(rows=((8,), (1,), (1, 2), (2,), (3,), (6, 8), (0,), (4,), (0, 5)), inverted=(2, 8)),
)


def expected(one: DetectorMap, record: list[int]) -> list[int]:
    parity = [sum(record[m] for m in row) % 2 for row in one.rows]
    return [bit ^ (d in one.inverted) for d, bit in enumerate(parity)]


def test_the_node_applies_d_of_each_model_to_raw_measurements() -> None:
    made = bare(
        payload="measurements",
        block_measurements=(2, 3, 4),
        detector_maps=MAPS,
        more_dem_texts=("a second model",),
        start="agreed",
    )
    rack = ForeignRack(made)
    rng = np.random.default_rng(3)
    for shot in range(60):
        record = rng.integers(0, 2, 9).tolist()
        for a, b in ((0, 2), (2, 5), (5, 9)):
            assert [r.status for r in rack.enqueue(record[a:b])] == [0]
        events = expected(MAPS[shot % 2], record)
        assert rack.events() == events
        rack.get()
        rack.answered()
        assert rack.peer.rows[shot]["n_events"] == sum(events)
    assert [r.status for r in rack.enqueue([1, 1, 1])] == [Status.BAD_REQUEST], "not its size"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"payload": "measurements"}, "block_measurements"),
        ({"block_measurements": (1, 1, 1)}, "block_measurements"),
        ({"payload": "measurements", "block_measurements": (2, 3, 4)}, "detector_maps"),
        ({"detector_maps": MAPS[:1]}, "detector_maps"),
        (
            {"payload": "measurements", "block_measurements": (2, 3, 3), "detector_maps": MAPS[:1]},
            "detector_maps",
        ),
        (
            {
                "payload": "measurements",
                "block_measurements": (2, 3, 4),
                "detector_maps": (DetectorMap(rows=((0,),)),),
            },
            "detector_maps",
        ),
        ({"predecode": True, "n_observables": 1}, "predecode"),
        ({"more_dem_texts": ("a second model",)}, "more_dem_texts"),
    ],
)
def test_configurations_that_contradict_themselves(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        bare(**changes)
    assert caught.value.where == field


def test_a_configuration_with_a_map_travels_as_text() -> None:
    made = bare(
        payload="measurements",
        block_measurements=(2, 3, 4),
        detector_maps=MAPS[:1],
        answer_timeout_ps=PS_PER_S,
    )
    assert NodeConfig.from_json(made.model_dump_json()) == made


def test_every_status_is_produced_without_an_envelope_too() -> None:
    """BUSY and SYNDROMES_DROPPED included, which the reference server never says; NOT_READY is
    its answer to a request that comes too early, ours holds it back until the shot is settled."""
    found: set[int] = set()

    def note(replies: list[Response]) -> None:
        found.update(reply.status for reply in replies)

    rack = ForeignRack(bare(), stamp=rpc.ptp_from_ns(1_000_000_250))
    note(rack.enqueue([1, 0, 0]))
    assert found == {Status.OK}
    rack.counter, rack.slot = 2, 2
    note(rack.enqueue([1, 1, 1]))
    assert found == {Status.OK, Status.SYNDROMES_DROPPED}
    header = struct.pack("<IIIIQ", rpc.MAGIC_REQUEST, rpc.ENQUEUE_SYNDROMES, 33, 4, rack.stamp)
    busy = rack.session.refused(header, 4, rack.peer.now_ps)
    note(rack.peer.take(busy, "nvidia"))
    assert Status.BUSY in found
    rack.counter, rack.slot = 8, 8
    note(rack.enqueue([1] * 4))
    assert Status.BAD_REQUEST in found
    note(rack.get())
    other = rpc.EnqueueSyndromes(20, rack.stamp, 5, 20, 3, b"\1", None)
    note(rack._send(rpc.build_request(other)))
    assert Status.INVALID_DECODER in found
    rack.counter, rack.slot = 12, 12
    for _ in range(3):
        note(rack.enqueue([0, 0, 1]))
    note(rack.get())
    failed = rack.session.primary_done(3, decoded(rack.peer.now_ps, b""), rack.peer.now_ps)
    note(rack.peer.take(failed, "nvidia"))
    assert Status.INTERNAL_ERROR in found
    note(rack._send(struct.pack("<IIIIQ", rpc.MAGIC_REQUEST, 0xDEADBEEF, 0, 77, 5)))
    assert -1 in found
    late = ForeignRack(bare(**DECIDE), stamp=rpc.ptp_from_ns(node_peer.T0_NS))
    for _ in range(3):
        late.enqueue([0, 0, 1])
    late.get()
    late.peer.now_ps = node_peer.T0_PS + 10 * PS_PER_MS
    note(late.peer.take(late.session.tick(late.peer.now_ps), "nvidia"))
    assert Status.DEADLINE_MISSED in found
    early = NvidiaServer(9, 9, lambda _: [0] * 9).slot(
        rpc.pad(rpc.build_request(rpc.GetCorrections(0, 0, 0, 9, 1, None)))
    )
    assert early is not None
    found.add(rpc.parse_response(early, "nvidia").status)
    assert found == {*Status, -1}


# -- whatever happens on the way -----------------------------------------------------------------

FATES = st.lists(
    st.tuples(st.sampled_from(["lost", "copied", "late", "spoiled"]), st.integers(0, 63)),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(fates=FATES, first=st.integers(0, 70), seed=st.integers(0, 2**16))
def test_no_window_ever_holds_bits_of_two_shots(
    fates: list[tuple[str, int]], first: int, seed: int
) -> None:
    """Each shot has bits of its own; the stream may begin anywhere inside one."""
    sent: list[bytes] = []
    for shot in range(16):
        bits = [shot >> k % 4 & 1 for k in range(9)]
        for block in range(PER_SHOT):
            counter = first + shot * PER_SHOT + block
            if block == R:
                request: rpc.Request = rpc.GetCorrections(counter, 0, 0, OBSERVABLES, 1, None)
            else:
                packed = np.packbits(bits[3 * block : 3 * block + 3], bitorder="little").tobytes()
                request = rpc.EnqueueSyndromes(counter, 0, 0, counter, 3, packed, None)
            sent.append(rpc.pad(rpc.build_request(request)))
    rng = np.random.default_rng(seed)
    arrivals: list[tuple[float, int, bytes]] = []
    by_place = {place: fate for fate, place in fates}
    for place, whole in enumerate(sent):
        fate, data = by_place.get(place, ""), whole
        slot = (first + place) % SLOTS
        if fate == "spoiled":  # magic to time stamp: nothing but the ICRC protects the rest
            at = int(rng.integers(0, 24))
            flipped = whole[at] ^ 1 << int(rng.integers(0, 8))
            data = whole[:at] + bytes([flipped]) + whole[at + 1 :]
        if fate != "lost":
            arrivals.append((place + (rng.uniform(0, 9) if fate == "late" else 0), slot, data))
        if fate == "copied":
            arrivals.append((place + rng.uniform(0, 9), slot, data))
    rack, windows = ForeignRack(bare()), 0
    for now_ps, (_, slot, data) in enumerate(sorted(arrivals)):
        rack.peer.take(rack.session.message(memoryview(data), slot, now_ps, now_ps), "nvidia")
        while windows < len(rack.peer.starts):
            start = rack.peer.starts[windows]
            packed = np.frombuffer(start.detectors_b8, np.uint8)
            window = np.unpackbits(packed, count=9, bitorder="little").tolist()
            assert window[4:8] == window[:4], "of one shot alone"
            assert window[8] == window[0]
            windows += 1
            done = rack.session.primary_done(start.shot, decoded(now_ps, b"\1\0"), now_ps)
            rack.peer.take(done, "nvidia")
    touched = {place // PER_SHOT for place in by_place}
    assert windows == 16 or touched
    assert windows >= 16 - 3 * len(touched), "nobody else pays for it"
