"""Both executors of one description must agree bit for bit: stamps, policy decisions, drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_decoder.policy import RECOVERABLE, PolicyConfig
from gpu_decoder.protocol import Reason
from gpu_decoder.windows import WindowPlan
from hil.errors import UsageError
from hil.rack.bulk import BulkExecutor
from hil.rack.events import EventExecutor
from hil.rack.pipeline import Pipeline, Station
from hil.rack.timeline import Path, Status, Timeline, Workload
from hil.timebase import MISSING_PS

US = 1_000_000


def _stations(draw: st.DrawFn, prefix: str, low: int) -> tuple[Station, ...]:
    count = draw(st.integers(low, 2))
    servers = st.one_of(st.none(), st.integers(1, 3))
    return tuple(Station(f"{prefix}{i}", draw(servers)) for i in range(count))


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Pipeline, int, list[int]]:
    boards = _stations(draw, "b", 0)
    period = draw(st.sampled_from([3, 10, 1000]))  # small numbers make many ties
    blocks = draw(st.integers(1, 4))
    gap = draw(st.integers(0, 3))
    pipeline = Pipeline(
        n_blocks=blocks,
        n_boards=draw(st.integers(1, 3)) if boards else 1,
        round_period_ps=period,
        shot_period_ps=period * blocks + draw(st.integers(0, 20)),
        board_stations=boards,
        rack_stations=_stations(draw, "r", 1),
        frame_gap_ps=gap + draw(st.integers(0, 2)),
        frame_ps=gap,
        ring_slots=draw(st.integers(blocks, 12)),
        deadline_ps=draw(st.integers(20, 120)),
        primary_deadline_ps=draw(st.integers(8, 60)),
        policy=PolicyConfig(
            enabled=draw(st.booleans()),
            primary_workers=draw(st.integers(1, 3)),
            fallback_workers=draw(st.integers(1, 2)),
            way_back_pred_ps=draw(st.integers(0, 10)),
            when=draw(st.sampled_from([RECOVERABLE, frozenset({Reason.DEADLINE})])),
        ),
    )
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))
    return pipeline, draw(st.integers(0, 2**32)), sizes


@st.composite
def sliding_pipelines(draw: st.DrawFn) -> tuple[Pipeline, int, list[int]]:
    pipeline, seed, sizes = draw(pipelines())
    blocks = draw(st.integers(1, 9))
    commit, buffer = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    sliding = dataclasses.replace(
        pipeline,
        n_blocks=blocks,
        shot_period_ps=pipeline.round_period_ps * blocks + draw(st.integers(0, 20)),
        ring_slots=draw(st.integers(min(blocks, commit + buffer), 14)),
        policy=dataclasses.replace(pipeline.policy, enabled=False),
        windows=WindowPlan(blocks, commit, buffer),
    )
    return sliding, seed, sizes


def _workloads(pipeline: Pipeline, seed: int, sizes: list[int]) -> Iterator[Workload]:
    rng = np.random.default_rng(seed)
    heavy = int(rng.integers(2, 80))
    first = 0
    for n in sizes:
        r = pipeline.n_blocks
        decodes = (n,) if pipeline.windows is None else (n, pipeline.windows.count)

        def some(*shape: int, low: int = 0, high: int = 7) -> np.ndarray:
            return rng.integers(low, high, size=shape, dtype=np.int64)

        yield Workload(
            first,
            some(len(pipeline.board_stations), pipeline.n_boards, n, r),
            some(len(pipeline.rack_stations), n, r),
            some(n, r),
            some(n, r),
            some(*decodes),
            some(*decodes, low=1, high=heavy),
            some(*decodes, low=1, high=30),
            some(n, low=1, high=heavy),
            some(n, low=1, high=40),
            some(n),
            some(n),
            some(n),
            rng.random((n, r)) < 0.03 if rng.random() < 0.5 else None,
            _failed(rng, n) if pipeline.windows is None and rng.random() < 0.5 else None,
        )
        first += n


def _failed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Some primaries give up, for two reasons."""
    reasons = np.array([Reason.NONE, Reason.PREDECODER_ERROR, Reason.FORCED], np.uint8)
    return reasons[rng.choice(3, size=n, p=[0.7, 0.2, 0.1])]


def _same(a: Timeline, b: Timeline) -> None:
    for field in dataclasses.fields(Timeline):
        assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pipelines())
