"""Edge matrices against those of an independent package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gpu_decoder.edges import EdgeMatrices, edge_matrices
from gpu_decoder.ising.circuit import memory_circuit
from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.noise import IsingScalar

DATA = Path(__file__).parents[1] / "data" / "edge_matrices"
D13_SHA256 = "863878a3d700572e937280b677b786cebff0e583f6458b981d2ff58806342395"


@pytest.mark.parametrize("name", ["d3_T3_X_XV", "d5_T5_Z_ZH"])
def test_equal_to_the_recorded_matrices(name: str) -> None:
    made = edge_matrices((DATA / f"{name}.dem").read_text())
    with np.load(DATA / f"{name}.npz") as recorded:
        assert made.checks.shape == tuple(recorded["shape"])
        np.testing.assert_array_equal(made.checks.indptr, recorded["Hp"])
        np.testing.assert_array_equal(made.checks.indices, recorded["Hi"])
        np.testing.assert_array_equal(made.observables.indptr, recorded["Op"])
        np.testing.assert_array_equal(made.observables.indices, recorded["Oi"])
        np.testing.assert_allclose(made.priors, recorded["priors"], rtol=1e-12, atol=0)


def test_definitions_by_hand() -> None:
    made = edge_matrices(
        """
        error(0.1) D0 D1
        error(0.2) D0 D1 L0
        error(0.3) D0 D1 ^ D2
        error(0) D2 L0
        """
    )
    # Edges: {0,1}, {2}. Mechanisms: {0,1} twice (0.1, 0.2), {0,1,2} and {2}.
    assert made.checks.toarray().tolist() == [[1, 0], [1, 0], [0, 1]]
    assert made.observables.toarray().tolist() == [[0, 1]]
    np.testing.assert_allclose(made.priors, [0.1 * 0.8 + 0.9 * 0.2 + 0.3, 0.3])
    assert edge_matrices("error(0) D0").priors.tolist() == [1e-14]
    assert edge_matrices("detector D3").checks.shape == (4, 0)


def test_a_part_with_three_detectors_is_refused() -> None:
    with pytest.raises(ValueError, match="flips 3 detectors, allowed: at most 2"):
        edge_matrices("error(0.1) D0 D1 D2")


@pytest.mark.slow
def test_size_and_content_at_distance_13_of_104_rounds() -> None:
    circuit = memory_circuit(geometry(13, "XV"), 104, "X", IsingScalar(0.003))
    dem = circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    made = edge_matrices(str(dem))
    assert made.checks.shape == (17_472, 93_864)
    assert sha256(made) == D13_SHA256


def sha256(matrices: EdgeMatrices) -> str:
    """Of indptr and indices of H, of O, and of the priors rounded to 12 digits."""
    found = hashlib.sha256()
    for matrix in (matrices.checks, matrices.observables):
        found.update(matrix.indptr.astype("<i4").tobytes())
        found.update(matrix.indices.astype("<i4").tobytes())
    found.update(np.array([f"{p:.12e}" for p in matrices.priors]).tobytes())
    return found.hexdigest()
