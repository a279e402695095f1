"""One rack session of the decoder node: a pure state machine, time passed in, actions out.

It owns nothing but bookkeeping: no socket, no clock, no process. A block lands in its shot by its
counter, never by order of arrival, so shots cannot splice. Every shot that the node has seen
anything of gets exactly one ``Outcome``; every message gets exactly one reply, unless it is a
duplicate, stale, or has no header that could be trusted. Rules and statuses: ``docs/node.md``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np

from gpu_decoder.policy import Do
from gpu_decoder.protocol import Reason
from hil.errors import NodeError
from hil.link.sequence import Arrival
from hil.node.config import NodeConfig
from hil.node.forming import Forming
from hil.node.intake import Admitted, Fault, Intake, Rejected
from hil.node.shots import (
    Action,
    Answerer,
    Asked,
    Decode,
    Hold,
    Outcome,
    Release,
    Shot,
    StampFrame,
    StampShot,
    Start,
)
from hil.node.windows import Decide, Take, Windows
from hil.timebase import PS_PER_NS
from hil.wire.predecode import Predecode
from hil.wire.rpc import EnqueueSyndromes, GetCorrections, ResetDecoder, Status, ptp_to_ns

HISTORY_SHOTS: Final = 1024
"""Shots that are remembered for late frames; older frames are stale and get no reply."""


class Session:
    """State machine of one session.

    Events that happen at one instant must be handed over in this order: results of workers,
    messages, ``tick``.

    Args:
        config: the node's configuration.
        executed: ``GlobalDecoder`` codes of the primary and of the fallback (0 = none).
    """

    def __init__(self, config: NodeConfig, executed: tuple[int, int] = (0, 0)) -> None:
        self._config = config
        self._executed = executed
        self._per_shot = config.messages_per_shot
        self._all_blocks = (1 << config.n_blocks) - 1
        self._shots: dict[int, Shot] = {}
        self._collecting: dict[int, Shot] = {}
        self._newest = config.first_shot - 1
        self._asked: deque[Shot] = deque()  # requests without reply, in order of arrival
        first_counter = config.first_shot * self._per_shot
        self._intake = Intake(config, first_counter, HISTORY_SHOTS * self._per_shot)
        self._count = self._intake.count
        self._windows = Windows(config, self._shots)
        self._forming = Forming(config)
        self._last_frame_ps = 0

    # -- events -------------------------------------------------------------------------------

    def message(self, data: memoryview, slot: int, t_rx_ps: int, now_ps: int) -> list[Action]:
        """A message lies in ``slot`` and is visible at ``now_ps``; the slot is owned."""
        read = self._intake.admit(data, slot)
        if isinstance(read, Rejected):
            return [Release((slot,)), *((read.reply,) if read.reply else ())]
        self._last_frame_ps = now_ps  # what is refused does not put the gap timeout off
        request = read.request
        if isinstance(request, Predecode):
            return self._whole(request, read.counter, slot, now_ps)
        if isinstance(request, ResetDecoder):
            self._count["reset"] += 1
            done = self._intake.reply(request, Status.OK)
            return [Release((slot,)), *self._abandon(self._collecting), done]
        actions: list[Action] = []
        shot = self._open(read.counter // self._per_shot, actions)
        if isinstance(request, GetCorrections):
            return actions + self._get(shot, request, slot)
        actions.append(StampFrame(read.counter, t_rx_ps, now_ps))
        return actions + self._enqueue(shot, request, slot, read, now_ps)

    def refused(self, header: bytes, slot: int, now_ps: int) -> list[Action]:
        """A frame found ``slot`` owned: nothing was stored, only its header is known."""
        read = self._intake.admit_header(header, slot)
        if isinstance(read, Rejected):
            return []
        self._last_frame_ps = now_ps
        actions: list[Action] = []
        shot = self._open(read.shot, actions)
        full = Fault(Status.BUSY, Reason.QUEUE_FULL)
        if read.is_get:
            if shot.asked is None:
                self._asked.append(shot)
            shot.asked = Asked(read.request_id, read.ptp_timestamp, 0, read.whole)
            return actions + self._declare(shot, full, undeliverable=True)
        busy = self._intake.reply_to(read.request_id, read.ptp_timestamp, Status.BUSY)
        return [*actions, busy, *self._declare(shot, full)]

    def eligible(self, number: int, now_ps: int) -> list[Action]:
        """The window of shot ``number`` was held long enough (``Hold``)."""
        shot = self._shots.get(number)
        if shot is None or shot.outcome is not None:  # declared while it was held
            return []
        return self._follow(self._windows.eligible(shot, now_ps))

    def primary_done(self, number: int, result: Decode, now_ps: int) -> list[Action]:
        """A primary worker is done with shot ``number``, or has given it up (``result.failed``)."""
        shot = self._shots[number]
        shot.primary = result
        actions: list[Action] = []
        self._count_result(shot, result)
        actions += self._follow(self._windows.primary_done(shot, now_ps))
        return actions + self._close(shot)

    def fallback_done(self, number: int, result: Decode, now_ps: int) -> list[Action]:
        """A fallback worker is done with shot ``number``, or has failed: then nobody answers it."""
        shot = self._shots[number]
        shot.fallback = result
        actions: list[Action] = []
        if self._config.mode == "decide":
            self._count_result(shot, result)
        if result.failed is not Reason.NONE and shot.outcome is None:
            first = Reason.NONE if shot.primary is None else shot.primary.failed
            why = result.failed if first is Reason.NONE else first
            actions += self._declare(shot, Fault(Status.INTERNAL_ERROR, why))
        actions += self._follow(self._windows.fallback_done(shot, now_ps))
        return actions + self._close(shot)

    def reply_sent(self, number: int, t_reply_tx_ps: int) -> list[Action]:
        """The answer of shot ``number`` was given to the network at ``t_reply_tx_ps``."""
        shot = self._shots.get(number)
        if shot is None:  # forgotten already: its row went out without this stamp
            return []
        shot.reply_tx_ps = t_reply_tx_ps
        return self._close(shot)

    def shot_of(self, header: bytes) -> int:
        """Number of the shot that a message with this header belongs to, by its request id."""
        return self._intake.shot_of_header(header)

    def tick(self, now_ps: int) -> list[Action]:
        """Time has passed."""
        actions = self._follow(self._windows.tick(now_ps))
        if self._collecting and now_ps >= self._last_frame_ps + self._config.gap_timeout_ps:
            actions += self._abandon(self._collecting)
        return actions

    def next_timer_ps(self) -> int | None:
        """When ``tick`` has to be called next, or ``None``."""
        timers = [self._last_frame_ps + self._config.gap_timeout_ps] if self._collecting else []
        window_ps = self._windows.next_timer_ps()
        if window_ps is not None:
            timers.append(window_ps)
        return min(timers, default=None)

    def finish(self, next_counter: int | None) -> list[Action]:
        """The rack has ended; ``next_counter`` is the one it would have sent next, if it said so.

        Every shot that is still open is declared; what the workers still do is of no use.
        """
        if next_counter is not None:
            self._intake.audit.close(next_counter)
        actions = self._abandon(self._collecting)
        for shot in list(self._shots.values()):
            actions += self._declare(shot, Fault(Status.INTERNAL_ERROR, Reason.DEVICE_LOST))
            actions += self._record(shot)
        return actions

    def counters(self) -> dict[str, int]:
        """Messages and shots by fate; ``lost`` .. ``widest`` are those of application counters."""
        audit = self._intake.audit
        return {**audit.counts(), "widest": audit.widest, **self._count}

    # -- messages -----------------------------------------------------------------------------

    def _enqueue(
        self, shot: Shot, request: EnqueueSyndromes, slot: int, read: Admitted, now_ps: int
    ) -> list[Action]:
        self._count["enqueue"] += 1
        block = read.counter % self._per_shot
        fault = self._intake.enqueue_fault(request, block)
        if fault is not None:
            refusal = self._intake.reply(request, fault.status)
            if fault.status is Status.BAD_REQUEST:  # the shot has failed, as in the reference
                fault = Fault(Status.INTERNAL_ERROR, fault.reason)
            return [Release((slot,)), refusal, *self._declare(shot, fault)]
        if shot.outcome is not None:
            return [Release((slot,)), self._intake.reply(request, Status.SYNDROMES_DROPPED)]
        self._place(shot, request, block)
        shot.slots.append(slot)
        before = (1 << block) - 1
        gap = read.arrival is Arrival.GAP or (shot.received & before) != before
        shot.received |= 1 << block
        reply = self._intake.reply(request, Status.SYNDROMES_DROPPED if gap else Status.OK)
        if shot.received != self._all_blocks:
            return [reply]
        shot.bits = self._forming.events(shot.number, shot.bits)
        return [*self._assembled(shot, now_ps), reply]  # the window first: it is waited for

    def _assembled(self, shot: Shot, now_ps: int) -> list[Action]:
        del self._collecting[shot.number]
        shot.n_events = int(np.count_nonzero(shot.bits))
        delay_ps = self._config.delays.of("queue", shot.number)
        if delay_ps:
            return [Hold(shot.number, delay_ps)]
        return self._follow(self._windows.eligible(shot, now_ps))

    def _place(self, shot: Shot, request: EnqueueSyndromes, block: int) -> None:
        self._forming.place(shot.bits, block, request.bits)
        if block == self._config.n_blocks - 1:
            shot.t0_last_ps = ptp_to_ns(request.ptp_timestamp) * PS_PER_NS

    def _get(self, shot: Shot, request: GetCorrections, slot: int) -> list[Action]:
        self._count["get"] += 1
        valid_until = request.envelope.valid_until_round if request.envelope else 0
        if shot.asked is None:
            self._asked.append(shot)
        shot.asked = Asked(request.request_id, request.ptp_timestamp, valid_until)
        fault = self._intake.get_fault(request)
        if fault is not None:
            return [Release((slot,)), *self._declare(shot, fault, undeliverable=True)]
        if shot.outcome is None and not shot.busy_workers:
            shot.slots.append(slot)  # held, like every frame, until the window is taken
            return []
        return [Release((slot,)), *self._deliver(shot)]

    def _whole(self, request: Predecode, number: int, slot: int, now_ps: int) -> list[Action]:
        """A shot in one message: all its blocks, and the request for its answer."""
        self._count["predecode"] += 1
        actions: list[Action] = []
        shot = self._open(number, actions)
        if shot.received or shot.asked is not None:  # it came in blocks before
            refusal = self._intake.refuse_whole(request.request_id, request.ptp_timestamp)
            return [*actions, Release((slot,)), refusal]
        self._asked.append(shot)
        shot.asked = Asked(request.request_id, request.ptp_timestamp, 0, whole=True)
        if shot.outcome is not None:  # declared: a newer one was here first
            return [*actions, Release((slot,)), *self._deliver(shot)]
        shot.bits = np.frombuffer(request.detectors, np.uint8)
        shot.t0_last_ps = ptp_to_ns(request.ptp_timestamp) * PS_PER_NS
        shot.received = self._all_blocks
        shot.slots.append(slot)
        return actions + self._assembled(shot, now_ps)

    # -- shots --------------------------------------------------------------------------------

    def _open(self, number: int, actions: list[Action]) -> Shot:
        """The state of shot ``number``; a newer shot ends every incomplete older one."""
        if number > self._newest:
            actions += self._abandon(self._collecting)
            self._newest = number
            self._forget(number - HISTORY_SHOTS - 1, actions)
        shot = self._shots.get(number)
        if shot is None:
            shot = Shot(number, self._forming.empty())
            self._shots[number] = self._collecting[number] = shot
            if number < self._newest:  # its first frame comes after one of a newer shot
                actions += self._abandon([number])
        return shot

    def _forget(self, before: int, actions: list[Action]) -> None:
        while self._shots:
            number, shot = next(iter(self._shots.items()))
            if number >= before or shot.outcome is None or shot.busy_workers:
                return
            actions += self._record(shot)
            del self._shots[number]

    def _abandon(self, numbers: Iterable[int]) -> list[Action]:
        """Declare incomplete shots: a round of theirs is missing."""
        missing = Fault(Status.SYNDROMES_DROPPED, Reason.TRANSPORT_LOSS)
        actions: list[Action] = []
        for number in list(numbers):
            actions += self._declare(self._shots[number], missing)
        return actions

    def _declare(self, shot: Shot, fault: Fault, *, undeliverable: bool = False) -> list[Action]:
        """Settle ``shot`` as unanswered, unless it is settled.

        Args:
            shot: the shot.
            fault: why.
            undeliverable: its request itself was refused, so that even an answer that lies
                ready cannot be delivered.
        """
        answered = shot.outcome is not None and shot.outcome.status is Status.OK
        if shot.outcome is None or (undeliverable and answered):
            self._count_outcome(shot, -1)
            shot.outcome = Outcome(Answerer.UNANSWERED, fault.reason, fault.status)
            self._count_outcome(shot, 1)
        return self._settled(shot)

    def _answer(self, shot: Shot, fallback: bool, reason: Reason) -> list[Action]:
        result = shot.fallback if fallback else shot.primary
        prediction = result.prediction if result is not None else b""
        path = Answerer.FALLBACK if fallback else Answerer.PRIMARY
        shot.outcome = Outcome(path, reason, Status.OK, prediction)
        self._count_outcome(shot, 1)
        return self._settled(shot)

    def _count_outcome(self, shot: Shot, step: int) -> None:
        if shot.outcome is not None:
            self._count[f"shots_{shot.outcome.path.name.lower()}"] += step

    def _settled(self, shot: Shot) -> list[Action]:
        self._collecting.pop(shot.number, None)
        return self._free(shot) + self._deliver(shot)

    def _free(self, shot: Shot) -> list[Action]:
        if not shot.slots:
            return []
        slots, shot.slots = tuple(shot.slots), []
        return [Release(slots)]

    def _deliver(self, shot: Shot) -> list[Action]:
        """Reply to the shot's request, once, when both it and an outcome are there.

        Replies leave in the order of the requests (the response ring is strictly round robin): an
        early answer waits for its predecessors.
        """
        if shot.outcome is None or shot.asked is None or shot.reply_made:
            return self._close(shot)
        actions: list[Action] = []
        while self._asked and self._asked[0].outcome is not None:
            actions.append(self._reply_for(self._asked.popleft()))
        return actions

    def _reply_for(self, shot: Shot) -> Action:
        outcome, asked = shot.outcome, shot.asked
        if outcome is None or asked is None:
            raise NodeError("a reply without outcome or request", got=f"shot {shot.number}")
        shot.reply_made = True
        if asked.whole:
            return self._intake.correction(asked, outcome, shot.number)
        return self._intake.reply_to(
            asked.request_id,
            asked.ptp_timestamp,
            outcome.status,
            outcome.prediction,
            valid_until=asked.valid_until_round,
            shot=shot.number,
        )

    def _close(self, shot: Shot) -> list[Action]:
        """Publish the shot's row once it is settled, replied to and no worker is busy with it."""
        if shot.outcome is None or shot.busy_workers or shot.reply_tx_ps < 0:
            return []
        return self._record(shot)

    def _record(self, shot: Shot) -> list[Action]:
        if shot.recorded:
            return []
        shot.recorded = True
        if not shot.reply_made:
            self._count["answers_undelivered"] += 1
        return [StampShot(shot.number, shot.row(*self._executed))]

    # -- decoding -----------------------------------------------------------------------------

    def _count_result(self, shot: Shot, result: Decode) -> None:
        self._count["results_discarded"] += shot.outcome is not None
        self._count["decoder_errors"] += result.failed is not Reason.NONE

    def _follow(self, steps: Iterable[Take | Decide]) -> list[Action]:
        """Carry out what the queue in front of the decoders decided."""
        actions: list[Action] = []
        for step in steps:
            shot = step.shot
            if isinstance(step, Take):
                actions += self._free(shot)
                actions.append(self._start(shot, fallback=step.fallback))
            elif step.do is Do.DECLARE_UNANSWERED:
                late = step.reason is Reason.DEADLINE
                status = Status.DEADLINE_MISSED if late else Status.INTERNAL_ERROR
                actions += self._declare(shot, Fault(status, step.reason))
            else:
                actions += self._answer(shot, step.do is Do.ANSWER_FALLBACK, step.reason)
        return actions

    def _start(self, shot: Shot, *, fallback: bool) -> Start:
        delays = self._config.delays
        extra_ps = delays.of("decode", shot.number)
        fails = Reason.NONE
        if not fallback:
            extra_ps += delays.stalls_ps.get(shot.number, 0)
            fails = self._config.broken(shot.number)
        packed = np.packbits(shot.bits, bitorder="little").tobytes()
        return Start(fallback, shot.number, packed, extra_ps, fails)
