"""Models of 8-bit floats (E4M3): inputs and weights of the convolutions are rounded to them.

Where the int8 model has integers, this one has E4M3 floats, whose largest value 448 stands for the
largest value that the calibration saw. 8-bit floats are part of ONNX from opset 19 on, so that is
the opset of the file. onnxruntime executes it on a CPU by rounding to E4M3 and convolving in
float32, which shows what the rounding costs; that a GPU executes it so has not been tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.ising.onnx_model import info_as_metadata, read_info
from gpu_decoder.ising.quantize import quantize_int8
from gpu_decoder.protocol import U8Array

LARGEST: Final = 448.0
"""Largest finite E4M3 value (OCP 8-bit floating point specification 1.0)."""

_INT8_LARGEST: Final = 127.0
_OPSET: Final = 19


def quantize_fp8(onnx_bytes: bytes, calibration_dets: U8Array) -> bytes:
    """An fp8 model from an fp32 one.

    Args:
        onnx_bytes: of ``build_onnx``, precision "fp32".
        calibration_dets: uint8 [n, N], shots of the circuit; they set the ranges.

    Raises:
        ModelMismatchError, ValueError: see ``quantize_int8``.
    """
    import onnx
    from onnx import numpy_helper

    plain = onnx.load_model_from_string(onnx_bytes)
    model = onnx.load_model_from_string(quantize_int8(onnx_bytes, calibration_dets))
    _free_outputs(model.graph)
    weights = {c.name: numpy_helper.to_array(c) for c in plain.graph.initializer}
    constants = {c.name: c for c in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value, scale, zero = node.input
        weight = weights.get(value.removesuffix("_quantized"))
        if value in constants and weight is not None:
            fitted = _channel_scale(weight)
            per_weight = fitted.reshape(-1, *[1] * (weight.ndim - 1))
            _set_fp8(constants[value], (weight / per_weight).astype(np.float32))
            constants[scale].CopyFrom(numpy_helper.from_array(fitted, scale))
        if constants[zero].data_type == onnx.TensorProto.INT8:
            zeros = numpy_helper.to_array(constants[zero]).astype(np.float32)
            if value not in constants and node.op_type == "QuantizeLinear":
                widened = numpy_helper.to_array(constants[scale]) * _INT8_LARGEST / LARGEST
                constants[scale].CopyFrom(
                    numpy_helper.from_array(widened.astype(np.float32), scale)
                )
            _set_fp8(constants[zero], zeros)
    model.opset_import[0].version = _OPSET
    info = replace(read_info(onnx_bytes), precision="fp8")
    onnx.helper.set_model_props(model, info_as_metadata(info))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _free_outputs(graph: Any) -> None:  # noqa: ANN401 - a protobuf message
    """Take the rounding of the convolutions' outputs out: 3 bits of mantissa are too few there."""
    made_by = {name: node for node in graph.node for name in node.output}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = made_by.get(node.input[0]) if node.input else None
        if node.op_type == "QuantizeLinear" and source is not None and source.op_type == "Conv":
            instead[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in instead:
            instead[node.output[0]] = instead[node.input[0]]
        else:
            kept.append(node)
    for node in kept:
        node.input[:] = [instead.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    constants = [c for c in graph.initializer if c.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _channel_scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [out]: value of an E4M3 step of 1 in each output channel; 1 where all is 0."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)


def _set_fp8(constant: Any, values: NDArray[np.float32]) -> None:  # noqa: ANN401 - a protobuf message
    """Store E4M3 values, rounded to nearest."""
    import ml_dtypes
    from onnx import TensorProto

    rounded = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    name = constant.name
    constant.Clear()
    constant.name = name
    constant.data_type = TensorProto.FLOAT8E4M3FN
    constant.dims.extend(rounded.shape)
    constant.raw_data = rounded.tobytes()
