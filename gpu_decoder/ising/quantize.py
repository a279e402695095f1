"""Eight-bit models: quantise and dequantise nodes around the convolutions.

Symmetric, per-channel weights, float biases, no zero points: the form that the TensorRT parser
takes (it rejects int32 biases and zero points other than 0). Only the convolutions are quantised.
Weights use seven of the eight bits: without VNNI instructions a processor adds pairs of products in
16 bits, which eight-bit weights overflow (measured: 20 % instead of 7 % wrong bits in OpenVINO).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_decoder.ising.onnx_model import INPUT, info_as_metadata, read_info
from gpu_decoder.protocol import U8Array
from gpu_decoder.runtime.protocol import check_input

_CALIBRATION_BATCH = 32


def quantize_int8(onnx_bytes: bytes, calibration_dets: U8Array) -> bytes:
    """An int8 model from an fp32 one.

    Args:
        onnx_bytes: of ``build_onnx``, precision "fp32".
        calibration_dets: uint8 [n, N], shots of the circuit; they set the ranges.

    Raises:
        ModelMismatchError: no model of ours.
        ValueError: the model is not fp32, or the shots have another shape or dtype.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    info = read_info(onnx_bytes)
    if info.precision != "fp32":
        raise ValueError(f"a model of precision {info.precision}, allowed: fp32")
    check_input(calibration_dets, info.n_detectors)

    with tempfile.TemporaryDirectory(prefix="hil-int8-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.level
        # It advises a pre-processing that changes nothing here.
        logging.root.setLevel(logging.ERROR)
        try:
            target = Path(folder) / "int8.onnx"
            quantize_static(
                onnx.load_model_from_string(onnx_bytes),
                target,
                _reader(calibration_dets),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                },
            )
        finally:
            logging.root.setLevel(level)
        model = onnx.load(target)
    onnx.helper.set_model_props(model, info_as_metadata(replace(info, precision="int8")))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _reader(dets: U8Array) -> Any:  # noqa: ANN401 - untyped package
    """Shots in small batches, as the package wants to be given them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Shots(CalibrationDataReader):  # type: ignore[misc] # untyped package
        def __init__(self) -> None:
            self._batches: Iterator[U8Array] = iter(
                np.array_split(dets, -(-len(dets) // _CALIBRATION_BATCH))
            )

        def get_next(self) -> dict[str, U8Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    return Shots()
