"""8-bit float models: the right numbers in the file, and what the rounding does to the answers.

onnxruntime executes them on a CPU, rounding to E4M3 and convolving in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from stand_ins import network_cases

from gpu_decoder.ising.geometry import geometry
from gpu_decoder.ising.onnx_model import read_info
from gpu_decoder.ising.quantize_fp8 import LARGEST, quantize_fp8
from gpu_decoder.runtime.ort import OrtRuntime

LAYOUT = network_cases.layout(5, 5)


def shots(n: int) -> np.ndarray:
    rng = np.random.default_rng(8)
    return (rng.random((n, LAYOUT.n_detectors)) < 0.08).astype(np.uint8)


@pytest.fixture(scope="module")
def quantised() -> bytes:
    return quantize_fp8(network_cases.model("fp32", 5, 5), shots(64))


def test_weights_are_the_plain_ones_rounded_to_8_bit_floats(quantised: bytes) -> None:
    graph = onnx.load_model_from_string(quantised).graph
    found = {c.name: c for c in graph.initializer}
    for k, (weight, _) in enumerate(network_cases.weights().layers):
        stored = found[f"conv{k}_weight_quantized"]
        assert stored.data_type == TensorProto.FLOAT8E4M3FN
        values = numpy_helper.to_array(stored).astype(np.float32)
        scale = numpy_helper.to_array(found[f"conv{k}_weight_scale"]).reshape(-1, 1, 1, 1, 1)
        assert np.abs(values).max() == LARGEST
        error = np.abs(values * scale - weight)
        step = np.maximum(np.abs(weight) / 16, scale * 2.0**-10)  # half an E4M3 step
        assert (error <= step * 1.0001).all()


def test_only_inputs_and_weights_of_the_convolutions_are_rounded(quantised: bytes) -> None:
    graph = onnx.load_model_from_string(quantised).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for node in convolutions:
        assert [made_by[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
    assert [n.op_type for n in graph.node].count("QuantizeLinear") == 4, "one per input"
    assert not [c.name for c in graph.initializer if c.data_type == TensorProto.INT8]
    assert read_info(quantised).precision == "fp8"
    assert quantize_fp8(network_cases.model("fp32", 5, 5), shots(64)) == quantised


def test_most_bits_stay(quantised: bytes) -> None:
    """Random weights crowd the threshold (measured .907; activations that saturate: .57)."""
    dets = shots(256)
    session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
    got = session.run(None, {"dets": dets})[0]
    plain = OrtRuntime(network_cases.model("fp32", 5, 5)).run(dets)
    assert got.max() <= 1
    assert (got == plain).mean() > 0.88
    half = geometry(5, "XV").half
    assert np.array_equal(got[:, -half:], dets[:, -half:]), "the readout block is passed through"


def test_only_a_plain_model_is_taken() -> None:
    with pytest.raises(ValueError, match="a model of precision fp16, allowed: fp32"):
        quantize_fp8(network_cases.model("fp16", 5, 5), shots(4))
