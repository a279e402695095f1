"""ONNX to a serialised engine, with either TensorRT product; needs no GPU with TensorRT-RTX.

The network is strongly typed: number formats are those of the ONNX file (fp16 weights, or
quantise/dequantise pairs), the builder may not choose others. What executes is therefore read from
the parsed network, convolution by convolution, and must be what was asked for. The one exception is
float32, which either product may compute as TF32: allowed only if TF32 was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Final, cast

from gpu_decoder.ising.onnx_model import INPUT
from gpu_decoder.protocol import Precision, Reason
from gpu_decoder.runtime.protocol import EngineError, RuntimeUnavailable
from gpu_decoder.runtime.tensorrt_api import (
    AimedConfig,
    Builder,
    BuilderConfig,
    Layer,
    Network,
    Parser,
    Product,
)

_LOG_LINES: Final = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine.

    Attributes:
        data: the engine, for one product, version and GPU.
        precision: number format of its convolutions.
        convolutions: how many there are.
    """

    data: bytes
    precision: Precision
    convolutions: int


def build_plan(
    trt: ModuleType,
    product: Product,
    onnx_bytes: bytes,
    precision: Precision,
    batch: int,
    n_inputs: int,
    capability: tuple[int, int],
) -> Plan:
    """Build an engine for batches of 1 to ``batch`` shots, tuned for ``batch``.

    Args:
        trt: module of the product.
        product: which.
        onnx_bytes: the model.
        precision: requested; must be that of the file.
        batch: shots per call.
        n_inputs: N, columns of the input.
        capability: compute capability of the GPU. Classic TensorRT builds for the GPU it runs on.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, the model has another precision; ``ENGINE_MISSING``, it
            cannot be parsed (the message names the node) or built.
        RuntimeUnavailable: the product does not know this GPU.
    """
    log = engine_log(trt)
    log.lines.clear()
    builder: Builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parser: Parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_bytes):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(
            f"{product.title} refuses the model: {'; '.join(errors) or log.tail()}",
            Reason.ENGINE_MISSING,
        )
    executed, convolutions = network_precision(trt, network)
    if (executed, precision) == (Precision.FP32, Precision.TF32):
        executed = Precision.TF32
    if executed != precision:
        raise EngineError(
            f"{precision.name} was asked for, but {product.title} would execute this model in "
            f"{executed.name}",
            Reason.ENGINE_MISMATCH,
        )
    config = builder.create_builder_config()
    if executed == Precision.TF32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if product.aims:
        _aim(trt, product, config, capability)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, n_inputs), (batch, n_inputs), (batch, n_inputs))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"profile for {batch} shots refused: {log.tail()}", Reason.ENGINE_MISSING)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{product.title} built no engine: {log.tail()}", Reason.ENGINE_MISSING)
    return Plan(bytes(plan), executed, convolutions)


def network_flags(trt: ModuleType) -> int:
    """Strongly typed; releases up to 10 also want to be told that the batch is explicit."""
    flags = trt.NetworkDefinitionCreationFlag
    value = 1 << int(flags.STRONGLY_TYPED)
    if hasattr(flags, "EXPLICIT_BATCH"):
        value |= 1 << int(flags.EXPLICIT_BATCH)
    return value


def network_precision(trt: ModuleType, network: Network) -> tuple[Precision, int]:
    """Number format of the convolutions of a strongly typed network, and their number.

    A convolution whose input comes out of a dequantisation executes in the quantised format.

    Raises:
        EngineError: they differ, there is none, or a format is unknown here.
    """
    formats = {
        trt.DataType.FLOAT: Precision.FP32, trt.DataType.HALF: Precision.FP16,
        trt.DataType.BF16: Precision.BF16, trt.DataType.INT8: Precision.INT8,
        trt.DataType.FP8: Precision.FP8,
    }  # fmt: skip
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    found: Counter[object] = Counter()
    for layer in layers:
        if layer.type == trt.LayerType.CONVOLUTION:
            found[_input_format(trt, layer, maker)] += 1
    kinds = {formats.get(kind) for kind in found}
    precision = kinds.pop() if len(kinds) == 1 else None
    if precision is None:
        listed = ", ".join(f"{count} x {kind}" for kind, count in found.items())
        raise EngineError(
            f"the number format of the convolutions cannot be stated: {listed or 'there is none'}",
            Reason.ENGINE_MISMATCH,
        )
    return precision, found.total()


def _input_format(trt: ModuleType, layer: Layer, maker: dict[str, Layer]) -> object:
    tensor = layer.get_input(0)
    source = maker.get(tensor.name) if tensor is not None else None
    if source is not None and source.type == trt.LayerType.DEQUANTIZE:
        tensor = source.get_input(0)
    return None if tensor is None else tensor.dtype


def _aim(
    trt: ModuleType, product: Product, config: BuilderConfig, capability: tuple[int, int]
) -> None:
    name = f"SM{capability[0]}{capability[1]}"
    known = getattr(trt.ComputeCapability, name, None)
    if known is None:
        raise RuntimeUnavailable(
            f"{product.title} {trt.__version__} does not know {name}; a GPU of this kind needs the "
            "backend tensorrt"
        )
    aimed = cast("AimedConfig", config)
    aimed.num_compute_capabilities = 1
    if not aimed.set_compute_capability(known, 0):
        raise RuntimeUnavailable(f"{product.title} {trt.__version__} refuses {name}")


@lru_cache(maxsize=2)
def engine_log(trt: ModuleType) -> Any:  # noqa: ANN401 - its base class is known at run time only
    """The log of a product: one per process, as TensorRT keeps the first it is given."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps warnings and errors, prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: object, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.lines = [*self.lines[1 - _LOG_LINES :], message]

        def tail(self) -> str:
            """The latest lines."""
            return "; ".join(self.lines) or "no reason was given"

    return Log()
