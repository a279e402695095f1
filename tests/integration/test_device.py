from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stim
from hypothesis import given
from hypothesis import strategies as st

from hil.device.circuits import CodeCircuit, from_stim, surface_memory
from hil.device.families import build_models
from hil.device.measurements import measurement_layout, measurement_layouts
from hil.device.sampler import BlockCutter, StimSampler, SyndromeFormer, batch_shots, event_counts
from hil.errors import ScenarioError
from hil.scenario.load import load_scenario


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


SHIPPED = ("surface_d5", "ising_d5", "user_circuit")


@pytest.mark.parametrize("what", [*SHIPPED, "X", "alternate", "repetition"])
def test_both_payloads_carry_the_same_shots(scenarios: Path, what: str) -> None:
    """Sampled as events or as raw measurements with D applied: one seed, equal shots."""
    models = models_of(scenarios, what)
    plain = next(StimSampler(models, 11).batches(400))
    measured = next(StimSampler(models, 11, measurements=True).batches(400))
    assert np.array_equal(plain.detectors_b8, measured.detectors_b8)
    assert np.array_equal(plain.observables_b8, measured.observables_b8)
    assert plain.measurements_b8 is None
    assert plain.detectors_b8.any()
    record = measured.measurements_b8
    assert record is not None
    layouts = measurement_layouts(models)
    bits = np.unpackbits(record, axis=1, count=layouts[0].n_measurements, bitorder="little")
    for shot in range(40):
        layout, code = layouts[shot % len(models)], models[shot % len(models)]
        events = [bits[shot, list(row)].sum() % 2 for row in layout.rows]
        want = np.unpackbits(measured.detectors_b8[shot], count=code.n_detectors, bitorder="little")
        assert events == want.tolist()
    part = measured.part(3, 7)
    assert part.measurements_b8 is not None
    assert np.array_equal(part.measurements_b8, record[3:7])


def models_of(scenarios: Path, what: str) -> tuple[CodeCircuit, ...]:
    name = what if what in SHIPPED else "surface_d5"
    circuit = "system.qpu.circuit"
    options = {
        "X": [f"{circuit}.basis=X"],
        "alternate": [f"{circuit}.basis=alternate"],
        "repetition": [f"{circuit}.task=repetition_code:memory"],
    }
    loaded = load_scenario(scenarios / f"{name}.yaml", overrides=options.get(what, []))
    return build_models(loaded.scenario.system.qpu)


def test_a_round_carries_its_checks_and_the_last_block_the_data_qubits(scenarios: Path) -> None:
    for what, sizes in (
        ("surface_d5", [24] * 5 + [25]),
        ("ising_d5", [24] * 5 + [25]),
        ("user_circuit", [4] * 6 + [5]),
    ):
        (layout,) = measurement_layouts(models_of(scenarios, what))
        assert layout.block_bits.tolist() == sizes
        assert layout.inverted == ()


def test_detectors_whose_parity_is_one_without_noise_are_inverted() -> None:
    circuit = stim.Circuit("R 0 1\nX 0\nX_ERROR(0.1) 0 1\nM 0 1\nDETECTOR(0) rec[-2]\n")
    circuit += stim.Circuit("M 0 1\nDETECTOR(1) rec[-1] rec[-3]\nDETECTOR(1) rec[-1] rec[-4]\n")
    code = from_stim(circuit, basis="Z", rounds=1)
    layout = measurement_layout(code)
    assert layout.block_bits.tolist() == [2, 2]
    assert (layout.rows, layout.inverted) == (((0,), (1, 3), (0, 3)), (0, 2))
    batch = next(StimSampler(code, 1, measurements=True).batches(500))
    assert batch.measurements_b8 is not None
    bits = np.unpackbits(batch.measurements_b8, axis=1, count=4, bitorder="little")
    events = np.unpackbits(batch.detectors_b8, axis=1, count=3, bitorder="little")
    for d, row in enumerate(layout.rows):
        assert np.array_equal(
            bits[:, list(row)].sum(axis=1) % 2 ^ (d in layout.inverted), events[:, d]
        )


@pytest.mark.parametrize(
    "text",
    [
        "R 0 1\nM 0 1\nM 0 1\nDETECTOR(0) rec[-4]\nDETECTOR(1) rec[-2]\n",
        "R 0 1\nM 0\nDETECTOR(1) rec[-1]\nM 1\nDETECTOR(0) rec[-1]\n",
    ],
    ids=["all-detectors-at-the-end", "rounds-out-of-order"],
)
def test_circuits_without_rounds_in_their_text_cannot_send_measurements(text: str) -> None:
    code = from_stim(stim.Circuit(text), basis="Z", rounds=1)
    with pytest.raises(ScenarioError, match="cannot be told apart by round"):
        measurement_layout(code)
