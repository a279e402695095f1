"""The rack's book of a live exchange: what was sent, which replies count, what became of each shot.

Pure: no socket, no clock. Every reply is checked before it may settle a shot: form and end-to-end
CRC, epoch, a request id that is outstanding, and the time stamp of exactly that request. What
fails is counted by cause and dropped; a shot without a reply in time is declared by the rack.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import Reason
from hil.errors import NodeError, UsageError
from hil.node.config import NodeConfig
from hil.node.exchange import I64, U8, Exchange, Plan
from hil.node.shots import NO_REPLY, Answerer
from hil.node.stamps import NoStamps, StampReader
from hil.timebase import MISSING_PS
from hil.wire.rpc import Response, RpcError, Status, parse_response

REASONS: Final = {
    int(Status.BUSY): Reason.QUEUE_FULL,
    int(Status.DEADLINE_MISSED): Reason.DEADLINE,
    int(Status.INTERNAL_ERROR): Reason.OUTPUT_INVALID,
}
"""Reason of a declared shot by the status of its reply, where its row gives no reason."""


@dataclass(slots=True, eq=False)
class Batch:
    """The shots of one plan on their way."""

    plan: Plan
    t_tx_ps: I64  # [n, r]
    get_tx_ps: I64  # [n]
    refused: NDArray[np.bool_]  # [n, r]
    replied: NDArray[np.bool_]  # [n, r + 1]
    status_code: NDArray[np.int32]  # [n]
    t_reply_rx_ps: I64  # [n]
    prediction_b8: U8  # [n, ceil(O/8)]
    settled: NDArray[np.bool_]  # [n]
    stamps: NDArray[np.uint64]  # [n, r + 1], time stamp inside each message
    open_shots: int
    done_ps: int = field(default=MISSING_PS)  # when its last shot was settled


def _empty_batch(plan: Plan, config: NodeConfig) -> Batch:
    n, r = plan.n_shots, config.n_blocks
    stamps = np.empty((n, r + 1), np.uint64)
    stamps[:, :r] = np.ascontiguousarray(plan.enqueue[:, :, 16:24]).view("<u8")[..., 0]
    stamps[:, r] = np.ascontiguousarray(plan.get[:, 16:24]).view("<u8")[:, 0]
    return Batch(
        plan,
        np.full((n, r), MISSING_PS, np.int64),
        np.full(n, MISSING_PS, np.int64),
        np.zeros((n, r), np.bool_),
        np.zeros((n, r + 1), np.bool_),
        np.full(n, NO_REPLY, np.int32),
        np.full(n, MISSING_PS, np.int64),
        np.zeros((n, config.prediction_bytes), np.uint8),
        np.zeros(n, np.bool_),
        stamps,
        n,
    )


class Ledger:
    """All batches that are not handed over yet, in order.

    Args:
        config: the configuration that the node has too.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._per_shot = config.messages_per_shot
        self._next_shot = config.first_shot
        self.next_counter = config.first_shot * self._per_shot
        self.batches: deque[Batch] = deque()
        self.count: Counter[str] = Counter()

    def open(self, plan: Plan) -> Batch:
        """Take a plan into the book.

        Raises:
            UsageError: its shapes do not fit the configuration, or shots are left out.
        """
        n, r = plan.n_shots, self._config.n_blocks
        fits = (
            plan.enqueue.shape[:2] == (n, r)
            and len(plan.get) == n
            and plan.t_send_ps.shape == (n, r)
        )
        if not fits or plan.first_shot != self._next_shot:
            raise UsageError(
                "plan does not continue the stream",
                where=f"plan of shot {plan.first_shot}",
                got=f"enqueue {plan.enqueue.shape}, get {plan.get.shape}, {plan.t_send_ps.shape}",
                allowed=f"first shot {self._next_shot}, {r} blocks a shot",
            )
        if 2 * n > self._config.stamp_shots:
            raise UsageError(
                "plan is too large for the stamp file",
                got=f"{n} shots",
                allowed=f"at most stamp_shots / 2 = {self._config.stamp_shots // 2}",
            )
        self._next_shot += n
        batch = _empty_batch(plan, self._config)
        self.batches.append(batch)
        return batch

    def whole_shot(self) -> int:
        """Number of a shot that goes in one message, not in a plan; it takes its counters too."""
        number = self._next_shot
        self._next_shot += 1
        self.next_counter += self._per_shot
        self.count["frames_sent"] += 1
        return number

    def sent(self, batch: Batch, shot: int, block: int, t_tx_ps: int) -> None:
        """Message ``block`` (r = the request) of the batch's ``shot`` goes out at ``t_tx_ps``."""
        if block < self._config.n_blocks:
            batch.t_tx_ps[shot, block] = t_tx_ps
            self.count["frames_sent"] += 1
        else:
            batch.get_tx_ps[shot] = t_tx_ps
        self.next_counter += 1

    def reply(self, data: memoryview, t_rx_ps: int) -> None:
        """A reply arrived: let it settle its shot, or count why it does not."""
        try:
            response = parse_response(data, self._config.envelope)
        except RpcError as error:
            bad_crc = error.cause == "envelope_crc"
            self.count["reply_bad_crc" if bad_crc else "reply_malformed"] += 1
            return
        envelope = response.envelope
        if envelope is not None and envelope.epoch != self._config.epoch:
            self.count["reply_bad_epoch"] += 1
            return
        counter = self._outstanding(response.request_id)
        if counter is None:
            self.count["reply_unknown"] += 1
            return
        self._apply(response, counter, t_rx_ps)

    def declare_overdue(self, now_ps: int) -> None:
        """Declare every shot whose request has had no reply for ``answer_timeout_ps``."""
        limit_ps = now_ps - self._config.answer_timeout_ps
        for batch in self.batches:
            if not batch.open_shots:
                continue
            late = ~batch.settled & (batch.get_tx_ps != MISSING_PS) & (batch.get_tx_ps < limit_ps)
            count = int(np.count_nonzero(late))
            if count:
                batch.settled |= late
                self.count["answers_missing"] += count
                self._less_open(batch, count, now_ps)

    # -- replies ------------------------------------------------------------------------------

    def _outstanding(self, request_id: int) -> int | None:
        """The counter of a request id, if that message was sent and is not long forgotten."""
        ahead = ((request_id - self.next_counter + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        counter = self.next_counter + ahead
        return counter if ahead < 0 and counter >= 0 else None

    def _apply(self, response: Response, counter: int, t_rx_ps: int) -> None:
        shot, block = divmod(counter, self._per_shot)
        batch = self._batch_of(shot)
        if batch is None:
            self.count["reply_stale"] += 1
            return
        row = shot - batch.plan.first_shot
        if int(batch.stamps[row, block]) != response.ptp_timestamp:
            self.count["reply_stale"] += 1  # the id is one of ours, but of another generation
            return
        if batch.replied[row, block]:
            self.count["reply_duplicate"] += 1
            return
        if block == self._config.n_blocks:
            self._apply_answer(response, batch, row, t_rx_ps)
            return
        batch.replied[row, block] = True
        self._count_status(response.status)
        batch.refused[row, block] = response.status == Status.BUSY

    def _apply_answer(self, response: Response, batch: Batch, row: int, t_rx_ps: int) -> None:
        if batch.settled[row]:  # the rack has declared it
            self.count["reply_stale"] += 1
            return
        answered = response.status == Status.OK
        if len(response.result) != (self._config.prediction_bytes if answered else 0):
            self.count["reply_malformed"] += 1
            return
        batch.replied[row, -1] = batch.settled[row] = True
        self._count_status(response.status)
        batch.status_code[row] = response.status
        batch.t_reply_rx_ps[row] = t_rx_ps
        if answered:
            batch.prediction_b8[row] = np.frombuffer(response.result, np.uint8)
        self._less_open(batch, 1, t_rx_ps)

    def _count_status(self, status: int) -> None:
        names = {0: "reply_ok", int(Status.BUSY): "reply_busy"}
        names[int(Status.SYNDROMES_DROPPED)] = "reply_dropped"
        names[int(Status.DEADLINE_MISSED)] = "reply_deadline_missed"
        self.count[names.get(status, "reply_error")] += 1

    def _batch_of(self, shot: int) -> Batch | None:
        for batch in self.batches:
            if 0 <= shot - batch.plan.first_shot < batch.plan.n_shots:
                return batch
        return None

    def _less_open(self, batch: Batch, count: int, now_ps: int) -> None:
        batch.open_shots -= count
        if not batch.open_shots:
            batch.done_ps = now_ps

    # -- handing over -------------------------------------------------------------------------

    def complete(self, batch: Batch, stamps: StampReader | NoStamps) -> bool:
        """Is every shot settled, and the row of every shot with a reply published?"""
        if batch.open_shots:
            return False
        _, there = stamps.shots(_numbers(batch))
        return bool((there | ~batch.replied[:, -1]).all())

    def close(
        self, batch: Batch, stamps: StampReader | NoStamps, *, node_lost: bool = False
    ) -> Exchange:
        """Take the batch out of the book and make its exchange from book and stamp file.

        Raises:
            NodeError: the row of an answered shot is not there: overwritten or never written.
        """
        self.batches.remove(batch)
        rows, there = stamps.shots(_numbers(batch))
        unknown = (batch.status_code == Status.OK) & ~there
        if node_lost:
            _disown(batch, unknown)
        elif bool(unknown.any()):
            raise NodeError(
                "stamps of an answered shot are missing",
                where=f"shot {batch.plan.first_shot + int(np.argmax(unknown))}",
                fix="raise stamp_shots, or send smaller plans",
            )
        n, r = batch.t_tx_ps.shape
        counters = _numbers(batch)[:, None] * self._per_shot + np.arange(r)
        frames, seen = stamps.frames(counters.reshape(-1))
        frames, seen = frames.reshape(n, r), seen.reshape(n, r)
        path, reason = _fates(batch, rows, there, node_lost=node_lost)
        answer = batch.status_code == Status.OK

        def stamp(name: str, valid: NDArray[np.bool_] = there) -> I64:
            return np.where(valid, rows[name], MISSING_PS)

        return Exchange(
            batch.plan.first_shot,
            batch.t_tx_ps,
            np.where(seen, frames["t_rx_ps"], MISSING_PS),
            np.where(seen, frames["t_visible_ps"], MISSING_PS),
            (batch.t_tx_ps != MISSING_PS) & ~seen & ~batch.refused,
            batch.refused,
            stamp("t_decode_start_ps", answer),
            stamp("t_decode_end_ps", answer),
            stamp("primary_start_ps"),
            stamp("primary_end_ps"),
            stamp("fallback_start_ps"),
            stamp("fallback_end_ps"),
            stamp("t_reply_tx_ps"),
            batch.t_reply_rx_ps,
            path,
            reason,
            batch.status_code,
            batch.prediction_b8,
            np.where(there[:, None], rows["primary_prediction_b8"], np.uint8(0)),
            np.where(there[:, None], rows["fallback_prediction_b8"], np.uint8(0)),
            np.where(there, rows["executed_primary"], np.uint8(0)),
            np.where(there, rows["executed_fallback"], np.uint8(0)),
            np.where(there, rows["primary_failed"], np.uint8(0)),
            np.where(there, rows["backend"], np.uint8(0)),
            np.where(there, rows["precision"], np.uint8(0)),
            np.where(there, rows["residual_events"], np.int32(-1)),
            np.where(there, rows["n_events"], np.int32(-1)),
            np.where(there, rows["queue_depth"], np.uint16(0)),
        )


def _numbers(batch: Batch) -> I64:
    return batch.plan.first_shot + np.arange(batch.plan.n_shots)


def _fates(
    batch: Batch, rows: NDArray[np.void], there: NDArray[np.bool_], *, node_lost: bool
) -> tuple[U8, U8]:
    """Path and reason of each shot, uint8 [n]: by the reply that came, else declared."""
    answered = batch.status_code == Status.OK
    path = np.full(len(answered), int(Answerer.UNANSWERED), np.uint8)
    reason = np.full(len(answered), int(Reason.TRANSPORT_LOSS), np.uint8)
    for status, why in REASONS.items():
        reason[batch.status_code == status] = int(why)
    declared = there & (rows["path"] == int(Answerer.UNANSWERED)) & ~answered
    reason[declared] = rows["reason"][declared]
    if node_lost:
        reason[~batch.settled] = int(Reason.DEVICE_LOST)
    path[answered] = rows["path"][answered]
    reason[answered] = rows["reason"][answered]
    return path, reason


def _disown(batch: Batch, unknown: NDArray[np.bool_]) -> None:
    """Answers of a dead node that did not say who gave them are not used."""
    batch.status_code[unknown] = NO_REPLY
    batch.prediction_b8[unknown] = 0
    batch.t_reply_rx_ps[unknown] = MISSING_PS
    batch.settled[unknown] = False