def test_bulk_equals_events(case: tuple[Pipeline, int, list[int]]) -> None:
    pipeline, seed, sizes = case
    bulk = list(BulkExecutor(pipeline).run(_workloads(pipeline, seed, sizes)))
    events = list(EventExecutor(pipeline).run(_workloads(pipeline, seed, sizes)))
    assert len(bulk) == len(events) == len(sizes)
    for a, b in zip(bulk, events, strict=True):
        _same(a, b)
        answered = a.path != Path.UNANSWERED
        hops = a.t_applied_ps[a.status == Status.OK] - a.t_intended_ps[a.status == Status.OK][:, -1]
        assert (hops >= 0).all()
        assert (a.reason[~answered] != Reason.NONE).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sliding_pipelines())
def test_bulk_equals_events_with_sliding_windows(case: tuple[Pipeline, int, list[int]]) -> None:
    pipeline, seed, sizes = case
    bulk = list(BulkExecutor(pipeline).run(_workloads(pipeline, seed, sizes)))
    events = list(EventExecutor(pipeline).run(_workloads(pipeline, seed, sizes)))
    assert len(bulk) == len(events) == len(sizes)
    plan = pipeline.windows
    assert plan is not None
    for a, b in zip(bulk, events, strict=True):
        _same(a, b)
        assert a.t_window_start_ps is not None
        assert a.t_window_end_ps is not None
        answered = a.path == Path.PRIMARY
        start, end = a.t_window_start_ps[answered], a.t_window_end_ps[answered]
        assert (
            start[:, 1:] >= end[:, :-1]
        ).all()  # each needs the defects carried by the one before
        assert (start >= a.t_visible_ps[answered][:, plan.last_round]).all()
        assert (a.t_decode_start_ps[answered] == start[:, -1]).all()
        assert (answered == ~a.dropped.any(axis=1)).all()


def test_the_random_sliding_pipelines_reach_every_fate() -> None:
    seen: set[int] = set()
    partly = waited = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pipeline = Pipeline(
            8, 1, 10, 90, (), (Station("packetize"),), 1, 1, int(rng.integers(3, 14)), 90, 45,
            PolicyConfig(False, int(rng.integers(1, 3)), 1, 5), WindowPlan(8, 2, 1),
        )  # fmt: skip
        for t in BulkExecutor(pipeline).run(_workloads(pipeline, seed, [30])):
            seen |= set(t.reason.tolist())
            lost = t.dropped.any(axis=1)
            partly += int((lost & ~t.dropped[:, :3].any(axis=1)).sum())
            waited += int((t.queue_depth > 0).sum())
    assert seen == {Reason.NONE, Reason.QUEUE_FULL, Reason.TRANSPORT_LOSS}
    assert partly > 100
    assert waited > 100


@pytest.mark.parametrize("sliding", [True, False])
def test_interpreted_kernels_equal_compiled_ones(sliding: bool) -> None:
    pipeline = Pipeline(
        8, 2, 10, 90, (Station("demod", 2),), (Station("packetize"),), 1, 1, 10, 90, 45,
        PolicyConfig(not sliding, 1, 1, 5), WindowPlan(8, 2, 1) if sliding else None,
    )  # fmt: skip
    interpreted = BulkExecutor(pipeline)
    interpreted.compiled = False
    for a, b in zip(
        BulkExecutor(pipeline).run(_workloads(pipeline, 6, [20, 20])),
        interpreted.run(_workloads(pipeline, 6, [20, 20])),
        strict=True,
    ):
        _same(a, b)


def test_broken_window_executor_is_caught() -> None:
    """One that forgets between batches which worker is busy and what the ring holds."""

    class Forgetful(BulkExecutor):
        def run(self, workloads: Iterator[Workload]) -> Iterator[Timeline]:
            for work in workloads:
                yield from BulkExecutor(self._pipeline).run(iter([work]))

    pipeline = Pipeline(
        8, 1, 10, 90, (), (Station("packetize"),), 1, 1, 14, 900, 450,
        PolicyConfig(False, 1, 1, 5), WindowPlan(8, 2, 1),
    )  # fmt: skip
    good = list(EventExecutor(pipeline).run(_workloads(pipeline, 4, [20, 20])))
    bad = list(Forgetful(pipeline).run(_workloads(pipeline, 4, [20, 20])))
    _same(good[0], bad[0])
    with pytest.raises(AssertionError):
        _same(good[1], bad[1])


def test_the_random_pipelines_reach_every_fate() -> None:
    """The property above would be empty if its cases never fell back, refused or missed."""
    seen: set[tuple[int, int]] = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        pipeline = Pipeline(
            2, 1, 10, 25, (), (Station("packetize"),), 1, 1, int(rng.integers(2, 12)), 90, 45,
            PolicyConfig(bool(seed % 4), 1, 1, 5),
        )  # fmt: skip
        for t in BulkExecutor(pipeline).run(_workloads(pipeline, seed, [30])):
            seen |= set(zip(t.path.tolist(), t.reason.tolist(), strict=True))
    assert {p for p, _ in seen} == {Path.PRIMARY, Path.FALLBACK, Path.UNANSWERED}
    assert {r for _, r in seen} == {
        Reason.NONE, Reason.DEADLINE, Reason.QUEUE_FULL, Reason.TRANSPORT_LOSS,
        Reason.PREDECODER_ERROR, Reason.FORCED,
    }  # fmt: skip


