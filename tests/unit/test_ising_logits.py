"""Logits of the bare network, by both runtimes, against the twin in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.logits import Logits
from gpu_decoder.ising.network import Architecture, forward
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import Weights
from gpu_decoder.protocol import Backend
from hil.seeds import generator

NET = Architecture("small", "small", (8, 6), (3, 3))  # the last layer has two unused channels
BACKENDS = [
    Backend.ORT_CPU,
    pytest.param(Backend.OPENVINO, marks=pytest.mark.needs("openvino")),
]


def weights() -> Weights:
    random = generator(4, "logits")
    layers = tuple(
        (random.normal(0, 0.3, s).astype("f4"), random.normal(0, 0.3, s[0]).astype("f4"))
        for s in NET.shapes
    )
    return Weights(NET, layers, "fp32")


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_the_twin(backend: Backend) -> None:
    layout = Layout(geometry(5, "ZV"), 3, "Z")
    detectors = (generator(5, "logits").random((7, layout.n_detectors)) < 0.2).astype(np.uint8)
    found = Logits(weights(), layout, backend)(detectors)
    expected = forward(weights().layers, layout.network_input(detectors))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert expected.std() > 0.1


def test_other_backends_have_no_logits() -> None:
    with pytest.raises(ValueError, match="no logits from TENSORRT"):
        Logits(weights(), Layout(geometry(3, "XV"), 2, "X"), Backend.TENSORRT)
