"""Bulk executor: exact integer recursions over whole batches.

Stations are Lindley recursions in item order (int64, no rounding, so equal to the event executor
bit for bit: ``docs/time.md``); ring and fallback policy are one loop over shots, compiled by
numba. It cannot run finite buffers: those block, and blocking is the event executor's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numba import njit
from numba.extending import register_jitable

from gpu_decoder.protocol import Reason
from hil.errors import UsageError
from hil.rack.bulk_ring import NEVER, prune
from hil.rack.bulk_windows import stream
from hil.rack.pipeline import Pipeline, Station, WayBack, finish
from hil.rack.timeline import I64, Bools, Path, Timeline, Workload

_PRIMARY, _FALLBACK, _UNANSWERED = int(Path.PRIMARY), int(Path.FALLBACK), int(Path.UNANSWERED)
_NONE, _DEADLINE = int(Reason.NONE), int(Reason.DEADLINE)
_QUEUE_FULL, _LOSS = int(Reason.QUEUE_FULL), int(Reason.TRANSPORT_LOSS)


@njit(cache=True)
def _pipelined(arrive, delay, last):  # type: ignore[no-untyped-def]
    """Delay every item, keep order: ``out[i] = max(arrive[i] + delay[i], out[i-1])``."""
    out = np.empty_like(arrive)
    for i in range(arrive.size):
        last = max(arrive[i] + delay[i], last)
        out[i] = last
    return out, last


@njit(cache=True)
def _queued(arrive, service, free, last):  # type: ignore[no-untyped-def]
    """FIFO queue with ``free.size`` servers, each held until its item leaves in order."""
    out = np.empty_like(arrive)
    for i in range(arrive.size):
        w = 0
        for k in range(1, free.size):
            if free[k] < free[w]:
                w = k
        last = max(max(arrive[i], free[w]) + service[i], last)
        free[w] = last
        out[i] = last
    return out, last


@njit(cache=True)
def _wire(arrive, flight, gap, free, last):  # type: ignore[no-untyped-def]
    """MAC and wire: first bit when the MAC is free, last bit received in order."""
    tx = np.empty_like(arrive)
    rx = np.empty_like(arrive)
    for i in range(arrive.size):
        tx[i] = max(arrive[i], free)
        free = tx[i] + gap
        last = max(tx[i] + flight[i], last)
        rx[i] = last
    return tx, rx, free, last


@register_jitable
def _predicted_finish(jobs: Any, n_jobs: Any, workers: Any, now: Any, pred: Any) -> Any:  # noqa: ANN401
    """Predicted finish of a job admitted now; ``jobs`` rows = start, end, prediction, in order."""
    free = np.full(workers, now)
    w = 0
    for k in range(n_jobs):  # running jobs: an overdue one may end at any moment
        if jobs[k, 0] <= now:
            free[w] = max(now, jobs[k, 0] + jobs[k, 2])
            w += 1
    for k in range(n_jobs):
        if jobs[k, 0] > now:
            free[np.argmin(free)] += jobs[k, 2]
    return free.min() + pred


@njit(cache=True)
def _node(  # type: ignore[no-untyped-def]
    rx, visible, lost, dispatch, primary, primary_pred, failed, fallback, fallback_pred, t0_last,
    enabled, when, slots, primary_deadline, deadline, way_back,
    scalars, primary_free, fallback_free, jobs, times, counts, kinds,
):  # fmt: skip
    """Ring, primary queue, fallback policy: ``gpu_decoder.policy`` replayed shot by shot.

    ``when``: by ``Reason``, whether the fallback is asked. ``scalars`` = last_ready, last_fate,
    n_jobs, n_held, used slots, next release. ``times``, ``counts``, ``kinds``: when held slots are
    released, how many, and whether a window holds them.
    """
    n, r = rx.shape
    start = np.zeros(n, dtype=np.int64)
    end = np.zeros(n, dtype=np.int64)
    path = np.zeros(n, dtype=np.uint8)
    reason = np.zeros(n, dtype=np.uint8)
    dropped = np.zeros((n, r), dtype=np.bool_)
    depth = np.zeros(n, dtype=np.uint16)
    last_ready, last_fate, n_jobs, n_held, used, release_next = scalars
    for i in range(n):
        held = 0
        refused = False
        missing = False
        for k in range(r):
            if lost[i, k]:
                dropped[i, k] = True
                missing = True
                continue
            if release_next <= rx[i, k]:
                n_held, used, release_next = prune(times, counts, kinds, n_held, rx[i, k])
            if used + held >= slots:
                dropped[i, k] = True
                refused = True
            else:
                held += 1
        if refused or missing:
            path[i] = _UNANSWERED
            reason[i] = _QUEUE_FULL if refused else _LOSS
            release = visible[i, r - 1]
        else:
            ready = max(visible[i, r - 1] + dispatch[i], last_ready)
            last_ready = ready
            waiting = 0
            for k in range(n_held):
                if times[k] > ready and kinds[k]:
                    waiting += 1
            depth[i] = waiting
            w = np.argmin(primary_free)
            begin = max(ready, primary_free[w])
            release = begin
            limit = t0_last[i] + primary_deadline
            trigger = np.int64(-1)
            reason[i] = _NONE
            if not enabled or begin <= limit - primary_pred[i]:
                done = begin + primary[i]
                primary_free[w] = done
                if not enabled and failed[i] != _NONE:
                    path[i] = _UNANSWERED
                    reason[i] = failed[i]
                    last_fate = max(last_fate, done)
                elif enabled and failed[i] != _NONE and done <= limit:
                    trigger = max(done, last_fate)
                    reason[i] = failed[i]
                elif not enabled or done <= limit:
                    start[i] = begin
                    end[i] = done
                    last_fate = max(last_fate, done)
                else:
                    trigger = max(limit, last_fate)
                    reason[i] = _DEADLINE
            else:
                trigger = max(limit - primary_pred[i], ready, last_fate)
                release = trigger
                reason[i] = _DEADLINE
            if trigger >= 0:
                last_fate = trigger
                kept = 0
                for k in range(n_jobs):
                    if jobs[k, 1] > trigger:
                        jobs[kept] = jobs[k]
                        kept += 1
                n_jobs = kept
                predicted = _predicted_finish(
                    jobs, n_jobs, fallback_free.size, trigger, fallback_pred[i]
                )
                if when[reason[i]] and predicted + way_back <= t0_last[i] + deadline:
                    v = np.argmin(fallback_free)
                    start[i] = max(trigger, fallback_free[v])
                    end[i] = start[i] + fallback[i]
                    fallback_free[v] = end[i]
                    if n_jobs == jobs.shape[0]:  # bounded by the deadline, not by the ring
                        longer = np.zeros((2 * n_jobs, 3), dtype=np.int64)
                        longer[:n_jobs] = jobs
                        jobs = longer
                    jobs[n_jobs, 0] = start[i]
                    jobs[n_jobs, 1] = end[i]
                    jobs[n_jobs, 2] = fallback_pred[i]
                    n_jobs += 1
                    path[i] = _FALLBACK
                    if release == trigger:
                        release = start[i]
                else:
                    path[i] = _UNANSWERED
        if held > 0:
            times[n_held] = release
            counts[n_held] = held
            kinds[n_held] = not (refused or missing)
            n_held += 1
            used += held
            release_next = min(release_next, release)
    scalars[:] = (last_ready, last_fate, n_jobs, n_held, used, release_next)
    return start, end, path, reason, dropped, depth, jobs


@dataclass
class _Carry:
    """State between batches: when servers and wires are free, what the node still holds."""

    last: dict[str, int] = field(default_factory=dict)
    free: dict[str, I64] = field(default_factory=dict)
    mac_free: int = 0
    way_back: WayBack = field(default_factory=WayBack)


LONG_SHOT_BLOCKS: Final = 20_000
"""Longer shots run interpreted: one of them takes as long as sampling it, and the compiler's 60 MB
would be a fifth of what a memory of 1e5 rounds may use. The functions are the same."""


class BulkExecutor:
    """See module text. ``check`` says why a pipeline cannot be run by it."""

    name = "bulk"

    def __init__(self, pipeline: Pipeline) -> None:
        why_not = BulkExecutor.check(pipeline)
        if why_not:
            raise UsageError(
                "the bulk executor cannot run this pipeline",
                where="bind.rack.executor",
                got=why_not,
                allowed="stations without finite buffers",
                fix="write executor: auto or executor: events",
            )
        self._pipeline = pipeline
        self.compiled = pipeline.n_blocks <= LONG_SHOT_BLOCKS
        self._carry = _Carry()
        policy = pipeline.policy
        room = pipeline.ring_slots + 8  # every held entry holds at least one slot
        self._scalars = np.array([0, 0, 0, 0, 0, NEVER], dtype=np.int64)
        self._primary_free = np.zeros(policy.primary_workers, dtype=np.int64)
        self._fallback_free = np.zeros(policy.fallback_workers, dtype=np.int64)
        self._when = np.isin(np.arange(len(Reason)), [int(reason) for reason in policy.when])
        self._jobs = np.zeros((16, 3), dtype=np.int64)
        self._held = (
            np.zeros(room, dtype=np.int64),
            np.zeros(room, dtype=np.int64),
            np.zeros(room, dtype=np.bool_),
        )

    @staticmethod
    def check(pipeline: Pipeline) -> str:
        """Why the bulk executor cannot run this pipeline; empty if it can."""
        finite = [s.name for s in pipeline.stations if s.buffer is not None]
        return f"finite buffer in front of {', '.join(finite)} (blocking)" if finite else ""

    def run(self, workloads: Iterator[Workload]) -> Iterator[Timeline]:
        """One timeline per workload; no lookahead is needed (fates are decided in shot order)."""
        yield from map(self._batch, workloads)  # holds no batch while the next one is made

    def _kernel(self, kernel: Any) -> Any:  # noqa: ANN401 - numba is untyped
        return kernel if self.compiled else kernel.py_func

    def _station(self, key: str, station: Station, arrive: I64, samples: I64) -> I64:
        last = self._carry.last.get(key, 0)
        if station.servers is None:
            out, last = self._kernel(_pipelined)(arrive, samples, last)
        else:
            free = self._carry.free.setdefault(key, np.zeros(station.servers, dtype=np.int64))
            out, last = self._kernel(_queued)(arrive, samples, free, last)
        self._carry.last[key] = int(last)
        result: I64 = out
        return result

    def _upstream(self, work: Workload, intended: I64) -> tuple[I64, I64]:
        """T1 (behind the last station before ``packetize``) and the time packetize is left."""
        flat = intended.ravel()
        p = self._pipeline
        joined = None
        for board in range(p.n_boards):
            at = flat
            for k, station in enumerate(p.board_stations):
                at = self._station(
                    f"{station.name}[{board}]", station, at, work.board_ps[k, board].ravel()
                )
            joined = at if joined is None else np.maximum(joined, at)
        at = flat if joined is None else joined
        for k, station in enumerate(p.rack_stations[:-1]):
            at = self._station(station.name, station, at, work.rack_ps[k].ravel())
        packetize = p.rack_stations[-1]
        return at, self._station(packetize.name, packetize, at, work.rack_ps[-1].ravel())

    def send_times(self, work: Workload) -> tuple[I64, I64, I64]:
        """T0, T1 and the instant each frame is handed to the MAC, int64 [n, r] (live runs)."""
        intended = self._pipeline.intended_ps(work.first_shot, work.n_shots)
        formed, packed = self._upstream(work, intended)
        return intended, formed.reshape(intended.shape), packed.reshape(intended.shape)

    def _batch(self, work: Workload) -> Timeline:
        p, carry = self._pipeline, self._carry
        intended, formed, packed = self.send_times(work)
        shape = intended.shape
        tx, rx, mac_free, last_rx = self._kernel(_wire)(
            packed.ravel(),
            (work.uplink_ps + p.frame_ps).ravel(),
            p.frame_gap_ps,
            carry.mac_free,
            carry.last.get("wire", 0),
        )
        carry.mac_free, carry.last["wire"] = int(mac_free), int(last_rx)
        visible, last = self._kernel(_pipelined)(
            rx, work.deliver_ps.ravel(), carry.last.get("deliver", 0)
        )
        carry.last["deliver"] = int(last)
        rx, visible = rx.reshape(shape), visible.reshape(shape)
        lost = np.zeros(shape, dtype=np.bool_) if work.lost is None else work.lost
        if p.windows is not None:
            return self._windows(work, (intended, formed, tx.reshape(shape), rx, visible), lost)
        failed = np.zeros(work.n_shots, dtype=np.uint8) if work.failed is None else work.failed
        start, end, path, reason, dropped, depth, self._jobs = self._kernel(_node)(
            rx, visible, lost, work.dispatch_ps, work.primary_ps, work.primary_pred_ps, failed,
            work.fallback_ps, work.fallback_pred_ps, intended[:, -1],
            p.policy.enabled, self._when, p.ring_slots, p.primary_deadline_ps, p.deadline_ps,
            p.policy.way_back_pred_ps,
            self._scalars, self._primary_free, self._fallback_free, self._jobs, *self._held,
        )  # fmt: skip
        return finish(
            p,
            work,
            carry.way_back,
            stamps=(intended, formed, tx.reshape(shape), rx, visible),
            start_ps=start,
            end_ps=end,
            path=path,
            reason=reason,
            dropped=dropped,
            depth=depth,
        )

    def _windows(
        self, work: Workload, stamps: tuple[I64, I64, I64, I64, I64], lost: Bools
    ) -> Timeline:
        """The node of a streaming decoder."""
        p, plan = self._pipeline, self._pipeline.windows
        if plan is None:
            raise UsageError("this pipeline has no windows", where="system.decoder.window")
        start, end, path, reason, dropped, depth = self._kernel(stream)(
            stamps[3], stamps[4], lost, work.dispatch_ps, work.primary_ps, plan.last_round,
            p.ring_slots, self._scalars, self._primary_free, *self._held,
        )  # fmt: skip
        return finish(
            p,
            work,
            self._carry.way_back,
            stamps=stamps,
            start_ps=start[:, -1],
            end_ps=end[:, -1],
            path=path,
            reason=reason,
            dropped=dropped,
            depth=depth,
            windows=(start, end),
        )
