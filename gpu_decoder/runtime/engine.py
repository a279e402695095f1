"""A TensorRT engine at fixed addresses, and the runtime that feeds it from the host.

One execution context, one stream, one captured graph per worker. The graph's shape is that of a
full batch; a smaller one is filled up with empty shots, whose answers are dropped.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from types import ModuleType
from typing import cast

import numpy as np

from gpu_decoder.gpu.driver import Driver, DriverError
from gpu_decoder.gpu.graph import CapturedGraph, Stream
from gpu_decoder.gpu.memory import DeviceBuffer, PinnedBuffer
from gpu_decoder.ising.onnx_model import INPUT, OUTPUT, read_info
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime import tensorrt_api as api
from gpu_decoder.runtime.engine_build import build_plan, engine_log
from gpu_decoder.runtime.engine_cache import EngineCache, EngineKey
from gpu_decoder.runtime.protocol import EngineError, check_input


class EngineExecution:
    """An engine with one context, its input and output at addresses that do not change.

    The engine is taken from the cache; if there is none it is built and kept.

    Args:
        driver: the device; must outlive this.
        trt: module of the product.
        product: which.
        onnx_bytes: a model of ``onnx_model`` or ``quantize``.
        precision: requested; must be that of the model.
        batch: shots per call.
        cache: where engines are kept; the user's cache if ``None``.

    Attributes:
        key: what the engine was built from and for.
        n_inputs: N.
        input_address: uint8 [batch, N] on the device.
        output_address: uint8 [batch, 1 + N] on the device.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, a kept engine is stale, foreign or damaged, or the model
            has another precision; ``ENGINE_MISSING``, none can be built.
        ModelMismatchError: no model of ours.
        DriverError: no memory.
    """

    def __init__(
        self,
        driver: Driver,
        trt: ModuleType,
        product: api.Product,
        onnx_bytes: bytes,
        precision: Precision,
        batch: int,
        cache: EngineCache | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch of {batch}, allowed: at least 1")
        self.n_inputs = read_info(onnx_bytes).n_detectors
        self.key = engine_key(product, trt, driver, onnx_bytes, precision, batch)
        self._driver = driver
        self._product = product
        cache = EngineCache() if cache is None else cache
        plan = cache.load(self.key)
        if plan is None:
            plan = build_plan(
                trt, product, onnx_bytes, precision, batch, self.n_inputs, driver.capability
            ).data
            _keep(cache, self.key, plan)
        self._owners: list[object] = []
        self._plan_sha256 = hashlib.sha256(plan).hexdigest()
        with ExitStack() as undo:
            undo.callback(self._forget)
            self._context: api.Context | None = self._open(trt, plan)
            self._place(undo, self._context)
            self._undo = undo.pop_all()

    def _open(self, trt: ModuleType, plan: bytes) -> api.Context:
        log = engine_log(trt)
        runtime: api.Deserializer = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"the engine is refused: {log.tail()}", Reason.ENGINE_MISMATCH)
        _check_signature(trt, engine, self.key.batch, self.n_inputs)
        context = _context(trt, self._product, engine)
        if context is None:
            raise EngineError(f"no execution context: {log.tail()}", Reason.ENGINE_MISSING)
        self._owners = [runtime, engine]  # must outlive the context
        return context

    def _place(self, undo: ExitStack, context: api.Context) -> None:
        batch, n = self.key.batch, self.n_inputs
        source = DeviceBuffer(self._driver, batch * n)
        undo.callback(source.close)
        sink = DeviceBuffer(self._driver, batch * (1 + n))
        undo.callback(sink.close)
        self.input_address, self.output_address = source.address, sink.address
        good = (
            context.set_input_shape(INPUT, (batch, n))
            and tuple(context.get_tensor_shape(OUTPUT)) == (batch, 1 + n)
            and context.set_tensor_address(INPUT, self.input_address)
            and context.set_tensor_address(OUTPUT, self.output_address)
        )
        if not good:
            raise EngineError(f"the engine takes no {batch} shots of {n}", Reason.ENGINE_MISMATCH)

    @property
    def backend(self) -> Backend:
        """The product."""
        return self._product.backend

    @property
    def precision(self) -> Precision:
        """Number format of the convolutions; the network was compared with it when built."""
        return Precision[self.key.precision]

    def enqueue(self, stream: Stream) -> None:
        """Put one execution on the stream.

        Raises:
            EngineError: ``PREDECODER_ERROR``.
        """
        if self._context is None or not self._context.execute_async_v3(stream.handle):
            raise EngineError("the engine could not be enqueued", Reason.PREDECODER_ERROR)

    def check_capturable(self, stream: Stream) -> None:
        """Refuse a context that says that it cannot be captured (TensorRT-RTX can tell).

        Raises:
            EngineError: ``PREDECODER_ERROR``.
        """
        if not self._product.aims:
            return
        if not cast("api.AimedContext", self._context).is_stream_capturable(stream.handle):
            raise EngineError("the engine cannot be captured", Reason.PREDECODER_ERROR)

    def fingerprint(self) -> dict[str, str]:
        """What executes: the same keys as other runtimes, and those of the engine."""
        return {
            "runtime": self.key.product,
            "runtime_version": self.key.version,
            "runtime_device": f"{self.key.gpu} (compute capability {self.key.capability})",
            "runtime_driver": self._driver.version,
            "runtime_batch": str(self.key.batch),
            "precision": self.key.precision.lower(),
            "model_sha256": self.key.onnx_sha256,
            "engine_sha256": self._plan_sha256,
        }

    def close(self) -> None:
        """Free buffers, context and engine, in this order."""
        self._undo.close()

    def _forget(self) -> None:
        self._context = None
        while self._owners:
            self._owners.pop()


class EngineRuntime:
    """A model as an engine of one TensorRT product (see ``Runtime``).

    Args:
        product: which.
        onnx_bytes: a model of ``onnx_model`` or ``quantize``.
        precision: requested; must be that of the model.
        batch: shots per call of the engine; more are run in turns.
        device: number of the GPU.
        cache: where engines are kept; the user's cache if ``None``.
        driver: stands in for the driver in tests.
        trt: stands in for the module in tests.

    Raises:
        RuntimeUnavailable: product, driver or GPU is missing.
        EngineError, ModelMismatchError: see ``EngineExecution``.
    """

    def __init__(
        self,
        product: api.Product,
        onnx_bytes: bytes,
        precision: Precision,
        batch: int = 1,
        device: int = 0,
        cache: EngineCache | None = None,
        driver: Driver | None = None,
        trt: ModuleType | None = None,
    ) -> None:
        module = api.load(product) if trt is None else trt
        with ExitStack() as undo:
            self._driver = undo.enter_context(Driver(device) if driver is None else driver)
            stream = Stream(self._driver)
            undo.callback(stream.close)
            self._execution = EngineExecution(
                self._driver, module, product, onnx_bytes, precision, batch, cache
            )
            undo.callback(self._execution.close)
            self._graph: CapturedGraph | None = self._capture(undo, stream)
            self._undo = undo.pop_all()

    def _capture(self, undo: ExitStack, stream: Stream) -> CapturedGraph:
        driver, execution = self._driver, self._execution
        batch, n = execution.key.batch, execution.n_inputs
        source = PinnedBuffer(driver, batch * n)
        undo.callback(source.close)
        sink = PinnedBuffer(driver, batch * (1 + n))
        undo.callback(sink.close)
        self._source = source.array.reshape(batch, n)
        self._sink = sink.array.reshape(batch, 1 + n)

        def enqueue() -> None:
            driver.call("cuMemcpyHtoDAsync_v2", execution.input_address, source.address,
                        batch * n, stream.handle)  # fmt: skip
            execution.enqueue(stream)
            driver.call("cuMemcpyDtoHAsync_v2", sink.address, execution.output_address,
                        batch * (1 + n), stream.handle)  # fmt: skip

        graph = CapturedGraph(driver, stream, enqueue, lambda: execution.check_capturable(stream))
        undo.callback(graph.close)
        return graph

    @property
    def backend(self) -> Backend:
        """The product."""
        return self._execution.backend

    @property
    def precision(self) -> Precision:
        """The number format that executes."""
        return self._execution.precision

    @property
    def n_inputs(self) -> int:
        """N, detectors of one shot."""
        return self._execution.n_inputs

    def run(self, dets: U8Array) -> U8Array:
        """Execute; see ``Runtime.run``."""
        check_input(dets, self.n_inputs)
        if self._graph is None:
            raise EngineError("the runtime is closed", Reason.PREDECODER_ERROR)
        out = np.empty((len(dets), 1 + self.n_inputs), dtype=np.uint8)
        batch = len(self._source)
        for first in range(0, len(dets), batch):
            part = dets[first : first + batch]
            self._source[: len(part)] = part
            self._source[len(part) :] = 0
            try:
                self._graph.run()
            except DriverError as error:
                raise EngineError(f"the GPU failed: {error}", Reason.PREDECODER_ERROR) from error
            out[first : first + len(part)] = self._sink[: len(part)]
        return out

    def fingerprint(self) -> dict[str, str]:
        """What executes."""
        return self._execution.fingerprint()

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._graph = None
        self._undo.close()


def engine_key(
    product: api.Product, trt: ModuleType, driver: Driver, onnx_bytes: bytes,
    precision: Precision, batch: int,
) -> EngineKey:  # fmt: skip
    """Key of the engine that a model needs on a device."""
    major, minor = driver.capability
    return EngineKey(
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        product=product.backend.name.lower(),
        version=str(trt.__version__),
        gpu=driver.name,
        capability=f"{major}.{minor}",
        precision=precision.name,
        batch=batch,
    )


def _keep(cache: EngineCache, key: EngineKey, plan: bytes) -> None:
    try:
        cache.store(key, plan)
    except OSError as error:
        raise EngineError(
            f"the engine cannot be kept in {cache.folder}: {error}; set XDG_CACHE_HOME to a folder "
            "that can be written",
            Reason.ENGINE_MISSING,
        ) from error


def _context(trt: ModuleType, product: api.Product, engine: api.Engine) -> api.Context | None:
    """An execution context; kernels that TensorRT-RTX finishes on the target are finished at once.

    By default it starts with slower ones and replaces them in the background, which a captured
    graph would not see.
    """
    if not product.aims:
        return engine.create_execution_context()
    aimed = cast("api.AimedEngine", engine)
    config = aimed.create_runtime_config()
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.dynamic_shapes_kernel_specialization_strategy = eager
    return aimed.create_execution_context(config)


def _check_signature(trt: ModuleType, engine: api.Engine, batch: int, n_inputs: int) -> None:
    wanted = {
        INPUT: (trt.TensorIOMode.INPUT, trt.DataType.UINT8, (-1, n_inputs)),
        OUTPUT: (trt.TensorIOMode.OUTPUT, trt.DataType.UINT8, (-1, 1 + n_inputs)),
    }
    got = {
        name: (
            engine.get_tensor_mode(name),
            engine.get_tensor_dtype(name),
            tuple(engine.get_tensor_shape(name)),
        )
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
    }
    if got != wanted:
        raise EngineError(f"the engine has {got}, the model needs {wanted}", Reason.ENGINE_MISMATCH)
    largest = tuple(engine.get_tensor_profile_shape(INPUT, 0)[2])
    if largest != (batch, n_inputs):
        raise EngineError(
            f"the engine takes up to {largest}, wanted {(batch, n_inputs)}", Reason.ENGINE_MISMATCH
        )
