"""The description that both executors run: stations, link, ring, workers, deadlines.

A *station* keeps the order of its items. With ``servers`` it is a FIFO queue with that many
servers, and an item holds its server until it leaves; without, it is a pipeline that delays
every item and never queues. ``buffer`` limits the waiting places in front of a station: when they
are full the station before it is blocked, and in front of the first station a round is lost,
because a quantum processor cannot be stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpu_decoder.policy import PolicyConfig
from gpu_decoder.protocol import Reason
from gpu_decoder.windows import WindowPlan
from hil.errors import UsageError
from hil.rack.timeline import I64, Path, Status, Timeline, Workload
from hil.timebase import MISSING_PS


@dataclass(frozen=True, slots=True)
class Station:
    """One stage of the rack; ``None`` = unlimited."""

    name: str
    servers: int | None = None
    buffer: int | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that an executor has to know besides the samples of a ``Workload``.

    Attributes:
        n_blocks: blocks per shot (rounds + final readout).
        n_boards: readout boards, joined behind ``board_stations``.
        round_period_ps, shot_period_ps: cadence; T0 of block r of shot s is
            ``s * shot_period + (r + 1) * round_period``.
        board_stations: stations that exist once per readout board, in order.
        rack_stations: stations behind the join; the last one is ``packetize``.
        frame_gap_ps: time from the first bit of a frame to the earliest first bit of the next.
        frame_ps: time from the first to the last bit of a frame.
        ring_slots: frames that the node can hold.
        deadline_ps, primary_deadline_ps: counted from T0 of a shot's last block.
        policy: parameters of the fallback policy.
        windows: how the blocks of a shot are decoded in a stream; ``None`` = as a whole. Streaming
            has no fallback: the policy is ``never``.
    """

    n_blocks: int
    n_boards: int
    round_period_ps: int
    shot_period_ps: int
    board_stations: tuple[Station, ...]
    rack_stations: tuple[Station, ...]
    frame_gap_ps: int
    frame_ps: int
    ring_slots: int
    deadline_ps: int
    primary_deadline_ps: int
    policy: PolicyConfig
    windows: WindowPlan | None = None

    def __post_init__(self) -> None:
        if self.windows is None:
            return
        if self.policy.enabled or self.windows.n_rounds != self.n_blocks:
            raise UsageError(
                "windows that do not fit the pipeline",
                where="system.decoder.window",
                got=f"{self.windows.n_rounds} of {self.n_blocks} blocks, "
                f"fallback {'on' if self.policy.enabled else 'off'}",
                allowed="all blocks of a shot, fallback off",
                fix="write fallback.policy: never",
            )

    @property
    def stations(self) -> tuple[Station, ...]:
        """All stations in order of passage."""
        return self.board_stations + self.rack_stations

    def intended_ps(self, first_shot: int, n_shots: int) -> I64:
        """T0, int64 [n_shots, n_blocks]: the schedule, never moved by progress."""
        shots = np.arange(first_shot, first_shot + n_shots, dtype=np.int64)[:, None]
        blocks = np.arange(1, self.n_blocks + 1, dtype=np.int64)[None, :]
        return shots * self.shot_period_ps + blocks * self.round_period_ps


class StageExecutor(Protocol):
    """Runs the pipeline over batches; state (queues, servers, backlog) carries over."""

    name: str

    def __init__(self, pipeline: Pipeline) -> None:
        """An executor with empty queues."""

    def run(self, workloads: Iterator[Workload]) -> Iterator[Timeline]:
        """Pull workloads as needed and yield one timeline for each, in order."""


@dataclass(slots=True)
class WayBack:
    """Latest stamps of the way back; carries over between batches."""

    reply_tx_ps: int = MISSING_PS
    reply_rx_ps: int = MISSING_PS
    applied_ps: int = MISSING_PS


