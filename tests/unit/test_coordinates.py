"""Detector coordinates by walking a circuit equal those of stim, loops and shifts included."""

from __future__ import annotations

import numpy as np
import stim
from hypothesis import given
from hypothesis import strategies as st

from hil.device.coordinates import detector_coordinates

_ARGS = st.lists(st.integers(-3, 9), max_size=4)


@st.composite
def circuits(draw: st.DrawFn, depth: int = 2) -> stim.Circuit:
    circuit = stim.Circuit()
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(("detector", "shift", "repeat")))
        if kind == "detector":
            circuit.append("DETECTOR", [], draw(_ARGS))
        elif kind == "shift":
            circuit.append("SHIFT_COORDS", [], draw(_ARGS))
        elif depth:
            body = draw(circuits(depth - 1))
            if len(body):
                circuit.append(stim.CircuitRepeatBlock(draw(st.integers(1, 4)), body))
    return circuit


@given(circuits())
def test_equal_to_stim(circuit: stim.Circuit) -> None:
    table, lengths = detector_coordinates(circuit)
    named = circuit.get_detector_coordinates()
    assert table.shape[0] == circuit.num_detectors
    for i in range(circuit.num_detectors):
        row = named.get(i, [])
        assert lengths[i] == len(row)
        assert table[i, table.shape[1] - len(row) :].tolist() == row
        assert not table[i, : table.shape[1] - len(row)].any()


def test_a_fraction_that_float32_would_round_stays_exact() -> None:
    table, _ = detector_coordinates(stim.Circuit("DETECTOR(0.1, 3)"))
    assert table.dtype == np.float64
    assert table.tolist() == [[0.1, 3.0]]
