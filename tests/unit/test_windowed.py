"""Sliding windows of the decode library: plan, folding, windows, the degenerate case."""

from __future__ import annotations

import numpy as np
import pytest
import stim
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.build import build_decoder
from gpu_decoder.folding import fold
from gpu_decoder.protocol import WindowSpec
from gpu_decoder.windowed import KEPT_GRAPHS, EdgeTable, SlidingMatching, WindowMatching
from gpu_decoder.windows import WindowPlan
from hil.device.circuits import CodeCircuit, surface_memory
from hil.device.sampler import StimSampler


def _code(rounds: int, distance: int = 3, p: float = 0.01) -> CodeCircuit:
    return surface_memory(distance=distance, rounds=rounds, basis="Z", p=p)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 9))
def test_windows_cover_and_commit_every_round_once(rounds: int, commit: int, buffer: int) -> None:
    plan = WindowPlan(rounds, commit, buffer)
    windows = [plan.window(k) for k in range(plan.count)]
    committed = [r for w in windows for r in range(w.first_round, w.commit_end_round)]
    assert committed == list(range(rounds))
    assert windows[-1].end_round == rounds
    assert all(w.end_round < rounds for w in windows[:-1])
    assert plan.last_round.tolist() == [w.end_round - 1 for w in windows]
    for r in range(rounds):
        first = next(k for k, w in enumerate(windows) if w.first_round <= r < w.end_round)
        assert plan.first_needed_by[r] == first
        owner = windows[plan.committed_by[r]]
        assert owner.first_round <= r < owner.commit_end_round


@pytest.mark.parametrize(("rounds", "commit", "buffer"), [(0, 1, 0), (3, 0, 1), (3, 1, -1)])
def test_plan_refuses_nonsense(rounds: int, commit: int, buffer: int) -> None:
    with pytest.raises(ValueError, match="commit >= 1"):
        WindowPlan(rounds, commit, buffer)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(0, 6), st.integers(30, 60))
def test_templates_are_the_windows_of_the_whole_model(
    commit: int, buffer: int, rounds: int
) -> None:
    """A shared graph has the detectors and carried defects of the window that it stands for."""
    code = _code(rounds)
    decoder = SlidingMatching(code.dem_text, commit=commit, buffer=buffer)
    flat = str(stim.DetectorErrorModel(code.dem_text).flattened())
    whole = SlidingMatching(flat, commit=commit, buffer=buffer)
    assert decoder.plan == whole.plan
    for k in range(decoder.plan.count):
        graph, shift = decoder.part(k)
        reference, none = whole.part(k)
        assert none == 0
        assert np.array_equal(graph.detectors + shift, reference.detectors)
        assert np.array_equal(graph.carried + shift, reference.carried)


@pytest.mark.parametrize(("commit", "buffer"), [(5, 5), (3, 4), (2, 0), (1, 7)])
def test_shared_graphs_answer_as_graphs_of_their_own(commit: int, buffer: int) -> None:
    code = _code(120)
    detectors = next(StimSampler(code, 3).batches(400)).detectors_b8
    shared = SlidingMatching(code.dem_text, commit=commit, buffer=buffer)
    flat = str(stim.DetectorErrorModel(code.dem_text).flattened())
    own = SlidingMatching(flat, commit=commit, buffer=buffer)
    a, b = shared.decode_batch(detectors), own.decode_batch(detectors)
    # equal weights may be matched either way: almost all answers agree, and no more graphs are made
    assert (a.predictions_b8 == b.predictions_b8).mean() > 0.98
    assert a.window_events is not None
    assert b.window_events is not None
    assert (a.window_events[:, 0] == b.window_events[:, 0]).all()
    assert shared.graphs_built <= 20
    evicted = own.plan.count > KEPT_GRAPHS  # the last one, built first, is then built twice
    assert own.graphs_built == own.plan.count + evicted


