"""The rack's audit of replies, against a node that misbehaves in every way we know of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gpu_decoder.protocol import Reason
from hil.errors import NodeError, UsageError
from hil.node.config import NodeConfig
from hil.node.exchange import Exchange, NodeLostError, Plan, concatenate
from hil.node.ledger import Batch, Ledger
from hil.node.shots import NO_REPLY, Answerer
from hil.node.stamps import StampReader, StampWriter, create_stamp_file
from hil.timebase import MISSING_PS, PS_PER_S
from hil.wire.rpc import Envelope, Response, Status, build_response, pad, ptp_from_ns
from hil.wire.rpc_batch import build_enqueue_batch, build_get_batch

BLOCKS = ((0, 1), (2,))
R = len(BLOCKS)
EPOCH = 4
STAMP_NS = 5_000_000_123


def config(**changes: object) -> NodeConfig:
    fields: dict[str, object] = {
        "rack_address": "127.0.0.2",
        "node_address": "127.0.0.1",
        "ring_slots": 8,
        "block_detectors": BLOCKS,
        "n_observables": 3,
        "epoch": EPOCH,
        "dem_text": "",
        "primary": "pymatching",
        "mode": "measure",
        "deadline_ps": PS_PER_S,
        "stamp_shots": 16,
    }
    return NodeConfig.create(**{**fields, **changes})


def plan(first: int, n: int) -> Plan:
    counters = (first + np.arange(n))[:, None] * (R + 1) + np.arange(R + 1)
    stamps = np.full((n, R + 1), ptp_from_ns(STAMP_NS), np.uint64) + counters.astype(np.uint64)
    bits = np.zeros((n, R, 1), np.uint8)
    counters = counters.astype(np.uint64)
    return Plan(
        first,
        build_enqueue_batch(
            bits,
            np.array([2, 1]),
            counters=counters[:, :R],
            ptp_timestamps=stamps[:, :R],
            epoch=EPOCH,
        ),
        build_get_batch(counters[:, R], stamps[:, R], return_size=3, epoch=EPOCH),
        np.zeros((n, R), np.int64),
    )


def answer(counter: int, status: int = 0, result: bytes = b"", **changes: object) -> memoryview:
    fields: dict[str, object] = {
        "status": status,
        "request_id": counter & 0xFFFFFFFF,
        "ptp_timestamp": ptp_from_ns(STAMP_NS) + counter,
        "result": result,
        "envelope": Envelope(EPOCH, 1, 0),
    }
    return memoryview(pad(build_response(Response(**{**fields, **changes}))))


class Rig:
    """A ledger with one plan of two shots, all sent; a stamp file with both of its ends."""

    def __init__(self, writer: StampWriter, reader: StampReader, first: int) -> None:
        self.writer, self.reader = writer, reader
        self.ledger = Ledger(config(first_shot=first))
        self.first = first
        self.batch: Batch = self.ledger.open(plan(first, 2))
        for shot in range(2):
            for block in range(R + 1):
                self.ledger.sent(self.batch, shot, block, 1000 + 10 * shot + block)

    def counter(self, shot: int, block: int) -> int:
        return (self.first + shot) * (R + 1) + block

    def answer_all(self, *, rows: bool = True) -> None:
        for shot in range(2):
            for block in range(R):
                self.ledger.reply(answer(self.counter(shot, block)), 2000)
                self.writer.frame(self.counter(shot, block), 1500 + block, 1600 + block)
            self.ledger.reply(answer(self.counter(shot, R), result=b"\x05"), 3000 + shot)
            if rows:
                values = {"path": 0, "t_decode_start_ps": 1700, "n_events": 1}
                self.writer.shot(self.first + shot, values)

    def close(self) -> Exchange:
        return self.ledger.close(self.batch, self.reader)


@pytest.fixture(params=[0, ((1 << 32) - 2) // (R + 1)], ids=["first", "wrap"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    path = create_stamp_file(64, 16, 1)
    writer, reader = StampWriter(path), StampReader(path)
    path.unlink()
    yield Rig(writer, reader, request.param)
    writer.close()
    reader.close()


def test_a_clean_exchange(rig: Rig) -> None:
    assert not rig.ledger.complete(rig.batch, rig.reader)
    rig.answer_all()
    assert rig.ledger.complete(rig.batch, rig.reader)
    found = rig.close()
    assert found.path.tolist() == [0, 0]
    assert found.reason.tolist() == [0, 0]
    assert found.prediction_b8.tolist() == [[5], [5]]
    assert found.t_reply_rx_ps.tolist() == [3000, 3001]
    assert found.t_tx_ps.tolist() == [[1000, 1001], [1010, 1011]]
    assert found.t_visible_ps.tolist() == [[1600, 1601]] * 2
    assert found.t_decode_start_ps.tolist() == [1700, 1700]
    assert found.primary_start_ps.tolist() == [MISSING_PS] * 2
    assert not found.lost.any()
    assert rig.ledger.count == {"frames_sent": 4, "reply_ok": 6}
    assert not rig.ledger.batches


def test_rows_of_answered_shots_are_waited_for_and_then_demanded(rig: Rig) -> None:
    rig.answer_all(rows=False)
    assert not rig.ledger.complete(rig.batch, rig.reader)
    with pytest.raises(NodeError, match="stamps of an answered shot are missing"):
        rig.close()


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (lambda c: answer(c)[:10], "reply_malformed"),
        (lambda c: memoryview(b"\0" + bytes(answer(c))[1:]), "reply_malformed"),
        (
            lambda c: memoryview(bytes(answer(c))[:4] + b"\x09" + bytes(answer(c))[5:]),
            "reply_malformed",
        ),
        (lambda c: answer(c, result=b"\1\2"), "reply_malformed"),
        (answer, "reply_malformed"),
        (lambda c: memoryview(bytes(answer(c))[:20] + b"\1" + bytes(answer(c))[21:]), "crc"),
        (lambda c: answer(c, 6, envelope=Envelope(EPOCH + 1, 1, 0)), "reply_bad_epoch"),
        (lambda c: answer(c + 4, 6), "reply_unknown"),
        (lambda c: answer(c + (1 << 31), 6), "reply_unknown"),
        (lambda c: answer(c, 6, ptp_timestamp=ptp_from_ns(STAMP_NS) + c - 9), "reply_stale"),
    ],
)
def test_a_bad_reply_is_counted_by_cause_and_settles_nothing(
    rig: Rig, data: object, cause: str
) -> None:
    rig.ledger.reply(data(rig.counter(0, R)), 2500)  # type: ignore[operator]
    name = "reply_bad_crc" if cause == "crc" else cause
    assert rig.ledger.count[name] == 1
    assert not rig.batch.settled.any()
    assert rig.batch.open_shots == 2
    rig.answer_all()
    assert rig.close().path.tolist() == [0, 0]


def test_a_second_answer_changes_nothing(rig: Rig) -> None:
    rig.answer_all()
    rig.ledger.reply(answer(rig.counter(0, R), result=b"\7"), 9000)
    rig.ledger.reply(answer(rig.counter(0, 0), Status.BUSY), 9000)
    found = rig.close()
    assert rig.ledger.count["reply_duplicate"] == 2
    assert found.prediction_b8[0].tolist() == [5]
    assert not found.refused.any()
    rig.ledger.reply(answer(rig.counter(0, R), result=b"\7"), 9000)
    assert rig.ledger.count["reply_stale"] == 1, "the batch is handed over"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.BUSY, Reason.QUEUE_FULL),
        (Status.SYNDROMES_DROPPED, Reason.TRANSPORT_LOSS),
        (Status.DEADLINE_MISSED, Reason.DEADLINE),
        (Status.INTERNAL_ERROR, Reason.OUTPUT_INVALID),
    ],
)
def test_a_declared_shot_carries_its_reason(rig: Rig, status: Status, reason: Reason) -> None:
    rig.ledger.reply(answer(rig.counter(0, R), status), 2500)
    rig.ledger.reply(answer(rig.counter(1, R), Status.INTERNAL_ERROR), 2500)
    rig.writer.shot(rig.first + 1, {"path": 2, "reason": int(Reason.EPOCH_MISMATCH)})
    found = rig.close()
    assert found.path.tolist() == [2, 2]
    assert found.reason.tolist() == [reason, Reason.EPOCH_MISMATCH]
    assert found.status_code.tolist() == [status, Status.INTERNAL_ERROR]
    assert found.lost.all(), "no frame has a row"


def test_a_request_without_a_reply_is_declared_in_time(rig: Rig) -> None:
    timeout_ps = config().answer_timeout_ps
    rig.ledger.declare_overdue(1000 + R + timeout_ps)
    assert rig.batch.open_shots == 2
    rig.ledger.declare_overdue(1003 + timeout_ps)
    assert rig.batch.open_shots == 1
    rig.ledger.reply(answer(rig.counter(0, R), result=b"\5"), 10**13)
    assert rig.ledger.count["reply_stale"] == 1, "too late: the rack has declared it"
    rig.ledger.declare_overdue(10**14)
    assert rig.ledger.complete(rig.batch, rig.reader)
    found = rig.close()
    assert found.status_code.tolist() == [NO_REPLY] * 2
    assert found.reason.tolist() == [Reason.TRANSPORT_LOSS] * 2
    assert rig.ledger.count["answers_missing"] == 2


def test_refused_frames_are_marked(rig: Rig) -> None:
    rig.ledger.reply(answer(rig.counter(0, 1), Status.BUSY), 2500)
    found = rig.close()
    assert found.refused.tolist() == [[False, True], [False, False]]
    assert found.lost.tolist() == [[True, False], [True, True]]


def test_a_lost_node_leaves_what_is_known(rig: Rig) -> None:
    rig.writer.frame(rig.counter(0, 0), 1, 2)
    rig.ledger.reply(answer(rig.counter(0, R), result=b"\5"), 2500)
    rig.ledger.reply(answer(rig.counter(1, R), result=b"\5"), 2600)
    rig.writer.shot(rig.first, {"path": int(Answerer.FALLBACK), "reason": 1})
    found = rig.ledger.close(rig.batch, rig.reader, node_lost=True)
    assert found.path.tolist() == [Answerer.FALLBACK, Answerer.UNANSWERED]
    assert found.reason.tolist() == [Reason.DEADLINE, Reason.DEVICE_LOST]
    assert found.status_code.tolist() == [0, NO_REPLY], "an answer of unknown origin is not used"
    assert found.prediction_b8.tolist() == [[5], [0]]


def test_plans_must_continue_the_stream(rig: Rig) -> None:
    for wrong in (plan(rig.first, 2), plan(rig.first + 3, 1), plan(rig.first + 2, 9)):
        with pytest.raises(UsageError):
            rig.ledger.open(wrong)
    rig.ledger.open(plan(rig.first + 2, 8))


def test_exchanges_concatenate(rig: Rig) -> None:
    rig.answer_all()
    both = concatenate([found := rig.close(), found])
    assert both.first_shot == rig.first
    assert both.t_tx_ps.shape == (4, R)
    assert both.n_shots == 4


def test_the_error_of_a_lost_node_crosses_process_borders() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(NodeLostError("it died", where="pid 1", got="exit code -9")))
    assert (str(error), error.partial) == ("pid 1: it died\n    got:     exit code -9", None)