def test_broken_executor_is_caught() -> None:
    """A bulk executor that forgets its state between batches must not pass the comparison."""

    class Forgetful(BulkExecutor):
        def run(self, workloads: Iterator[Workload]) -> Iterator[Timeline]:
            for work in workloads:
                yield from BulkExecutor(self._pipeline).run(iter([work]))

    pipeline = Pipeline(
        2, 1, 10, 20, (), (Station("packetize", 1),), 1, 1, 12, 200, 100,
        PolicyConfig(True, 1, 1, 5),
    )  # fmt: skip
    good = list(EventExecutor(pipeline).run(_workloads(pipeline, 4, [20, 20])))
    bad = list(Forgetful(pipeline).run(_workloads(pipeline, 4, [20, 20])))
    with pytest.raises(AssertionError):
        _same(good[1], bad[1])


def test_finite_buffers_block_and_belong_to_the_event_executor() -> None:
    rack = (Station("merge", 1), Station("packetize", 1, 1))
    pipeline = Pipeline(
        1, 1, 10, 10, (), rack, 0, 0, 64, 10_000, 9_000, PolicyConfig(False, 1, 1, 0)
    )
    with pytest.raises(UsageError, match="packetize"):
        BulkExecutor(pipeline)

    def work() -> Iterator[Workload]:
        one = np.ones(8, dtype=np.int64)
        block = np.zeros((8, 1), dtype=np.int64)
        slow = np.stack([np.full((8, 1), 1), np.full((8, 1), 50)]).astype(np.int64)
        yield Workload(
            0, np.zeros((0, 1, 8, 1), np.int64), slow, block, block, one, one, one, one, one,
            one, one, one,
        )  # fmt: skip

    (t,) = EventExecutor(pipeline).run(work())
    # packetize serves one block per 50 ps from 11 on. Block 2 is formed at 31 but holds the merge
    # server until the single waiting place is free at 61, so block 3 is formed at 62 only.
    assert t.t_tx_ps[:, 0].tolist() == [61 + 50 * i for i in range(8)]
    assert t.t_syndrome_ps[:5, 0].tolist() == [11, 21, 31, 62, 112]


def test_many_overrunning_primaries_do_not_overrun_memory() -> None:
    """The fallback queue is bounded by the deadline, not by the ring."""
    n = 600
    pipeline = Pipeline(
        1,
        1,
        10,
        10,
        (),
        (Station("packetize"),),
        0,
        0,
        8,
        10**9,
        5_000,
        PolicyConfig(True, 600, 1, 0),
    )
    one, block = np.ones(n, dtype=np.int64), np.zeros((n, 1), dtype=np.int64)

    def work() -> Iterator[Workload]:
        yield Workload(
            0, np.zeros((0, 1, n, 1), np.int64), np.zeros((1, n, 1), np.int64), block, block, one,
            one * 10**6, one, one * 10**5, one * 10, one, one, one,
        )  # fmt: skip

    (bulk,) = BulkExecutor(pipeline).run(work())
    (events,) = EventExecutor(pipeline).run(work())
    _same(bulk, events)
    assert (bulk.path == Path.FALLBACK).sum() > 500


def test_full_first_buffer_loses_the_round() -> None:
    pipeline = Pipeline(
        1, 1, 10, 10, (), (Station("packetize", 1, 1),), 0, 0, 64, 10_000, 9_000,
        PolicyConfig(False, 1, 1, 0),
    )  # fmt: skip
    one = np.ones(6, dtype=np.int64)
    block = np.zeros((6, 1), dtype=np.int64)
    work = Workload(
        0, np.zeros((0, 1, 6, 1), np.int64), np.full((1, 6, 1), 35, np.int64), block, block,
        one, one, one, one, one, one, one, one,
    )  # fmt: skip
    (t,) = EventExecutor(pipeline).run(iter([work]))
    assert t.dropped[:, 0].tolist() == [False, False, True, True, False, True]
    assert t.status[2] == Status.DROPPED
    assert t.reason[2] == Reason.TRANSPORT_LOSS
    lost = t.dropped[:, 0]
    for name in ("t_syndrome_ps", "t_tx_ps", "t_rx_ps", "t_visible_ps"):
        assert ((getattr(t, name)[:, 0] == MISSING_PS) == lost).all(), name
