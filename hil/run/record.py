"""From a batch and its timeline to columns: what the trace keeps and what the metrics read.

Both drivers end here, so a virtual and a live run write the same columns by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.protocol import Backend, Precision, PredecodeRecord, Reason
from gpu_decoder.windows import WindowPlan
from hil.device.sampler import BlockCutter, ShotBatch, event_counts
from hil.errors import UsageError
from hil.rack.link_faults import LinkPlans, suffering_shots
from hil.rack.plan import broken_shots, delayed_shots
from hil.rack.timeline import U8, Path, Status, Timeline
from hil.scenario.model import BreakFault, DelayFault
from hil.timebase import MISSING_PS
from hil.trace.column import Array
from hil.trace.schema import Block, ByteWidths, Dq, Record, block, code
from hil.verdict.density import EventCounts

Windows: TypeAlias = dict[str, NDArray[np.int64]]

STAMPS = (
    "t_intended_ps",
    "t_syndrome_ps",
    "t_tx_ps",
    "t_rx_ps",
    "t_visible_ps",
    "t_decode_start_ps",
    "t_decode_end_ps",
    "t_reply_tx_ps",
    "t_reply_rx_ps",
    "t_applied_ps",
)


@dataclass(frozen=True, slots=True)
class Predecoded:
    """What pre-decoders did to the ``n`` shots of a batch; NONE, NA and -1 where none answered.

    Attributes:
        backend_requested, backend_executed: uint8 [n], ``Backend`` codes.
        precision_requested, precision_executed: uint8 [n], ``Precision`` codes.
        events_left: int64 [n], detection events that went on to the matching, or -1.
    """

    backend_requested: U8
    backend_executed: U8
    precision_requested: U8
    precision_executed: U8
    events_left: NDArray[np.int64]

    @classmethod
    def of(cls, record: PredecodeRecord, answered: NDArray[np.bool_]) -> Predecoded:
        """Columns of one record; ``answered`` bool [n] marks the shots that its chain answered."""

        def column(code: int, none: int) -> U8:
            return np.where(answered, code, none).astype(np.uint8)

        return cls(
            column(record.backend_requested, Backend.NONE),
            column(record.backend_executed, Backend.NONE),
            column(record.precision_requested, Precision.NA),
            column(record.precision_executed, Precision.NA),
            np.where(answered, record.residual_events, np.int64(-1)),
        )

    @property
    def substituted(self) -> NDArray[np.bool_]:
        """Bool [n]: another backend or precision ran than was asked for."""
        backend = self.backend_requested != self.backend_executed
        changed: NDArray[np.bool_] = backend | (self.precision_requested != self.precision_executed)
        return changed


@dataclass(frozen=True, slots=True)
class Answers:
    """Raw answers of one batch.

    Attributes:
        predictions_b8: uint8 [n, ceil(O/8)], 0 where no decoder answered.
        requested, executed: uint8 [n], ``GlobalDecoder`` codes of the path that answered; 0 if
            none did.
        window_events: int64 [n, w], events that each sliding window saw; ``None`` for whole shots.
        commits_b8: uint8 [n, w, ceil(O/8)], flips that each sliding window committed.
        predecoded: what ran before the matching; ``None``: nothing does in this run.
    """

    predictions_b8: U8
    requested: U8
    executed: U8
    window_events: NDArray[np.int64] | None = None
    commits_b8: U8 | None = None
    predecoded: Predecoded | None = None


@dataclass(frozen=True, slots=True)
class Driven:
    """One batch as a driver yields it.

    Attributes:
        batch: the shots.
        times: their stamps and fates.
        answers: their answers.
        extra: rows of further streams (packets of a live run).
    """

    batch: ShotBatch
    times: Timeline
    answers: Answers
    extra: Record = field(default_factory=dict)

    @property
    def events(self) -> EventCounts | None:
        """Detection events before and behind the pre-decoder; ``None`` in a run without one.

        Only shots that the primary answered in its place count, as in a trace: -1 elsewhere.
        """
        before = self.answers.predecoded
        if before is None:
            return None
        own = self.times.reason == Reason.NONE
        return EventCounts(
            event_counts(self.batch.detectors_b8), np.where(own, before.events_left, -1)
        )


@dataclass(frozen=True)
class RecordBuilder:
    """Builds records by one set of rules.

    Attributes:
        cutter: cuts shots into blocks.
        widths: byte widths of packed columns.
        level: ``rounds`` or ``shots``.
        every: at level ``shots``, one shot in so many keeps its rows.
        warmup_shots: leading shots that are marked and judged apart.
        bases: ``X`` or ``Z`` of the shots in turn: shot s has ``bases[s % len(bases)]``.
        shot_period_ps: start to start.
        measured: whether times are measured (live) or modelled.
        board_mask: bit per readout board.
        delays: injected delays; the shots they touch are marked.
        stalled: shots whose decode is stalled on purpose.
        breaks: faults that break the primary; the shots they touch are marked.
        link_plans: faults of links; the shots in their windows are marked.
        plan: sliding windows of a shot, ``None`` where it is decoded as a whole.
    """

    cutter: BlockCutter
    widths: ByteWidths
    level: str
    every: int
    warmup_shots: int
    bases: tuple[str, ...]
    shot_period_ps: int
    measured: bool
    board_mask: int
    delays: tuple[DelayFault, ...] = ()
    stalled: frozenset[int] = field(default_factory=frozenset)
    plan: WindowPlan | None = None
    breaks: tuple[BreakFault, ...] = ()
    link_plans: LinkPlans = field(default_factory=dict)

    def build(self, driven: Driven) -> tuple[Record, Windows]:
        """One record, and the stamps of each shot's last block for the metrics."""
        batch, times, answers = driven.batch, driven.times, driven.answers
        shots = self._shots(batch, times, answers)
        windows = {
            name: (getattr(times, name)[:, -1] if k < 5 else getattr(times, name))
            for k, name in enumerate(STAMPS)
        }
        keep = self._kept(shots)
        record: Record = {"shots": shots, **driven.extra}
        if keep.size:
            record["rounds"] = self._rounds(batch, times, shots, keep)
            record["syndromes"] = self._syndromes(batch, keep)
            decodes = self._decodes(batch, times, answers, keep)
            if decodes["shot"].size:
                record["decodes"] = decodes
            first = np.full(batch.n_shots, 2**64 - 1, dtype=np.uint64)
            first[keep] = np.arange(keep.size, dtype=np.uint64) * self._n_blocks
            shots["first_round_row"] = first
        return record, windows

    @property
    def _n_blocks(self) -> int:
        return len(self.cutter.block_bits)

    def _dq(self, batch: ShotBatch, times: Timeline) -> NDArray[np.uint32]:
        shot = np.arange(batch.first_shot, batch.first_shot + batch.n_shots)
        dq = np.where(shot < self.warmup_shots, np.uint32(Dq.WARMUP.mask), np.uint32(0))
        dq[times.reason == Reason.TRANSPORT_LOSS] |= np.uint32(Dq.SEQ_GAP.mask)
        dq[times.status == Status.CONCEALED] |= np.uint32(Dq.CONCEALED.mask)
        for fault in self.delays:
            hit = delayed_shots(fault, batch.first_shot, batch.n_shots)
            dq[hit] |= np.uint32(Dq.FAULT_WINDOW.mask)
        for broken in self.breaks:
            hit = broken_shots(broken, batch.first_shot, batch.n_shots)
            dq[hit] |= np.uint32(Dq.FAULT_WINDOW.mask)
        in_window = suffering_shots(self.link_plans, batch.first_shot, batch.n_shots)
        dq[in_window] |= np.uint32(Dq.FAULT_WINDOW.mask)
        for stalled in self.stalled:
            if 0 <= stalled - batch.first_shot < batch.n_shots:
                dq[stalled - batch.first_shot] |= np.uint32(Dq.FAULT_WINDOW.mask)
        return dq

    def _shots(self, batch: ShotBatch, times: Timeline, answers: Answers) -> Block:
        n = batch.n_shots
        applied = np.isin(times.status, (Status.OK, Status.LATE, Status.CONCEALED))
        used = np.where(applied[:, None], answers.predictions_b8, np.uint8(0))
        timed = applied & (times.t_applied_ps != MISSING_PS)
        latency = np.where(timed, times.t_applied_ps - times.t_intended_ps[:, -1], MISSING_PS)
        shot = batch.shots
        codes = np.array([code("shots", "basis", name) for name in self.bases], dtype=np.uint8)
        return block(
            "shots",
            n,
            self.widths,
            shot=shot,
            epoch=batch.epoch,
            batch=batch.batch,
            index=np.arange(batch.first_index, batch.first_index + n),
            basis=codes[shot % codes.size],
            n_rounds=self._n_blocks - 1,
            t_start_intended_ps=shot * self.shot_period_ps,
            detectors_b8=batch.detectors_b8,
            obs_true_b8=batch.observables_b8,
            obs_pred_b8=used,
            failed=(used != batch.observables_b8).any(axis=1),
            latency_ps=latency,
            slack_ps=np.where(timed, times.deadline_ps - times.t_applied_ps, MISSING_PS),
            fallback=times.reason,
            status=times.status,
            dq_mask=self._dq(batch, times),
        )

    def _kept(self, shots: Block) -> NDArray[np.int64]:
        """Shots that keep their rows: all, or at level ``shots`` exceptions and 1 in N."""
        if self.level == "rounds":
            return np.arange(shots["shot"].size)
        unusual = (shots["status"] != Status.OK) | (shots["fallback"] != Reason.NONE)
        unusual |= (shots["dq_mask"] & ~np.uint32(Dq.WARMUP.mask)) != 0
        return np.flatnonzero(unusual | (shots["shot"] % self.every == 0))

    def _rounds(
        self, batch: ShotBatch, times: Timeline, shots: Block, keep: NDArray[np.int64]
    ) -> Block:
        r = self._n_blocks

        def per_row(column: Array) -> Array:
            if keep.size == 1:  # a long memory: constant columns cost nothing
                return np.broadcast_to(column[keep], (r,))
            return np.repeat(column[keep], r)

        stamps = {
            name: getattr(times, name)[keep].ravel() if k < 5 else per_row(getattr(times, name))
            for k, name in enumerate(STAMPS)
        }
        if self.plan is not None:  # a round belongs to the window that commits it
            for name, by_window in _by_window(times).items():
                stamps[name] = by_window[keep][:, self.plan.committed_by].ravel()
        latency = np.full((keep.size, r), MISSING_PS, dtype=np.int64)
        latency[:, -1] = shots["latency_ps"][keep]
        return block(
            "rounds",
            keep.size * r,
            self.widths,
            shot=per_row(shots["shot"]),
            round=np.tile(np.arange(r), keep.size),
            epoch=batch.epoch,
            board_mask=self.board_mask,
            t_pre_end_ps=per_row(times.t_pre_end_ps),
            latency_ps=latency.ravel(),
            status=per_row(times.status),
            dq_mask=per_row(shots["dq_mask"]),
            **stamps,
        )

    def _syndromes(self, batch: ShotBatch, keep: NDArray[np.int64]) -> Block:
        blocks = self.cutter.cut(batch.detectors_b8[keep])
        rows = keep.size * self._n_blocks
        return block(
            "syndromes",
            rows,
            self.widths,
            n_bits=np.tile(self.cutter.block_bits, keep.size),
            detectors_b8=blocks.reshape(rows, -1),
        )

    def _decodes(
        self, batch: ShotBatch, times: Timeline, answers: Answers, keep: NDArray[np.int64]
    ) -> Block:
        """One row per answered window; a shot that is decoded as a whole is one window."""
        rows = keep[times.path[keep] != Path.UNANSWERED]
        r = self._n_blocks
        plan = self.plan or WindowPlan(r, r, 0)
        w = plan.count
        start, end = times.t_decode_start_ps[rows], times.t_decode_end_ps[rows]
        answer = answers.predictions_b8[rows]
        if answers.window_events is None or answers.commits_b8 is None:
            events = event_counts(batch.detectors_b8[rows])
        else:
            windows = _by_window(times)
            start = windows["t_decode_start_ps"][rows].ravel()
            end = windows["t_decode_end_ps"][rows].ravel()
            events = answers.window_events[rows].ravel()
            answer = answers.commits_b8[rows].reshape(rows.size * w, answers.commits_b8.shape[2])
        left, columns = events, dict[str, Array]()
        if answers.predecoded is not None:
            columns = _predecoded_columns(answers.predecoded, times, rows)
            left = np.where(
                answers.predecoded.events_left[rows] < 0,
                events,
                answers.predecoded.events_left[rows],
            )
        applied = times.t_applied_ps[rows]
        slack = np.full((rows.size, w), MISSING_PS, dtype=np.int64)
        slack[:, -1] = np.where(
            applied != MISSING_PS, times.deadline_ps[rows] - applied, MISSING_PS
        )
        rows = np.repeat(rows, w)
        shot = batch.first_shot + rows
        last = np.tile(plan.last_round, rows.size // w)
        return block(
            "decodes",
            rows.size,
            self.widths,
            shot=shot,
            window_first=np.tile(plan.first_round, rows.size // w),
            window_last=last,
            request_id=(shot * (r + 1) + last + 1) & 0xFFFFFFFF,
            epoch=batch.epoch,
            epoch_echo=batch.epoch,
            global_requested=answers.requested[rows],
            global_executed=answers.executed[rows],
            fallback=times.reason[rows],
            deadline_ps=times.deadline_ps[rows],
            slack_ps=slack.ravel(),
            t_glob_start_ps=columns.pop("t_glob_start_ps", start),
            t_glob_end_ps=end,
            time_source=code("decodes", "time_source", "measured" if self.measured else "modelled"),
            events_in=events,
            events_out=left,
            obs_pred_b8=answer,
            queue_depth=times.queue_depth[rows],
            **columns,
        )


def _predecoded_columns(
    done: Predecoded, times: Timeline, rows: NDArray[np.int64]
) -> dict[str, Array]:
    """Columns of /decodes that tell of the pre-decoder; its stamps where they are known."""
    pre_end = times.t_pre_end_ps[rows]
    start = np.where(pre_end == MISSING_PS, MISSING_PS, times.t_decode_start_ps[rows])
    matching = np.where(pre_end == MISSING_PS, times.t_decode_start_ps[rows], pre_end)
    return {
        "backend_requested": done.backend_requested[rows],
        "backend_executed": done.backend_executed[rows],
        "precision_requested": done.precision_requested[rows],
        "precision_executed": done.precision_executed[rows],
        "t_pre_start_ps": start,
        "t_pre_end_ps": pre_end,
        "t_glob_start_ps": matching,
    }


def _by_window(times: Timeline) -> Windows:
    """Decode stamps of each sliding window, int64 [n, w]."""
    if times.t_window_start_ps is None or times.t_window_end_ps is None:
        raise UsageError("the timeline has no windows", where="system.decoder.window")
    return {"t_decode_start_ps": times.t_window_start_ps, "t_decode_end_ps": times.t_window_end_ps}


@dataclass
class Audit:
    """Counts over the whole run that must be zero in a sound chain; fed batch by batch."""

    last_applied_ps: int = MISSING_PS
    next_shot: int = 0
    lost_rounds: int = 0
    by_basis: dict[int, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "decoder.backend_mismatch",
                "rounds.out_of_order_commits",
                "shots.mixed_epoch",
                "answers.missing",
                "packets.lost_undetected",
            ),
            0,
        )
    )

    def update(self, record: Record, driven: Driven) -> None:
        """Count over one batch."""
        times, answers = driven.times, driven.answers
        changed = answers.requested != answers.executed
        if answers.predecoded is not None:
            changed = changed | answers.predecoded.substituted
        self.counts["decoder.backend_mismatch"] += int(changed.sum())
        applied = times.t_applied_ps[times.t_applied_ps != MISSING_PS]
        if applied.size:
            before = np.maximum.accumulate(np.concatenate([[self.last_applied_ps], applied]))
            self.counts["rounds.out_of_order_commits"] += int((applied < before[:-1]).sum())
            self.last_applied_ps = int(before[-1])
        decodes = record.get("decodes")
        if decodes is not None:
            self.counts["shots.mixed_epoch"] += int(
                (decodes["epoch"] != decodes["epoch_echo"]).sum()
            )
        unnoticed = times.dropped & (times.path != Path.UNANSWERED)[:, None]
        unnoticed &= (times.reason != Reason.DEVICE_LOST)[:, None]
        self.counts["packets.lost_undetected"] += int(unnoticed.sum())
        self.lost_rounds += int((times.dropped[times.reason == Reason.TRANSPORT_LOSS]).sum())
        shots = record["shots"]["shot"].astype(np.int64)
        self.counts["answers.missing"] += int(shots[0]) - self.next_shot
        undecided = (times.path == Path.UNANSWERED) & (times.reason == Reason.NONE)
        self.counts["answers.missing"] += int(undecided.sum())
        self.next_shot = int(shots[-1]) + 1
        self._count_bases(record["shots"])

    def _count_bases(self, shots: Block) -> None:
        """``by_basis``: code of the basis -> (shots, failed shots), warm-up included."""
        for basis in np.unique(shots["basis"]).tolist():
            failed = shots["failed"][shots["basis"] == basis]
            n, bad = self.by_basis.get(basis, (0, 0))
            self.by_basis[basis] = n + failed.size, bad + int(failed.sum())
