"""A TensorRT engine at fixed addresses, and the runtime that feeds it from the host.

One execution context, one stream, one captured graph per worker. The graph's shape is that of a
full batch; a smaller one is filled up with empty shots, whose answers are dropped.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from types import ModuleType

import numpy as np

from gpu_decoder.gpu.driver import Driver, DriverError
from gpu_decoder.gpu.graph import CapturedGraph, Stream
from gpu_decoder.gpu.memory import DeviceBuffer, PinnedBuffer
from gpu_decoder.ising.onnx_model import INPUT, OUTPUT, read_info
from gpu_decoder.protocol import Backend, Precision, Reason, U8Array
from gpu_decoder.runtime.engine_build import build_plan, engine_log
from gpu_decoder.runtime.engine_cache import EngineCache, EngineKey
from gpu_decoder.runtime.protocol import EngineError, check_input
from gpu_decoder.runtime.tensorrt_api import Context, Engine, Product, load


class EngineExecution:
    """An engine with one context, its input and output at addresses that do not change.

    Args:
        driver: the device that the engine was built for.
        trt: module of the product.
        plan: serialised engine.
        batch: shots per call.
        n_inputs: N.

    Attributes:
        input_address: uint8 [batch, N] on the device.
        output_address: uint8 [batch, 1 + N] on the device.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, the engine is refused or has other inputs and outputs.
        DriverError: no memory.
    """

    def __init__(
        self, driver: Driver, trt: ModuleType, plan: bytes, batch: int, n_inputs: int
    ) -> None:
        log = engine_log(trt)
        self._runtime = trt.Runtime(log)  # owns the engine: must outlive it
        engine: Engine | None = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"the engine is refused: {log.tail()}", Reason.ENGINE_MISMATCH)
        _check_signature(trt, engine, batch, n_inputs)
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(f"no execution context: {log.tail()}", Reason.ENGINE_MISSING)
        self._engine: Engine | None = engine
        self._context: Context | None = context
        with ExitStack() as undo:
            undo.callback(self._forget)
            source = DeviceBuffer(driver, batch * n_inputs)
            undo.callback(source.close)
            sink = DeviceBuffer(driver, batch * (1 + n_inputs))
            undo.callback(sink.close)
            good = (
                context.set_input_shape(INPUT, (batch, n_inputs))
                and tuple(context.get_tensor_shape(OUTPUT)) == (batch, 1 + n_inputs)
                and context.set_tensor_address(INPUT, source.address)
                and context.set_tensor_address(OUTPUT, sink.address)
            )
            if not good:
                raise EngineError(
                    f"the engine does not take {batch} shots: {log.tail()}", Reason.ENGINE_MISMATCH
                )
            self.input_address = source.address
            self.output_address = sink.address
            self._undo = undo.pop_all()

    def enqueue(self, stream: Stream) -> None:
        """Put one execution on the stream.

        Raises:
            EngineError: ``PREDECODER_ERROR``.
        """
        if self._context is None or not self._context.execute_async_v3(stream.handle):
            raise EngineError("the engine could not be enqueued", Reason.PREDECODER_ERROR)

    def close(self) -> None:
        """Free buffers, context and engine."""
        self._undo.close()

    def _forget(self) -> None:
        self._context = self._engine = self._runtime = None


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
        EngineError: no engine can be built, or a kept one is stale, foreign or damaged.
        ModelMismatchError: no model of ours.
    """

    def __init__(
        self,
        product: Product,
        onnx_bytes: bytes,
        precision: Precision,
        batch: int = 1,
        device: int = 0,
        cache: EngineCache | None = None,
        driver: Driver | None = None,
        trt: ModuleType | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch of {batch}, allowed: at least 1")
        self._product = product
        self._n_inputs = read_info(onnx_bytes).n_detectors
        self._batch = batch
        module = load(product) if trt is None else trt
        with ExitStack() as undo:
            self._driver = undo.enter_context(Driver(device)) if driver is None else driver
            self._key = engine_key(product, module, self._driver, onnx_bytes, precision, batch)
            plan = load_or_build(
                self._key, EngineCache() if cache is None else cache, product, module, onnx_bytes,
                self._driver.capability, self._n_inputs,
            )  # fmt: skip
            self._plan_sha256 = hashlib.sha256(plan).hexdigest()
            self._open(undo, module, plan)
            self._undo = undo.pop_all()

    def _open(self, undo: ExitStack, module: ModuleType, plan: bytes) -> None:
        driver, batch, n = self._driver, self._batch, self._n_inputs
        stream = Stream(driver)
        undo.callback(stream.close)
        execution = EngineExecution(driver, module, plan, batch, n)
        undo.callback(execution.close)
        self._source = PinnedBuffer(driver, batch * n)
        undo.callback(self._source.close)
        self._sink = PinnedBuffer(driver, batch * (1 + n))
        undo.callback(self._sink.close)

        def enqueue() -> None:
            driver.call("cuMemcpyHtoDAsync_v2", execution.input_address, self._source.address,
                        batch * n, stream.handle)  # fmt: skip
            execution.enqueue(stream)
            driver.call("cuMemcpyDtoHAsync_v2", self._sink.address, execution.output_address,
                        batch * (1 + n), stream.handle)  # fmt: skip

        self._graph: CapturedGraph | None = CapturedGraph(driver, stream, enqueue)
        undo.callback(self._graph.close)

    @property
    def backend(self) -> Backend:
        """The product."""
        return self._product.backend

    @property
    def precision(self) -> Precision:
        """Number format of the convolutions, compared with the network when it was built."""
        return Precision[self._key.precision]

    @property
    def n_inputs(self) -> int:
        """N, detectors of one shot."""
        return self._n_inputs

    def run(self, dets: U8Array) -> U8Array:
        """Execute; see ``Runtime.run``."""
        check_input(dets, self._n_inputs)
        if self._graph is None:
            raise EngineError("the runtime is closed", Reason.PREDECODER_ERROR)
        source = self._source.array.reshape(self._batch, self._n_inputs)
        sink = self._sink.array.reshape(self._batch, 1 + self._n_inputs)
        out = np.empty((len(dets), 1 + self._n_inputs), dtype=np.uint8)
        for first in range(0, len(dets), self._batch):
            part = dets[first : first + self._batch]
            source[: len(part)] = part
            source[len(part) :] = 0
            try:
                self._graph.run()
            except DriverError as error:
                raise EngineError(f"the GPU failed: {error}", Reason.PREDECODER_ERROR) from error
            out[first : first + len(part)] = sink[: len(part)]
        return out

    def fingerprint(self) -> dict[str, str]:
        """What executes."""
        return fingerprint(self._key, self._driver, self._plan_sha256)

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._graph = None
        self._undo.close()


def engine_key(
    product: Product, trt: ModuleType, driver: Driver, onnx_bytes: bytes, precision: Precision,
    batch: int,
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


def load_or_build(
    key: EngineKey, cache: EngineCache, product: Product, trt: ModuleType, onnx_bytes: bytes,
    capability: tuple[int, int], n_inputs: int,
) -> bytes:  # fmt: skip
    """The kept engine of a key, else a new one, which is then kept."""
    plan = cache.load(key)
    if plan is None:
        precision = Precision[key.precision]
        plan = build_plan(
            trt, product, onnx_bytes, precision, key.batch, n_inputs, capability
        ).data
        cache.store(key, plan)
    return plan


def fingerprint(key: EngineKey, driver: Driver, plan_sha256: str) -> dict[str, str]:
    """What executes: the same keys as other runtimes, and those of the engine."""
    return {
        "runtime": key.product,
        "runtime_version": key.version,
        "runtime_device": f"{key.gpu} (compute capability {key.capability})",
        "runtime_driver": driver.version,
        "runtime_batch": str(key.batch),
        "precision": key.precision.lower(),
        "model_sha256": key.onnx_sha256,
        "engine_sha256": plan_sha256,
    }


def _check_signature(trt: ModuleType, engine: Engine, batch: int, n_inputs: int) -> None:
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
        raise EngineError(
            f"the engine has {got}, the model needs {wanted}", Reason.ENGINE_MISMATCH
        )
    largest = tuple(engine.get_tensor_profile_shape(INPUT, 0)[2])
    if largest != (batch, n_inputs):
        raise EngineError(
            f"the engine takes up to {largest}, wanted {(batch, n_inputs)}", Reason.ENGINE_MISMATCH
        )
