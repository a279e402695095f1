"""Small models of the pre-decoder with random weights, for tests of runtimes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpu_decoder.ising.geometry import Basis, geometry
from gpu_decoder.ising.network import architecture
from gpu_decoder.ising.onnx_model import build_onnx
from gpu_decoder.ising.quantize import quantize_int8
from gpu_decoder.ising.quantize_fp8 import quantize_fp8
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.weights import Weights


@lru_cache(maxsize=4)
def layout(distance: int = 3, rounds: int = 3, basis: Basis = "X") -> Layout:
    return Layout(geometry(distance, "XV"), rounds, basis)


def weights(seed: int = 11) -> Weights:
    rng = np.random.default_rng(seed)
    shape = architecture("hil-32x4")
    layers, before = [], 4
    for filters, size in zip(shape.filters, shape.kernels, strict=True):
        scale = 1.5 / np.sqrt(before * size**3)
        kernel = rng.normal(0, scale, size=(filters, before, size, size, size))
        layers.append((kernel.astype(np.float32), rng.normal(0, 0.1, filters).astype(np.float32)))
        before = filters
    return Weights(shape, tuple(layers), quant_format="fp32", metadata={}, sha256="0" * 64)


@lru_cache(maxsize=8)
def model(precision: str = "fp32", distance: int = 3, rounds: int = 3) -> bytes:
    """ONNX, fp32, fp16, int8 or fp8."""
    shape = layout(distance, rounds)
    if precision in ("int8", "fp8"):
        rng = np.random.default_rng(3)
        dets = (rng.random((32, shape.n_detectors)) < 0.1).astype(np.uint8)
        quantize = quantize_int8 if precision == "int8" else quantize_fp8
        return quantize(model("fp32", distance, rounds), dets)
    return build_onnx(weights(), shape, precision="fp16" if precision == "fp16" else "fp32")
