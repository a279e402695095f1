"""onnxruntime on the CPU: the reference runtime and the default."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gpu_decoder.ising.onnx_model import INPUT, read_info
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.cpu import CpuRuntime
from gpu_decoder.runtime.protocol import EngineError, check_held


class OrtRuntime(CpuRuntime):
    """One session on one thread.

    On a CPU onnxruntime computes float16 convolutions in float32, so only ``FP32`` and ``INT8``
    can be asked for. The executed precision is read from the optimised graph, not assumed.

    Args:
        onnx_bytes: a model of ``onnx_model`` (``FP32``) or ``quantize`` (``INT8``).
        precision: requested.
        threads: of the session; results do not depend on it.

    Raises:
        ModelMismatchError: no model of ours.
        EngineError: ``ENGINE_MISMATCH``, the model cannot be loaded, holds another precision or
            would execute in another one.
    """

    _backend = Backend.ORT_CPU
    _package = "onnxruntime"

    def __init__(
        self, onnx_bytes: bytes, precision: Precision = Precision.FP32, threads: int = 1
    ) -> None:
        import onnxruntime

        if precision not in (Precision.FP32, Precision.INT8):
            raise EngineError(
                f"{precision.name} was asked of onnxruntime on the CPU, which has no such "
                "convolutions and would compute in FP32; allowed: FP32, INT8",
                Reason.ENGINE_MISMATCH,
            )
        info = read_info(onnx_bytes)
        check_held(info.precision, precision)
        with tempfile.TemporaryDirectory(prefix="hil-ort-") as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # Signed activations as they are: by default x86 converts some and then fuses none.
            options.add_session_config_entry("session.qdqisint8allowed", "1")
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            try:
                session: Any = onnxruntime.InferenceSession(
                    onnx_bytes, options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise EngineError(
                    f"onnxruntime cannot load the model: {error}", Reason.ENGINE_MISMATCH
                ) from error
            executed = _precision(Path(folder) / "optimised.onnx")
        super().__init__(
            onnx_bytes,
            session,
            n_inputs=info.n_detectors,
            asked=precision,
            executed=executed,
            facts={
                "runtime_version": str(onnxruntime.__version__),
                "runtime_device": "CPUExecutionProvider",
                "runtime_threads": str(threads),
            },
        )

    def _call(self, dets: U8Array) -> U8Array:
        return np.asarray(self._executable.run(None, {INPUT: dets})[0])


def _precision(optimised: Path) -> Precision:
    """Number format of the convolutions of an optimised graph.

    Raises:
        EngineError: they differ among each other, or are of an unknown kind.
    """
    import onnx

    kinds = {
        "Conv": Precision.FP32, "FusedConv": Precision.FP32,
        "QLinearConv": Precision.INT8, "ConvInteger": Precision.INT8,
    }  # fmt: skip
    nodes = onnx.load(optimised).graph.node
    convolutions = sorted({node.op_type for node in nodes if "Conv" in node.op_type})
    found = {kinds.get(op) for op in convolutions}
    precision = found.pop() if len(found) == 1 else None
    if precision is None:
        raise EngineError(
            f"the optimised graph mixes or lacks known convolutions: {convolutions}",
            Reason.ENGINE_MISMATCH,
        )
    return precision
