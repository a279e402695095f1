"""The bare network: for comparing thresholds, where one pass serves all, and for measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gpu_decoder.ising.onnx_model import build_network_onnx
from gpu_decoder.ising.tensors import F32Array, Layout
from gpu_decoder.ising.weights import Weights
from gpu_decoder.protocol import Backend, Precision, U8Array

Network: TypeAlias = Callable[[F32Array], F32Array]
"""Grid float32 [n, 4, T, d, d] -> logits of that shape; a later call may overwrite them."""


def bare_network(weights: Weights, layout: Layout, backend: Backend) -> Network:
    """The convolutions alone, float32, on one thread.

    Args:
        weights: the network.
        layout: of the circuit.
        backend: ``ORT_CPU`` or ``OPENVINO``.

    Raises:
        ValueError: another backend.
        RuntimeUnavailable: the backend's package is not installed.
    """
    model = build_network_onnx(weights, layout)
    if backend == Backend.ORT_CPU:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session: Any = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        return lambda grid: session.run(None, {"grid": grid})[0]
    if backend == Backend.OPENVINO:
        from gpu_decoder.runtime.openvino import compile_on_cpu

        request: Any = compile_on_cpu(model, Precision.FP32, threads=1).create_infer_request()
        return lambda grid: request.infer([grid], share_inputs=True)[0]
    raise ValueError(f"no logits from {backend.name}, allowed: ORT_CPU, OPENVINO")


class Logits:
    """Logits of shots; arguments and errors as for ``bare_network``."""

    def __init__(self, weights: Weights, layout: Layout, backend: Backend) -> None:
        self.layout = layout
        self._network = bare_network(weights, layout, backend)

    def __call__(self, detectors: U8Array) -> F32Array:
        """Logits float32 [n, 4, T, d, d] for detectors uint8 [n, N], 0 or 1; newly allocated."""
        return np.array(self._network(self.layout.network_input(detectors)), dtype=np.float32)
