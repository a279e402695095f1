"""A TensorRT module without TensorRT: same names, engines executed by onnxruntime.

Their memory and streams are those of a ``FakeCuda``.

It shows that our code calls the API in a legal order and keeps its addresses; it shows nothing
about TensorRT or a GPU.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum, IntEnum
from types import ModuleType

import numpy as np
import onnx
import onnxruntime

from stand_ins.fake_cuda import ILLEGAL_ADDRESS, SUCCESS, FakeCuda

DataType = Enum("DataType", "FLOAT HALF BF16 INT8 FP8 UINT8")
LayerType = Enum("LayerType", "CONVOLUTION DEQUANTIZE OTHER")
TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 3: DataType.INT8, 2: DataType.UINT8}


class Tensor:
    name = dtype = shape = None

    def __init__(self, name: str, dtype: DataType | None, shape: tuple[int, ...] = ()) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class Layer:
    name = type = num_inputs = num_outputs = None

    def __init__(self, node: onnx.NodeProto, types: dict[str, int]) -> None:
        kinds = {"Conv": LayerType.CONVOLUTION, "DequantizeLinear": LayerType.DEQUANTIZE}
        self.name = node.name
        self.type = kinds.get(node.op_type, LayerType.OTHER)
        self._inputs = [Tensor(name, _TYPES.get(types.get(name, 0))) for name in node.input]
        self._outputs = [Tensor(name, _TYPES.get(types.get(name, 0))) for name in node.output]
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)

    def get_input(self, index: int) -> Tensor | None:
        return self._inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self._outputs[index]


class Network:
    """Filled by the parser."""

    num_layers = num_inputs = num_outputs = 0

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model = b""
        self.layers: list[Layer] = []

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor:
        raise IndexError(index)  # a network has none of its own here

    def get_output(self, index: int) -> Tensor:
        raise IndexError(index)  # a network has none of its own here


class OnnxParser:
    def __init__(self, network: Network, log: object) -> None:
        self.network = network
        self.errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> str:
        return self.errors[index]

    def parse(self, model: bytes) -> bool:
        loaded = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
        graph = loaded.graph
        known = [*graph.value_info, *graph.input, *graph.output]
        types = {value.name: value.type.tensor_type.elem_type for value in known}
        types |= {constant.name: constant.data_type for constant in graph.initializer}
        self.errors = [
            f"In node 0 with name: {n.name} and operator: {n.op_type}: unsupported"
            for n in graph.node
            if n.op_type == "NoSuchOp"
        ]
        self.network.layers = [Layer(node, types) for node in graph.node]
        self.network.num_layers = len(self.network.layers)
        self.network.model = model
        return not self.errors


class Profile:
    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None:
        self.shapes = {input: (min, opt, max)}


class Config:
    def __init__(self) -> None:
        self.on = {"TF32"}  # as in both products
        self.profiles: list[Profile] = []

    def set_flag(self, flag: IntEnum) -> None:
        self.on.add(flag.name)

    def clear_flag(self, flag: IntEnum) -> None:
        self.on.discard(flag.name)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class RuntimeConfig:
    strategy = "LAZY"

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> str:
        return self.strategy

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: str) -> None:
        self.strategy = value


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.warm = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.plan["shapes"][name]
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], self.engine.tensors[name].shape[1])

    def is_stream_capturable(self, stream: int) -> bool:
        return self.warm and not self.engine.trt.no_capture

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, session = self.engine.cuda, self.engine.session
        (source, wide), (sink, _) = ((n, t.shape[1]) for n, t in self.engine.tensors.items())
        shots = self.shape[0]
        at, to = self.addresses[source], self.addresses[sink]

        def task() -> int:
            if not (cuda.covers(at, shots * wide) and cuda.covers(to, shots * (wide + 1))):
                return ILLEGAL_ADDRESS
            raw = ctypes.string_at(at, shots * wide)
            out = session.run(None, {source: np.frombuffer(raw, np.uint8).reshape(shots, wide)})[0]
            out = self.engine.trt.spoil(np.ascontiguousarray(out))
            ctypes.memmove(to, out.ctypes.data, out.nbytes)
            return SUCCESS

        if not self.warm:  # as a first execution does
            cuda.calls.append("first use")
            if cuda._capturing is not None:
                return False
        self.warm = True
        return cuda.work(task) == SUCCESS


class Engine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRt, plan: dict[str, object], model: bytes) -> None:
        self.trt, self.cuda, self.plan = trt, trt.cuda, plan
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        both = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.tensors = {
            v.name: Tensor(v.name, DataType.UINT8, (-1, v.shape[1] + trt.lie)) for v in both
        }

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return list(TensorIOMode)[list(self.tensors).index(name)]

    def get_tensor_dtype(self, name: str) -> object:
        return self.tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["shapes"][name]]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(
        self, runtime_config: RuntimeConfig | None = None
    ) -> Context | None:
        assert (runtime_config is not None) == self.trt.rtx
        assert runtime_config is None or runtime_config.strategy == "EAGER"
        return None if self.trt.no_context else Context(self)


class FakeTensorRt(ModuleType):
    """The module. ``release`` 10 has the flag EXPLICIT_BATCH, 11 has not; ``rtx`` is told the GPU.

    Attributes:
        built: every (network, config) that was built.
        lie: added to the number of columns that an engine states.
        no_engine, no_context, refuse, no_capture: make that step fail.
        spoil: changes outputs of the network.
    """

    DataType, LayerType, TensorIOMode = DataType, LayerType, TensorIOMode
    ITensor, ILayer, INetworkDefinition, OnnxParser = Tensor, Layer, Network, OnnxParser
    IOptimizationProfile, IExecutionContext, ICudaEngine = Profile, Context, Engine

    def __init__(self, cuda: FakeCuda, release: int = 11, *, rtx: bool = False) -> None:
        super().__init__("fake_tensorrt")
        self.cuda, self.built, self.lie = cuda, [], 0
        self.no_engine = self.no_context = self.refuse = self.no_capture = False
        self.spoil = lambda out: out
        self.__version__ = f"{release}.0"
        both = "EXPLICIT_BATCH STRONGLY_TYPED" if release <= 10 else "STRONGLY_TYPED"
        self.NetworkDefinitionCreationFlag = IntEnum("Flag", both, start=0)
        self.BuilderFlag = IntEnum("BuilderFlag", "FP16 TF32" if release <= 10 else "TF32")

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

            def log(self, severity: int, message: str) -> None:
                raise NotImplementedError  # pure virtual in the real base, too

        class AimedConfig(Config):
            num_compute_capabilities = 0

            def set_compute_capability(self, capability: str, index: int) -> bool:
                self.aim = capability
                return self.num_compute_capabilities == index + 1

        self.rtx = rtx
        if rtx:
            self.IRuntimeConfig = RuntimeConfig
            self.DynamicShapesKernelSpecializationStrategy = type("S", (), {"EAGER": "EAGER"})
            self.ComputeCapability = type("Known", (), {"CURRENT": "", "SM89": "SM89"})
        self.ILogger, self.IBuilderConfig = ILogger, AimedConfig if rtx else Config
        trt = self

        class Builder:
            def __init__(self, log: object) -> None:
                self.log = log

            def create_network(self, flags: int) -> Network:
                return Network(flags)

            def create_builder_config(self) -> Config:
                return trt.IBuilderConfig()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> object:
                if trt.no_engine:
                    self.log.log(ILogger.ERROR, "no tactic")
                    return None
                trt.built.append((network, config))
                plan = {"version": trt.__version__, "shapes": config.profiles[0].shapes}
                return json.dumps(plan).encode() + b"\0" + network.model

        class Runtime:
            def __init__(self, log: object) -> None:
                self.log = log

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                head, _, model = serialized_engine.partition(b"\0")
                if trt.refuse:
                    self.log.log(ILogger.ERROR, "serialization version")
                    return None
                return Engine(trt, json.loads(head), model)

        self.Builder, self.Runtime = Builder, Runtime
