"""Logits of a network for many shots: where thresholds are compared, one pass serves all."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_decoder.ising.onnx_model import build_network_onnx
from gpu_decoder.ising.tensors import F32Array, Layout
from gpu_decoder.ising.weights import Weights
from gpu_decoder.protocol import Backend, U8Array


class Logits:
    """The convolutions alone, float32, on one thread.

    Args:
        weights: the network.
        layout: of the circuit.
        backend: ``ORT_CPU`` or ``OPENVINO``.

    Raises:
        ValueError: another backend.
        RuntimeUnavailable: the backend's package is not installed.
    """

    def __init__(self, weights: Weights, layout: Layout, backend: Backend) -> None:
        self.layout = layout
        model = build_network_onnx(weights, layout)
        if backend == Backend.ORT_CPU:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3
            session: Any = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            self._run: Any = lambda grid: session.run(None, {"grid": grid})[0]
        elif backend == Backend.OPENVINO:
            from gpu_decoder.runtime.openvino import import_openvino

            core = import_openvino().Core()
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
            compiled = core.compile_model(core.read_model(model), "CPU", settings)
            request: Any = compiled.create_infer_request()
            self._run = lambda grid: np.array(request.infer([grid])[0])
        else:
            raise ValueError(f"no logits from {backend.name}, allowed: ORT_CPU, OPENVINO")

    def __call__(self, detectors: U8Array) -> F32Array:
        """Logits float32 [n, 4, T, d, d] for detectors uint8 [n, N], 0 or 1."""
        return np.asarray(self._run(self.layout.network_input(detectors)), dtype=np.float32)
