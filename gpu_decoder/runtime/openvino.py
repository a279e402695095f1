"""OpenVINO on the CPU: the faster optional runtime (extra ``openvino``)."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import numpy as np

from gpu_decoder.ising.onnx_model import read_info
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.cpu import CpuRuntime
from gpu_decoder.runtime.protocol import EngineError, RuntimeUnavailable, check_held

_HINTS: Final = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"}
"""INFERENCE_PRECISION_HINT: what the operations without quantisation compute in."""
_KINDS: Final = {
    "f32": Precision.FP32, "bf16": Precision.BF16, "f16": Precision.FP16,
    "u8": Precision.INT8, "i8": Precision.INT8,
}  # fmt: skip


class OpenVinoRuntime(CpuRuntime):
    """One compiled model and one request on one thread.

    The executed precision is that of the convolutions in the compiled graph.

    Args:
        onnx_bytes: a model of ``onnx_model`` (``FP32``, ``BF16``) or ``quantize`` (``INT8``).
        precision: requested.
        threads: of the request.

    Raises:
        RuntimeUnavailable: OpenVINO is not installed.
        ModelMismatchError: no model of ours.
        EngineError: ``ENGINE_MISMATCH``, the model cannot be loaded, holds another precision or
            would execute in another one.
    """

    _backend = Backend.OPENVINO
    _package = "OpenVINO"

    def __init__(
        self, onnx_bytes: bytes, precision: Precision = Precision.FP32, threads: int = 1
    ) -> None:
        if precision not in _HINTS:
            raise EngineError(
                f"{precision.name} was asked of OpenVINO on the CPU, allowed: FP32, BF16, INT8",
                Reason.ENGINE_MISMATCH,
            )
        info = read_info(onnx_bytes)
        check_held(info.precision, precision)
        version = str(import_openvino().__version__)
        try:
            compiled = compile_on_cpu(onnx_bytes, precision, threads)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load the model: {error}", Reason.ENGINE_MISMATCH
            ) from error
        super().__init__(
            onnx_bytes,
            compiled.create_infer_request(),
            n_inputs=info.n_detectors,
            asked=precision,
            executed=_precision(compiled),
            facts={
                "runtime_version": version,
                "runtime_device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
                "runtime_threads": str(threads),
            },
        )

    def _call(self, dets: U8Array) -> U8Array:
        return np.array(self._executable.infer([dets], share_inputs=True)[0])


def compile_on_cpu(onnx_bytes: bytes, precision: Precision, threads: int) -> Any:  # noqa: ANN401
    """Compile any ONNX model for the CPU (an ``openvino.CompiledModel``).

    Raises:
        RuntimeUnavailable: OpenVINO is not installed.
    """
    core = import_openvino().Core()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",
    }
    return core.compile_model(core.read_model(onnx_bytes), "CPU", settings)


def import_openvino() -> Any:  # noqa: ANN401 - the package is untyped
    """The package, imported without its telemetry, which would call home on import.

    Raises:
        RuntimeUnavailable: it is not installed.
    """
    telemetry = "openvino_telemetry"
    before = sys.modules.get(telemetry)
    try:
        sys.modules[telemetry] = None  # type: ignore[assignment] # then openvino takes its own stub
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeUnavailable(
            "the package openvino cannot be imported; install the extra 'openvino' "
            "(pip install 'hil[openvino]') or bind ort_cpu"
        ) from error
    finally:
        if before is None:
            del sys.modules[telemetry]
        else:
            sys.modules[telemetry] = before


def _precision(compiled: Any) -> Precision:  # noqa: ANN401 - openvino.CompiledModel
    """Number format of the convolutions of a compiled model.

    Raises:
        EngineError: they differ among each other, or are of an unknown kind.
    """
    found = set()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if "Convolution" in str(info["layerType"].astype(str)):
            found.add(str(info["runtimePrecision"].astype(str)))
    kinds = {_KINDS.get(name) for name in found}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise EngineError(
            f"the compiled model mixes or lacks known convolutions: {sorted(found)}",
            Reason.ENGINE_MISMATCH,
        )
    return kind
