"""Event executor: the pipeline as a SimPy world. The reference that the bulk executor must equal.

Events at one instant are handled in this order (SimPy priorities): queue movements, decode
completions, windows that become ready, timers, frames that arrive at the ring.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import simpy
from simpy.events import EventPriority

from gpu_decoder.policy import Action, DeadlinePolicy, Do
from gpu_decoder.protocol import Reason
from gpu_decoder.windows import WindowPlan
from hil.errors import UsageError
from hil.rack.event_windows import StreamedShot, StreamingNode
from hil.rack.pipeline import Pipeline, Station, WayBack, finish
from hil.rack.timeline import I64, Path, Timeline, Workload
from hil.timebase import MISSING_PS

_COMPLETION, _READY, _TIMER, _ARRIVAL = 2, 3, 4, 5
Process: TypeAlias = Generator[simpy.Event, Any, None]


class _Call(simpy.Event):
    """A plain call at a later instant, with a priority among the events of that instant."""

    def __init__(
        self, env: simpy.Environment, at_ps: int, priority: int, call: Callable[[], None]
    ) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.callbacks.append(lambda _event: call())
        env.schedule(self, EventPriority(priority), at_ps - env.now)


@dataclass(slots=True)
class _Batch:
    """One workload under way and the stamps it has collected."""

    work: Workload
    stamps: tuple[I64, I64, I64, I64, I64]
    start: I64
    end: I64
    path: np.ndarray
    reason: np.ndarray
    dropped: np.ndarray
    depth: np.ndarray
    undecided: int
    windows: tuple[I64, I64] | None = None


@dataclass(slots=True)
class _Shot:
    batch: _Batch
    i: int
    key: int
    held: int = 0
    refused: bool = False
    missing: bool = False
    streamed: StreamedShot | None = None


@dataclass(slots=True)
class _Block:
    shot: _Shot
    k: int


class _StationProcess:
    """A station of the description as two SimPy processes: service and ordered release."""

    def __init__(
        self,
        env: simpy.Environment,
        station: Station,
        delay: Callable[[_Block], int],
        leave: Callable[[_Block], simpy.Event | None],
    ) -> None:
        self._env = env
        self._delay = delay
        self._leave = leave
        self.inbox = simpy.Store(env, capacity=station.buffer or math.inf)
        self._out = simpy.Store(env)
        self._servers = simpy.Resource(env, station.servers) if station.servers else None
        env.process(self._serve())
        env.process(self._release())

    def _serve(self) -> Process:
        while True:
            request = self._servers.request() if self._servers else None
            if request is not None:
                yield request
            block = yield self.inbox.get()
            yield self._out.put((block, self._env.now + self._delay(block), request))

    def _release(self) -> Process:
        while True:
            block, done_ps, request = yield self._out.get()
            if done_ps > self._env.now:
                yield self._env.timeout(done_ps - self._env.now)
            accepted = self._leave(block)
            if accepted is not None:
                yield accepted  # a full buffer ahead holds the block, and its server, here
            if request is not None and self._servers is not None:
                self._servers.release(request)


@dataclass
class _World:
    """All processes of one run."""

    pipeline: Pipeline
    workloads: Iterator[Workload]
    env: simpy.Environment = field(default_factory=simpy.Environment)
    open: deque[_Batch] = field(default_factory=deque)

    def __post_init__(self) -> None:
        p = self.pipeline
        self._policy = DeadlinePolicy(p.policy)
        self._shots: dict[int, _Shot] = {}
        self._used = 0
        self._last_ready = 0
        self._timer = -1
        self._streaming = None if p.windows is None else self._streaming_node(p, p.windows)
        self._mac = simpy.Store(self.env)
        self._deliver = _StationProcess(
            self.env,
            Station("deliver"),
            lambda b: int(b.shot.batch.work.deliver_ps[b.shot.i, b.k]),
            self._visible,
        )
        self._flight = _StationProcess(
            self.env,
            Station("uplink"),
            lambda b: int(b.shot.batch.work.uplink_ps[b.shot.i, b.k]) + p.frame_ps,
            self._received,
        )
        self.env.process(self._transmit())
        entry = self._build_rack(p)
        if p.board_stations:
            self._lanes = [self._build_lane(board, p) for board in range(p.n_boards)]
            self.env.process(self._join(entry))
        else:
            self._lanes = [entry]
        self._first_buffered = p.stations[0].buffer is not None
        self.env.process(self._source())

    @property
    def _now(self) -> int:
        return int(self.env.now)

    # -- rack -------------------------------------------------------------------------------

    def _build_rack(self, p: Pipeline) -> simpy.Store:
        """Stations behind the join, built from the last to the first; returns the first inbox."""
        target: Callable[[_Block], simpy.Event] = self._mac.put
        inbox: simpy.Store = self._mac
        for k in reversed(range(len(p.rack_stations))):
            last_before_packetize = k == len(p.rack_stations) - 2
            process = _StationProcess(
                self.env,
                p.rack_stations[k],
                lambda b, k=k: int(b.shot.batch.work.rack_ps[k, b.shot.i, b.k]),  # type: ignore[misc]
                self._stamping_formed(target) if last_before_packetize else target,
            )
            inbox, target = process.inbox, process.inbox.put
        return inbox

    def _stamping_formed(
        self, target: Callable[[_Block], simpy.Event]
    ) -> Callable[[_Block], simpy.Event]:
        def leave(block: _Block) -> simpy.Event:
            block.shot.batch.stamps[1][block.shot.i, block.k] = self._now
            return target(block)

        return leave

    def _build_lane(self, board: int, p: Pipeline) -> simpy.Store:
        exit_ = simpy.Store(self.env)
        self._exits = [*getattr(self, "_exits", []), exit_]
        target = exit_.put
        inbox = exit_
        for k in reversed(range(len(p.board_stations))):
            process = _StationProcess(
                self.env,
                p.board_stations[k],
                lambda b, k=k: int(b.shot.batch.work.board_ps[k, board, b.shot.i, b.k]),  # type: ignore[misc]
                target,
            )
            inbox, target = process.inbox, process.inbox.put
        return inbox

    def _join(self, entry: simpy.Store) -> Process:
        stamp_here = len(self.pipeline.rack_stations) == 1
        while True:
            block: _Block | None = None
            for lane in self._exits:
                block = yield lane.get()
            if block is None:
                return
            if stamp_here:
                block.shot.batch.stamps[1][block.shot.i, block.k] = self._now
            yield entry.put(block)

    def _source(self) -> Process:
        for work in self.workloads:
            batch = self._open_batch(work)
            intended = batch.stamps[0]
            for i in range(work.n_shots):
                shot = _Shot(batch, i, work.first_shot + i)
                if batch.windows is not None:
                    shot.streamed = self._streamed(shot, *batch.windows)
                for k in range(self.pipeline.n_blocks):
                    yield self.env.timeout(int(intended[i, k]) - self._now)
                    yield from self._enter(_Block(shot, k))

    def _enter(self, block: _Block) -> Process:
        """A round begins; it is lost where a first buffer has no room (a QPU cannot wait)."""
        if self._first_buffered and any(len(lane.items) >= lane.capacity for lane in self._lanes):
            block.shot.missing = True
            block.shot.batch.dropped[block.shot.i, block.k] = True
            if block.k == self.pipeline.n_blocks - 1:
                self._complete(block.shot)
            return
        if len(self.pipeline.stations) == 1:
            block.shot.batch.stamps[1][block.shot.i, block.k] = self._now
        for lane in self._lanes:
            yield lane.put(block)

    def _open_batch(self, work: Workload) -> _Batch:
        p = self.pipeline
        n, r = work.n_shots, p.n_blocks
        blank = np.full((4, n, r), MISSING_PS, dtype=np.int64)
        batch = _Batch(
            work,
            (p.intended_ps(work.first_shot, n), blank[0], blank[1], blank[2], blank[3]),
            np.zeros(n, dtype=np.int64),
            np.zeros(n, dtype=np.int64),
            np.zeros(n, dtype=np.uint8),
            np.zeros(n, dtype=np.uint8),
            np.zeros((n, r), dtype=np.bool_),
            np.zeros(n, dtype=np.uint16),
            n,
            None if p.windows is None else _blank_windows(n, p.windows.count),
        )
        self.open.append(batch)
        return batch

    # -- link and ring ----------------------------------------------------------------------

    def _transmit(self) -> Process:
        while True:
            block = yield self._mac.get()
            block.shot.batch.stamps[2][block.shot.i, block.k] = self._now
            yield self._flight.inbox.put(block)
            yield self.env.timeout(self.pipeline.frame_gap_ps)

    def _received(self, block: _Block) -> None:
        block.shot.batch.stamps[3][block.shot.i, block.k] = self._now
        _Call(self.env, self._now, _ARRIVAL, lambda: self._arrive(block))

    def _arrive(self, block: _Block) -> None:
        shot, batch = block.shot, block.shot.batch
        if batch.work.lost is not None and batch.work.lost[shot.i, block.k]:
            shot.missing = True
            batch.dropped[shot.i, block.k] = True
        elif self._streaming is not None and shot.streamed is not None:
            if not self._streaming.admit(shot.streamed, block.k):
                shot.refused = True
                batch.dropped[shot.i, block.k] = True
        elif self._used >= self.pipeline.ring_slots:
            shot.refused = True
            batch.dropped[shot.i, block.k] = True
        else:
            self._used += 1
            shot.held += 1
        if shot.streamed is not None and batch.dropped[shot.i, block.k]:
            shot.streamed.bad = min(shot.streamed.bad, block.k)
        self._deliver.inbox.put(block)

    def _visible(self, block: _Block) -> None:
        shot = block.shot
        shot.batch.stamps[4][shot.i, block.k] = self._now
        if self._streaming is not None and shot.streamed is not None:
            self._streaming.visible(shot.streamed, block.k)
        elif block.k == self.pipeline.n_blocks - 1:
            self._complete(shot)

    def _complete(self, shot: _Shot) -> None:
        if shot.refused or shot.missing:
            self._free(shot)
            self._give_up(shot)
            return
        dispatch = int(shot.batch.work.dispatch_ps[shot.i])
        self._last_ready = max(self._now + dispatch, self._last_ready)
        _Call(self.env, self._last_ready, _READY, lambda: self._ready(shot))

    def _give_up(self, shot: _Shot) -> None:
        reason = Reason.QUEUE_FULL if shot.refused else Reason.TRANSPORT_LOSS
        self._decide(shot, Path.UNANSWERED, reason)

    # -- node: sliding windows --------------------------------------------------------------

    def _streaming_node(self, p: Pipeline, plan: WindowPlan) -> StreamingNode:
        return StreamingNode(
            plan,
            p.policy.primary_workers,
            p.ring_slots,
            now=lambda: self._now,
            at_ready=partial(self._later, _READY),
            at_done=partial(self._later, _COMPLETION),
        )

    def _later(self, priority: int, at_ps: int, call: Callable[[], None]) -> None:
        _Call(self.env, at_ps, priority, call)

    def _streamed(self, shot: _Shot, start_ps: I64, end_ps: I64) -> StreamedShot:
        work, i = shot.batch.work, shot.i

        def finished(answered: bool) -> None:
            if answered:
                self._decide(shot, Path.PRIMARY, Reason.NONE)
            else:
                self._give_up(shot)

        def waited(windows: int) -> None:
            shot.batch.depth[i] = windows

        return StreamedShot(
            work.dispatch_ps[i], work.primary_ps[i], start_ps[i], end_ps[i], finished, waited
        )

    # -- node: whole shots ------------------------------------------------------------------

    def _ready(self, shot: _Shot) -> None:
        p, batch = self.pipeline, shot.batch
        self._shots[shot.key] = shot
        t0 = int(batch.stamps[0][shot.i, -1])
        actions = self._policy.ready(
            shot.key,
            self._now,
            primary_deadline_ps=t0 + p.primary_deadline_ps,
            deadline_ps=t0 + p.deadline_ps,
            primary_pred_ps=int(batch.work.primary_pred_ps[shot.i]),
            fallback_pred_ps=int(batch.work.fallback_pred_ps[shot.i]),
        )
        own = any(a.key == shot.key for a in actions)
        batch.depth[shot.i] = self._policy.backlog - (0 if own else 1)
        self._carry_out(actions)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            shot = self._shots[action.key]
            batch, i = shot.batch, shot.i
            if action.do is Do.START_PRIMARY:
                self._free(shot)
                batch.start[i] = self._now
                done = self._now + int(batch.work.primary_ps[i])
                failed = Reason.NONE if batch.work.failed is None else Reason(batch.work.failed[i])
                call = partial(self._primary_done, action.key, failed)
                _Call(self.env, done, _COMPLETION, call)
            elif action.do is Do.START_FALLBACK:
                self._free(shot)
                batch.start[i] = self._now
                done = self._now + int(batch.work.fallback_ps[i])
                _Call(self.env, done, _COMPLETION, lambda k=action.key: self._fallback_done(k))  # type: ignore[misc]
            elif action.do is Do.DECLARE_UNANSWERED:
                self._free(shot)
                self._decide(shot, Path.UNANSWERED, action.reason)
            else:
                primary = action.do is Do.ANSWER_PRIMARY
                batch.end[i] = self._now
                self._decide(shot, Path.PRIMARY if primary else Path.FALLBACK, action.reason)
        self._arm()

    def _primary_done(self, key: int, failed: Reason) -> None:
        if failed is Reason.NONE:
            self._carry_out(self._policy.primary_done(key, self._now))
        else:
            self._carry_out(self._policy.primary_failed(key, self._now, failed))

    def _fallback_done(self, key: int) -> None:
        self._carry_out(self._policy.fallback_done(key, self._now))

    def _arm(self) -> None:
        at = self._policy.next_timer_ps()
        if at is not None and at != self._timer:
            self._timer = at
            _Call(
                self.env,
                max(at, self._now),
                _TIMER,
                lambda: self._carry_out(self._policy.tick(self._now)),
            )

    def _free(self, shot: _Shot) -> None:
        self._used -= shot.held
        shot.held = 0

    def _decide(self, shot: _Shot, path: Path, reason: Reason) -> None:
        shot.batch.path[shot.i] = path
        shot.batch.reason[shot.i] = reason
        shot.batch.undecided -= 1
        self._shots.pop(shot.key, None)


def _blank_windows(n: int, count: int) -> tuple[I64, I64]:
    return np.zeros((n, count), dtype=np.int64), np.zeros((n, count), dtype=np.int64)


class EventExecutor:
    """See module text."""

    name = "events"

    def __init__(self, pipeline: Pipeline) -> None:
        if pipeline.windows is not None and any(s.buffer is not None for s in pipeline.stations):
            raise UsageError(
                "sliding windows behind a stage with a finite buffer",
                where="system.rack.stages",
                allowed="stages without buffer, or window.mode: shot",
                fix="remove buffer",
            )
        self._pipeline = pipeline

    def run(self, workloads: Iterator[Workload]) -> Iterator[Timeline]:
        """Step the world until the oldest batch is decided; later batches may be under way."""
        world = _World(self._pipeline, workloads)
        way_back = WayBack()
        while True:
            while not world.open or world.open[0].undecided:
                if world.env.peek() == float("inf"):
                    return
                world.env.step()
            batch = world.open.popleft()
            yield finish(
                self._pipeline,
                batch.work,
                way_back,
                stamps=batch.stamps,
                start_ps=batch.start if batch.windows is None else batch.windows[0][:, -1],
                end_ps=batch.end if batch.windows is None else batch.windows[1][:, -1],
                path=batch.path,
                reason=batch.reason,
                dropped=batch.dropped,
                depth=batch.depth,
                windows=batch.windows,
            )
