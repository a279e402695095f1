"""The names of TensorRT that are used here, as types, and the two products that have them.

Classic TensorRT and TensorRT-RTX share these names but nothing else: engines, versions and the GPUs
they run on differ. mypy holds our code to these protocols; ``load`` holds the installed module to
them, so a release that renames one is refused by name before anything is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Final, Protocol, SupportsBytes

from gpu_decoder.protocol import Backend
from gpu_decoder.runtime.protocol import RuntimeUnavailable


@dataclass(frozen=True, slots=True)
class Product:
    """One of the two products.

    Attributes:
        backend: its name in scenarios and results.
        title: its name in messages.
        modules: Python modules that hold it, the first that is found is taken.
        install: how to get it.
        aims: whether the builder is told the GPU (``set_compute_capability``) instead of taking
            the one it runs on.
    """

    backend: Backend
    title: str
    modules: tuple[str, ...]
    install: str
    aims: bool


class Tensor(Protocol):
    """``ITensor``."""

    name: str
    dtype: object
    shape: Iterable[int]


class Layer(Protocol):
    """``ILayer``."""

    name: str
    type: object
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor: ...


class Network(Protocol):
    """``INetworkDefinition``."""

    num_layers: int
    num_inputs: int
    num_outputs: int

    def get_layer(self, index: int) -> Layer: ...
    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...


class Parser(Protocol):
    """``OnnxParser``."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...
    def get_error(self, index: int) -> object: ...


class Profile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None: ...


class BuilderConfig(Protocol):
    """``IBuilderConfig``."""

    def set_flag(self, flag: object) -> None: ...
    def clear_flag(self, flag: object) -> None: ...
    def add_optimization_profile(self, profile: Profile) -> int: ...


class AimedConfig(BuilderConfig, Protocol):
    """What ``IBuilderConfig`` has in TensorRT-RTX only."""

    num_compute_capabilities: int

    def set_compute_capability(self, capability: object, index: int) -> bool: ...


class Builder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> Profile: ...
    def build_serialized_network(
        self, network: Network, config: BuilderConfig
    ) -> SupportsBytes | None: ...


class Context(Protocol):
    """``IExecutionContext``."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def get_tensor_shape(self, name: str) -> Iterable[int]: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """``ICudaEngine``."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> object: ...
    def get_tensor_dtype(self, name: str) -> object: ...
    def get_tensor_shape(self, name: str) -> Iterable[int]: ...
    def get_tensor_profile_shape(
        self, name: str, profile_index: int
    ) -> Sequence[Iterable[int]]: ...
    def create_execution_context(self) -> Context | None: ...


class RuntimeConfig(Protocol):
    """``IRuntimeConfig`` of TensorRT-RTX."""

    dynamic_shapes_kernel_specialization_strategy: object


class AimedEngine(Protocol):
    """What ``ICudaEngine`` has in TensorRT-RTX only."""

    def create_runtime_config(self) -> RuntimeConfig: ...
    def create_execution_context(self, runtime_config: RuntimeConfig) -> Context | None: ...


class AimedContext(Protocol):
    """What ``IExecutionContext`` has in TensorRT-RTX only."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class Deserializer(Protocol):
    """``Runtime``."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


CLASSES: Final[dict[str, type]] = {
    "ITensor": Tensor,
    "ILayer": Layer,
    "INetworkDefinition": Network,
    "OnnxParser": Parser,
    "IOptimizationProfile": Profile,
    "IBuilderConfig": BuilderConfig,
    "Builder": Builder,
    "IExecutionContext": Context,
    "ICudaEngine": Engine,
    "Runtime": Deserializer,
}
"""Class of either module -> the names of it that are used."""

MEMBERS: Final[dict[str, tuple[str, ...]]] = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "BuilderFlag": ("TF32",),
    "DataType": ("FLOAT", "HALF", "BF16", "INT8", "FP8", "UINT8"),
    "LayerType": ("CONVOLUTION", "DEQUANTIZE"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "ILogger": ("log", "INTERNAL_ERROR", "ERROR", "WARNING"),
}
"""Enumeration or base class of either module -> the members that are used."""


def names(protocol: type) -> tuple[str, ...]:
    """Names that a protocol of this module demands, those of its bases included."""
    own = {
        name
        for base in protocol.__mro__
        if base.__module__ == __name__
        for name in (*vars(base), *vars(base).get("__annotations__", ()))
    }
    return tuple(sorted(name for name in own if not name.startswith("_")))


def missing_names(module: Any, product: Product) -> list[str]:  # noqa: ANN401 - a foreign module
    """Names that the module lacks, such as ``Builder.create_network``."""
    wanted = {name: names(protocol) for name, protocol in CLASSES.items()} | MEMBERS
    if product.aims:
        wanted |= {
            "IBuilderConfig": names(AimedConfig),
            "ComputeCapability": ("CURRENT",),
            "IRuntimeConfig": names(RuntimeConfig),
            "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
            "ICudaEngine": names(Engine) + names(AimedEngine),
            "IExecutionContext": names(Context) + names(AimedContext),
        }
    return [
        f"{holder}.{name}"
        for holder, members in wanted.items()
        for name in members
        if not hasattr(getattr(module, holder, None), name)
    ]


@lru_cache(maxsize=2)
def load(product: Product) -> ModuleType:
    """Import a product; the other one never takes its place.

    Raises:
        RuntimeUnavailable: not installed, its library does not load, or it lacks names.
    """
    said = []
    for name in product.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            said.append(f"import {name}: {error}")
            continue
        lacking = missing_names(module, product)
        if lacking:
            version = getattr(module, "__version__", "of unknown version")
            raise RuntimeUnavailable(
                f"{product.title} {version} lacks {', '.join(lacking)}: install another release"
            )
        return module
    raise RuntimeUnavailable(
        f"{product.title} is not usable here: {'; '.join(said)}; {product.install}"
    )
