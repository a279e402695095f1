"""From a backend to a runtime: the only place that knows all of them."""

from __future__ import annotations

from typing import Any

from gpu_decoder.protocol import Backend, Precision
from gpu_decoder.runtime.protocol import Runtime


def build_runtime(
    backend: Backend,
    onnx_bytes: bytes,
    precision: Precision,
    **options: Any,  # noqa: ANN401 - each runtime types its own
) -> Runtime:
    """Build the runtime of a backend; nothing replaces it if it cannot be built.

    Args:
        backend: which.
        onnx_bytes: the model.
        precision: requested number format of the convolutions.
        options: keyword arguments of that runtime.

    Raises:
        ValueError: no runtime of that backend is built.
        RuntimeUnavailable: a package, library, driver or device is missing.
        EngineError: the runtime cannot execute this model in this precision.
        ModelMismatchError: no model of ours.
    """
    if backend == Backend.ORT_CPU:
        from gpu_decoder.runtime.ort import OrtRuntime

        return OrtRuntime(onnx_bytes, precision, **options)
    if backend == Backend.OPENVINO:
        from gpu_decoder.runtime.openvino import OpenVinoRuntime

        return OpenVinoRuntime(onnx_bytes, precision, **options)
    raise ValueError(f"no runtime {backend.name}, allowed: ORT_CPU, OPENVINO")