def _in_order(times: I64, answered: np.ndarray, last_ps: int) -> tuple[I64, int]:
    """Running maximum over the answered shots, in shot order, from ``last_ps`` on."""
    running = np.maximum.accumulate(np.where(answered, times, MISSING_PS))
    running = np.maximum(running, last_ps)
    last = int(running[-1]) if running.size else last_ps
    return np.where(answered, running, MISSING_PS), last


def finish(
    pipeline: Pipeline,
    work: Workload,
    way_back: WayBack,
    *,
    stamps: tuple[I64, I64, I64, I64, I64],
    start_ps: I64,
    end_ps: I64,
    path: np.ndarray,
    reason: np.ndarray,
    dropped: np.ndarray,
    depth: np.ndarray,
    reply: tuple[I64, I64] | None = None,
    windows: tuple[I64, I64] | None = None,
) -> Timeline:
    """Send the answers home and decide each window's status.

    ``windows`` are start and end of each window of a streaming decoder, [n, w], 0 where it was not
    decoded; ``start_ps`` and ``end_ps`` are those of the last one. ``reply`` gives T8 and T9 where
    they were measured; otherwise they follow from the samples.

    Answers leave the node, arrive and take effect in shot order (the response ring is strictly
    round robin); an early answer waits for its predecessors. Apart from that the way back has no
    queue: replies are far apart and about 100 bytes long. Under policy ``on_deadline`` an
    answer that would be applied after its deadline is discarded by the rack (``valid_until``):
    status ``timeout``, T10 missing. Under ``never`` it is applied late.
    """
    if work.undelivered is not None:
        gone = work.undelivered & (path != Path.UNANSWERED)
        path = np.where(gone, np.uint8(Path.UNANSWERED), path)
        reason = np.where(gone, np.uint8(Reason.TRANSPORT_LOSS), reason)
    answered = path != Path.UNANSWERED
    deadline = stamps[0][:, -1] + pipeline.deadline_ps

    if reply is None:
        reply_tx, way_back.reply_tx_ps = _in_order(
            end_ps + work.reply_ps, answered, way_back.reply_tx_ps
        )
        reply_rx, way_back.reply_rx_ps = _in_order(
            reply_tx + work.downlink_ps, answered, way_back.reply_rx_ps
        )
        applied, way_back.applied_ps = _in_order(
            reply_rx + work.apply_ps, answered, way_back.applied_ps
        )
    else:  # observed: nothing is put in order here
        reply_tx, reply_rx = (np.where(answered, column, MISSING_PS) for column in reply)
        applied = np.where(answered, reply_rx + work.apply_ps, MISSING_PS)
    received, visible = stamps[3], np.where(dropped, MISSING_PS, stamps[4])
    if work.lost is not None:
        received = np.where(work.lost, MISSING_PS, received)
    late = answered & (applied > deadline)
    status = np.full(work.n_shots, Status.OK, dtype=np.uint8)
    status[late] = Status.TIMEOUT if pipeline.policy.enabled else Status.LATE
    if pipeline.policy.enabled:
        applied[late] = MISSING_PS
        reason = np.where(late & (reason == Reason.NONE), np.uint8(Reason.DEADLINE), reason)
    status[~answered] = Status.TIMEOUT
    status[~answered & (reason != Reason.DEADLINE)] = Status.DROPPED
    return Timeline(
        work.first_shot,
        *stamps[:3],
        received,
        visible,
        np.where(answered, start_ps, MISSING_PS),
        _pre_end(work, start_ps, path),
        np.where(answered, end_ps, MISSING_PS),
        reply_tx,
        reply_rx,
        applied,
        deadline,
        path,
        reason,
        status,
        dropped,
        depth,
        *(np.where(column > 0, column, MISSING_PS) for column in windows or ()),
    )


def _pre_end(work: Workload, start_ps: I64, path: np.ndarray) -> I64:
    """T6 of the shots that the primary answered behind a pre-decoder; the fallback has none."""
    if work.pre_ps is None:
        return np.full(work.n_shots, MISSING_PS, dtype=np.int64)
    return np.where(path == Path.PRIMARY, start_ps + work.pre_ps, MISSING_PS)
