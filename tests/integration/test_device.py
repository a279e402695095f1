from __future__ import annotations

import numpy as np
import pytest
import stim
from hypothesis import given
from hypothesis import strategies as st

from hil.device.circuits import surface_memory
from hil.device.sampler import BlockCutter, StimSampler, SyndromeFormer, batch_shots, event_counts
from hil.errors import ScenarioError


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_detection_events_equal_stim_converter_bit_for_bit(basis: str) -> None:
    code = surface_memory(distance=5, rounds=5, basis=basis, p=0.01)
    circuit = stim.Circuit(code.circuit_text)
    measured = circuit.compile_sampler(seed=5).sample(10_000, bit_packed=True)
    want, want_obs = circuit.compile_m2d_converter().convert(
        measurements=measured, separate_observables=True, bit_packed=True
    )
    got, got_obs = SyndromeFormer(code).form(measured)
    assert np.array_equal(got, want)
    assert np.array_equal(got_obs, want_obs)
    assert want.any()
    assert want_obs.any()


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_blocks_join_to_what_stim_sampled(basis: str) -> None:
    code = surface_memory(distance=5, rounds=5, basis=basis, p=0.01)
    cutter = BlockCutter(code)
    assert cutter.block_bits.tolist() == [12, 24, 24, 24, 24, 12]
    shots = 0
    for batch in StimSampler(code, seed=9).batches(10_000):
        blocks = cutter.cut(batch.detectors_b8)
        bits = np.unpackbits(blocks, axis=2, bitorder="little")
        want = np.unpackbits(batch.detectors_b8, axis=1, count=120, bitorder="little")
        for detector in range(code.n_detectors):
            column = bits[:, code.detector_block[detector], code.detector_slot[detector]]
            assert np.array_equal(column, want[:, detector])
        assert np.array_equal(cutter.join(blocks), batch.detectors_b8)
        assert np.array_equal(event_counts(batch.detectors_b8), want.sum(axis=1))
        shots += batch.n_shots
    assert shots == 10_000


def test_a_shot_does_not_depend_on_the_length_of_the_run() -> None:
    code = surface_memory(distance=3, rounds=3, basis="Z", p=0.02)
    short = list(StimSampler(code, seed=1).batches(300))
    long = list(StimSampler(code, seed=1).batches(20_000))
    assert len(long) == 2
    assert np.array_equal(short[0].detectors_b8, long[0].detectors_b8[:300])
    other = next(StimSampler(code, seed=2).batches(300))
    assert not np.array_equal(short[0].detectors_b8, other.detectors_b8)
    assert not np.array_equal(long[0].detectors_b8[:100], long[1].detectors_b8[:100])


@given(st.integers(min_value=1, max_value=10**7))
def test_batch_size_is_a_bounded_power_of_two(n_detectors: int) -> None:
    n = batch_shots(n_detectors)
    assert (256 if n_detectors <= 32768 else 1) <= n <= 16384
    assert n & (n - 1) == 0


def test_refused_circuit_names_the_parameters() -> None:
    with pytest.raises(ScenarioError, match="distance 1"):
        surface_memory(distance=1, rounds=3, basis="Z", p=0.001)