def test_graphs_do_not_grow_with_the_rounds() -> None:
    built = []
    for rounds in (200, 20_000):
        code = _code(rounds, p=0.001)
        decoder = SlidingMatching(code.dem_text, commit=5, buffer=5)
        decoder.decode_batch(np.zeros((1, -(-code.n_detectors // 8)), np.uint8))
        assert decoder.plan.n_rounds == rounds + 1
        built.append(decoder.graphs_built)
    assert built[0] == built[1] <= 10


def test_graphs_of_a_circuit_without_loop_are_bounded() -> None:
    code = _code(100)
    flat = str(stim.DetectorErrorModel(code.dem_text).flattened())
    decoder = SlidingMatching(flat, commit=1, buffer=1)
    decoder.decode_batch(np.zeros((1, -(-code.n_detectors // 8)), np.uint8))
    assert decoder.graphs_built == decoder.plan.count + 1  # the last one, built first, is evicted
    assert decoder.plan.count > KEPT_GRAPHS
    assert len(decoder._graphs) == KEPT_GRAPHS


def test_one_window_over_everything_is_the_whole_shot() -> None:
    code = _code(12)
    detectors = next(StimSampler(code, 3).batches(2000)).detectors_b8
    sliding = SlidingMatching(code.dem_text, commit=13, buffer=0)
    whole = build_decoder("pymatching", code.dem_text)
    assert sliding.plan.count == 1
    answers = sliding.decode_batch(detectors).predictions_b8
    assert (answers == whole.decode_batch(detectors).predictions_b8).mean() > 0.999


def test_window_by_window_equals_the_shot() -> None:
    """The one-window protocol, driven by hand: commit, carry, go on."""
    code = _code(20)
    batch = next(StimSampler(code, 3).batches(300))
    decoder = SlidingMatching(code.dem_text, commit=3, buffer=3)
    state = np.unpackbits(batch.detectors_b8, axis=1, count=code.n_detectors, bitorder="little")
    total = np.zeros((300, 1), np.uint8)
    expected = decoder.decode_batch(batch.detectors_b8)
    assert expected.commits_b8 is not None
    for k in range(decoder.plan.count):
        graph, shift = decoder.part(k)
        window = np.packbits(state[:, graph.detectors + shift], axis=1, bitorder="little")
        out = graph.decode_batch(window)
        assert (graph.decode_one(window[0]) == out.predictions_b8[0]).all()
        assert (out.predictions_b8 == expected.commits_b8[:, k]).all()
        assert out.carried_b8 is not None
        carried = np.unpackbits(out.carried_b8, axis=1, count=graph.carried.size, bitorder="little")
        state[:, graph.carried + shift] ^= carried
        total ^= out.predictions_b8
    assert (total == expected.predictions_b8).all()
    assert (np.bitwise_xor.reduce(expected.commits_b8, axis=1) == total).all()
    one = decoder.decode_one(batch.detectors_b8[7])
    assert (one == expected.predictions_b8[7]).all()


def test_carried_defect_crosses_the_commit_boundary() -> None:
    """Two detectors, one edge between rounds 0 and 1: window 0 commits it and flips detector 1."""
    dem = stim.DetectorErrorModel(
        "error(0.1) D0 D1 L0\nerror(0.01) D0\nerror(0.01) D1\ndetector(0) D0\ndetector(1) D1"
    )
    folded = fold(str(dem), commit=1, length=2)
    window = WindowMatching(EdgeTable.of(folded), WindowSpec(0, 2, 1), 1)
    assert window.carried.tolist() == [1]
    out = window.decode_batch(np.array([[0b11]], np.uint8))
    assert out.predictions_b8.tolist() == [[1]]
    assert out.carried_b8 is not None
    assert out.carried_b8.tolist() == [[1]]
    sliding = SlidingMatching(str(dem), commit=1, buffer=1)
    assert sliding.decode_batch(np.array([[0b11]], np.uint8)).predictions_b8.tolist() == [[1]]


def test_refusals_are_clear() -> None:
    code = _code(5)
    with pytest.raises(ValueError, match="has no round"):
        SlidingMatching("error(0.1) D0\nerror(0.1) D0 D1", commit=1, buffer=1)
    with pytest.raises(ValueError, match="no detectors"):
        SlidingMatching("logical_observable L0", commit=1, buffer=1)
    with pytest.raises(ValueError, match="does not decode sliding windows"):
        build_decoder("pymatching_corr", code.dem_text, sliding=(5, 5))
    decoder = build_decoder("pymatching", code.dem_text, sliding=(2, 2))
    with pytest.raises(ValueError, match="allowed"):
        decoder.decode_batch(np.zeros((1, 1), np.uint8))
    silent = SlidingMatching("error(0.1) D0\ndetector(0) D0\ndetector(0) D1", commit=1, buffer=0)
    with pytest.raises(ValueError, match="no error of the model flips"):
        silent.decode_batch(np.array([[2]], np.uint8))
    huge = "repeat 2000001 {\n error(0.1) D0\n detector(0) D0\n shift_detectors 1\n}"
    with pytest.raises(ValueError, match="no loop that moves on by whole rounds"):
        fold(huge, commit=1, length=1)


def _ancilla_noise(rounds: int) -> str:
    """Data errors before each round and faulty resets: the final readout itself is perfect."""
    circuit = stim.Circuit.generated(
        "surface_code:rotated_memory_z",
        distance=3,
        rounds=rounds,
        before_round_data_depolarization=0.02,
        after_reset_flip_probability=0.005,
    )
    return str(circuit.detector_error_model(decompose_errors=True))


def test_a_last_window_that_cannot_explain_its_defects_is_refused_when_built() -> None:
    """Rounds 0 to 10, commit 5: window 2 is round 10 alone, and only errors of round 9 reach it."""
    with pytest.raises(ValueError, match="rounds 10 to 10 has 4 detectors"):
        SlidingMatching(_ancilla_noise(10), commit=5, buffer=0)
    for rounds, commit, buffer in ((10, 5, 1), (9, 5, 0)):
        SlidingMatching(_ancilla_noise(rounds), commit=commit, buffer=buffer)


def test_a_model_without_boundary_is_decoded_to_its_end() -> None:
    """A ring of four checks: every window but the last is open towards later rounds."""
    lines = [f"detector({i}, {t}) D{4 * t + i}" for t in range(12) for i in range(4)]
    for t in range(12):
        for i in range(4):
            flips = " L0" if i == 0 else ""
            lines.append(f"error(0.01) D{4 * t + i} D{4 * t + (i + 1) % 4}{flips}")
            if t < 11:
                lines.append(f"error(0.01) D{4 * t + i} D{4 * t + 4 + i}")
    dem = stim.DetectorErrorModel("\n".join(lines))
    events, _, _ = dem.compile_sampler(seed=5).sample(500, bit_packed=True)
    decoded = SlidingMatching(str(dem), commit=3, buffer=2).decode_batch(events)
    assert decoded.predictions_b8.any()
    with pytest.raises(ValueError, match="decided before"):  # the last round falls into two pieces
        SlidingMatching("\n".join(lines[:48] + _without_ring(lines[48:])), commit=1, buffer=0)


def _without_ring(errors: list[str]) -> list[str]:
    """Drop two opposite errors of the last round, so that its checks form two pairs."""
    cut = ("D44 D45", "D46 D47")
    return [line for line in errors if not any(line.removesuffix(" L0").endswith(c) for c in cut)]
