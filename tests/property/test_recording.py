"""Replays of recordings: marginals are the tables, any shot can be made again, whole ps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hil.errors import ScenarioError
from hil.rack.draws import Replay
from hil.rack.fit.capture import Capture
from hil.rack.fit.model import fit_recording, replayed_total_ps
from hil.scenario.latency import Recorded
from hil.scenario.recording import Recording, decode, encode

SHA = "0" * 64


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Capture, Recording]:
    """A capture of a few thousand rounds with ties, and its recording."""
    n, stages = draw(st.integers(1, 40)) * 24, draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    events = rng.integers(0, draw(st.integers(1, 6)), size=n)
    step = draw(st.sampled_from([1, 1_000, 10**9]))
    durations = rng.integers(0, 50, size=(stages, n)) * step
    per_shot = draw(st.sampled_from([0, 1, 8]))
    names = tuple(f"s{k}" for k in range(stages))
    found = Capture("x", names, durations, events, per_shot, ())
    return found, decode(encode(fit_recording(found)))


@given(recordings())
@settings(deadline=None, max_examples=60)
def test_replaying_the_recorded_events_gives_the_recorded_rounds(
    case: tuple[Capture, Recording],
) -> None:
    capture, recording = case
    assert capture.events is not None
    rows = np.arange(capture.n_rounds)
    for k, stage in enumerate(capture.stages):
        found = recording.replay_ps(stage, rows, capture.events)
        assert (found == capture.durations_ps[k]).all()
        assert found.dtype == np.int64
    total = replayed_total_ps(recording, capture.events, 0)
    assert (total == capture.durations_ps.sum(axis=0)).all()


@given(recordings(), st.integers(0, 10**6), st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_every_class_replays_its_own_table(
    case: tuple[Capture, Recording], start: int, events: int
) -> None:
    """With one event count everywhere, only durations of that class appear."""
    _, recording = case
    rows = start + np.arange(recording.n_rounds)
    wanted = int(np.searchsorted(recording.events_from, events, side="right")) - 1
    low, high = recording.edges[wanted : wanted + 2]
    for k, stage in enumerate(recording.stages):
        found = recording.replay_ps(stage, rows, np.full(rows.size, events))
        table = recording.table_ps[k, low:high]
        assert np.isin(found, table).all()
        levels = np.arange(1, 10) / 10
        place = np.searchsorted(np.sort(table), np.quantile(found, levels)) / table.size
        slack = 1 / min(np.diff(recording.edges)) + 1 / table.size
        upper = np.searchsorted(np.sort(table), np.quantile(found, levels), side="right")
        assert (place <= levels + slack).all()
        assert (upper / table.size >= levels - slack).all(), "marginals equal the table"


@given(recordings(), st.integers(0, 2**60), st.integers(0, 1000), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_any_shot_can_be_made_again(
    case: tuple[Capture, Recording], seed: int, batch: int, n: int
) -> None:
    """A draw depends on seed, batch and events only, and a prefix of the batch is a prefix."""
    _, recording = case
    rng = np.random.default_rng(batch)
    events = rng.integers(0, 5, size=(n, 8))
    stage = recording.stages[-1]
    latency = Recorded(dist="recorded", file="x.npz", sha256=SHA, stage=stage, recording=recording)
    whole = Replay(seed, batch, events).draw(latency, (n, 8))
    assert whole.shape == (n, 8)
    assert (Replay(seed, batch, events).draw(latency, (n, 8)) == whole).all()
    part = Replay(seed, batch, events[: n // 2 + 1]).draw(latency, (n // 2 + 1, 8))
    assert (part == whole[: n // 2 + 1]).all()
    per_shot = Replay(seed, batch, events).draw(latency, (n,))
    if recording.rounds_per_shot != 1:
        assert (per_shot == whole[:, -1]).all(), "one value per shot: that of its last block"
    halves = [
        Replay(seed, batch, events).draw(latency.model_copy(update={"half": half}), (n, 8))
        for half in ("first", "second")
    ]
    assert (halves[0] + halves[1] == whole).all()
    single = replace(recording, rounds_per_shot=1)
    there, back = (
        Replay(seed, batch, events).draw(
            latency.model_copy(update={"half": half, "recording": single}), shape
        )
        for half, shape in (("first", (n, 8)), ("second", (n,)))
    )
    total = latency.model_copy(update={"recording": single})
    assert (there[:, -1] + back == Replay(seed, batch, events).draw(total, (n, 8))[:, -1]).all()


@given(recordings())
@settings(deadline=None, max_examples=30)
def test_stages_of_one_recording_replay_the_same_rounds(case: tuple[Capture, Recording]) -> None:
    capture, _ = case
    assert capture.events is not None
    n = capture.n_rounds // 8
    events = np.zeros((n, 8), dtype=np.int64)
    same = Capture("x", capture.stages, capture.durations_ps, None, 8, ())
    joint = fit_recording(same)
    drawn = [
        Replay(3, 5, events).draw(
            Recorded(dist="recorded", file="x", sha256=SHA, stage=s, recording=joint), (n, 8)
        ).ravel()
        for s in joint.stages
    ]  # fmt: skip
    pairs = {tuple(column) for column in capture.durations_ps.T.tolist()}
    assert {tuple(int(v) for v in column) for column in zip(*drawn, strict=True)} <= pairs


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_bytes_that_are_no_recording_are_refused(raw: bytes) -> None:
    with pytest.raises(ScenarioError, match="not a recording"):
        decode(raw)


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_recordings_with_wrong_arrays_are_refused(data: st.DataObject) -> None:
    """Whatever a well-formed archive holds: a replay never leaves its tables."""
    ints = st.integers(-3, 6)
    rows, stages = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    shape = (stages, rows)
    found = Recording(
        tuple(f"s{k}" for k in range(stages)),
        data.draw(arrays(np.int64, st.integers(1, 3), elements=ints)),
        data.draw(arrays(np.int64, st.integers(1, 4), elements=ints)),
        data.draw(arrays(np.int64, shape, elements=ints)),
        data.draw(arrays(np.int32, shape, elements=ints)),
        data.draw(arrays(np.int32, rows, elements=ints)),
        data.draw(st.integers(-1, 3)),
    )
    try:
        good = decode(encode(found))
    except ScenarioError:
        return
    for stage in good.stages:
        drawn = good.replay_ps(stage, np.arange(20), np.arange(20))
        assert (drawn >= 0).all()
        assert np.isin(drawn, good.table_ps).all()
