"""Labels explain detectors and observable; their equivalents explain them with less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import ORIENTATIONS, Orientation, geometry
from gpu_decoder.ising.noise import Ising25, IsingScalar
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.training import labels as module
from gpu_decoder.ising.training.equivalence import equivalent, spacelike
from gpu_decoder.ising.training.labels import Labelled, LabelSampler, label_grid

CASES = [(o, b) for o in ORIENTATIONS for b in "XZ"]


def _layout(orientation: str, basis: str, *, rounds: int = 5, keep_last: bool = False) -> Layout:
    kind = "X" if basis == "X" else "Z"
    return Layout(geometry(5, orientation), rounds, kind, keep_last)


def _sample(layout: Layout, n: int = 400, seed: int = 7) -> Labelled:
    return LabelSampler(layout, Ising25.from_p(0.01)).sample(n, seed)


@pytest.mark.parametrize(("orientation", "basis"), CASES)
@pytest.mark.parametrize("rounds", [2, 5])
def test_true_labels_leave_nothing_to_the_matcher(
    orientation: Orientation, basis: str, rounds: int
) -> None:
    """Oracle: with the labels as output nothing fires and the frame is the observable."""
    layout = _layout(orientation, basis, rounds=rounds)
    shots = _sample(layout)
    assert shots.detectors.any()
    assert shots.observable.any()
    last = slice((2 * rounds - 3) * layout.geometry.half, (2 * rounds - 1) * layout.geometry.half)
    for case in (shots, equivalent(layout, shots)):
        out = layout.residual(case.detectors, label_grid(layout, case))
        np.testing.assert_array_equal(out[:, 0], case.observable)
        residual = out[:, 1:].copy()
        block = residual[:, last].reshape(len(residual), 2, -1)
        memory = 0 if basis == "X" else 1
        assert not block[:, memory].any()
        residual[:, last] = 0
        assert not residual.any()
        kept = Layout(layout.geometry, rounds, layout.basis, keep_last=True)
        assert not kept.residual(case.detectors, label_grid(layout, case))[:, 1:].any()


def test_the_oracle_notices_a_wrong_label() -> None:
    layout = _layout("XV", "X")
    shots = _sample(layout)
    grid = label_grid(layout, shots)
    grid[3, 0, 2, 0, 0] ^= 1
    out = layout.residual(shots.detectors, grid)
    assert out[3, 1:].any()
    assert out[3, 0] != shots.observable[3]


@pytest.mark.parametrize("noise", [Ising25.from_p(0.006), IsingScalar(0.006)])
@pytest.mark.parametrize("basis", ["X", "Z"])
def test_detector_rates_are_those_of_stim(noise: Ising25 | IsingScalar, basis: str) -> None:
    """Each of 120 rates of two samplers of 20,000 shots: abs(z) < 6.5, false alarm below 1e-7."""
    layout = _layout("ZH", basis)
    ours = LabelSampler(layout, noise).sample(20_000, 11).detectors.mean(axis=0)
    circuit = memory_circuit(layout.geometry, layout.rounds, layout.basis, noise)
    theirs = circuit.compile_detector_sampler(seed=12).sample(20_000).mean(axis=0)
    spread = np.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / 20_000) + 1e-12
    assert np.abs(ours - theirs).max() > 0
    assert (np.abs(ours - theirs) / spread).max() < 6.5


def test_label_density_shows_uncleared_ancillas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame left on a reset ancilla returns as a stabilizer: labels would be far too many."""
    layout = _layout("XV", "X")
    density = LabelSampler(layout, Ising25.from_p(0.006)).sample(2_000, 3).data.mean()
    assert 0.022 < density < 0.026

    import stim

    class Forgetful:
        def __init__(self, **options: object) -> None:
            self._simulator = stim.FlipSimulator(**options)

        def __getattr__(self, name: str) -> object:
            if name == "broadcast_pauli_errors":
                return lambda **_: None
            return getattr(self._simulator, name)

    class Peer:
        Circuit = stim.Circuit
        FlipSimulator = Forgetful

    monkeypatch.setitem(__import__("sys").modules, "stim", Peer)
    broken = LabelSampler(layout, Ising25.from_p(0.006))
    assert module is not None
    assert broken.sample(2_000, 3).data.mean() > 0.04


@pytest.mark.parametrize(("orientation", "basis"), CASES)
def test_equivalent_labels_are_fewer(orientation: Orientation, basis: str) -> None:
    layout = _layout(orientation, basis)
    shots = _sample(layout)
    fewer = equivalent(layout, shots)
    assert fewer.data.sum() < 0.85 * shots.data.sum()
    assert fewer.checks.sum() < 0.75 * shots.checks.sum()
    np.testing.assert_array_equal(fewer.detectors, shots.detectors)


@settings(max_examples=200)
@given(
    distance=st.sampled_from([3, 5, 7]),
    orientation=st.sampled_from(ORIENTATIONS),
    pauli=st.sampled_from("XZ"),
    boundary=st.booleans(),
    data=st.data(),
)
def test_spacelike_keeps_syndrome_and_logical(
    distance: int, orientation: Orientation, pauli: str, *, boundary: bool, data: st.DataObject
) -> None:
    g = geometry(distance, orientation)
    bits = data.draw(st.lists(st.integers(0, 1), min_size=g.n_data, max_size=g.n_data))
    errors = np.array(bits, dtype=np.uint8)
    out = spacelike(g, pauli, errors, boundary=boundary)
    checks, logical = (g.hz, g.lz) if pauli == "X" else (g.hx, g.lx)
    np.testing.assert_array_equal(checks @ out % 2, checks @ errors % 2)
    assert logical @ out % 2 == logical @ errors % 2
    assert out.sum() <= errors.sum()
    np.testing.assert_array_equal(spacelike(g, pauli, out, boundary=boundary), out)
