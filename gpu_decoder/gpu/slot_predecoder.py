"""The pre-decoder fed by a network card: messages in receive memory in, residual bits out.

What one captured graph does: the offsets of the messages go to the device, ``form_detectors``
writes the engine's input, the engine runs, ``pack_output`` packs its output, the packed bits come
back. The host touches no detector. Headers and checksums of the messages are not looked at here:
whoever passes an offset knows that a whole message of the expected shot lies there.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType

import numpy as np

from gpu_decoder.gpu.driver import Driver, DriverError
from gpu_decoder.gpu.graph import CapturedGraph, Stream
from gpu_decoder.gpu.kernels import DeviceTable, Kernels
from gpu_decoder.gpu.memory import DeviceBuffer, PinnedBuffer, ReceiveMemory
from gpu_decoder.gpu.slots import DetectorTable, U64Array
from gpu_decoder.ising.onnx_model import ModelMismatchError, check_info, read_info
from gpu_decoder.ising.predecoder import Predecoded
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.protocol import Backend, Precision, Reason
from gpu_decoder.runtime import tensorrt_api as api
from gpu_decoder.runtime.engine import EngineExecution
from gpu_decoder.runtime.engine_cache import EngineCache
from gpu_decoder.runtime.protocol import EngineError


class SlotPredecoder:
    """One per worker: it owns a stream, an engine with its context, and a captured graph.

    Args:
        driver: the device; must outlive this.
        memory: where messages arrive; must outlive this.
        table: which of their bits make each detector, in the order of the engine's input.
        product: TensorRT product of the engine.
        onnx_bytes: the model.
        precision: requested.
        layout: of the circuit.
        batch: shots per launch.
        cache: of engines.
        trt: stands in for the module in tests.

    Raises:
        RuntimeUnavailable: product, compiler or a property of the device is missing.
        ModelMismatchError: the model or the table does not suit the circuit.
        EngineError, DriverError, CompileError: see the parts.
    """

    def __init__(
        self,
        driver: Driver,
        memory: ReceiveMemory,
        table: DetectorTable,
        product: api.Product,
        onnx_bytes: bytes,
        precision: Precision,
        layout: Layout,
        batch: int = 1,
        cache: EngineCache | None = None,
        trt: ModuleType | None = None,
    ) -> None:
        check_info(read_info(onnx_bytes), layout)
        if table.n_detectors != layout.n_detectors:
            raise ModelMismatchError(
                f"the table forms {table.n_detectors} detectors, the circuit has "
                f"{layout.n_detectors}"
            )
        table.check_messages(np.zeros((1, len(table.pieces)), dtype=np.uint64), memory.nbytes)
        self._driver, self._memory, self._table = driver, memory, table
        boundary = np.arange(layout.n_detectors) >= layout.n_detectors - layout.geometry.half
        self._boundary_b8 = np.packbits(boundary, bitorder="little")
        module = api.load(product) if trt is None else trt
        with ExitStack() as undo:
            stream = Stream(driver)
            undo.callback(stream.close)
            self._execution = EngineExecution(
                driver, module, product, onnx_bytes, precision, batch, cache
            )
            undo.callback(self._execution.close)
            self._graph: CapturedGraph | None = self._capture(undo, stream)
            self._undo = undo.pop_all()

    def _capture(self, undo: ExitStack, stream: Stream) -> CapturedGraph:
        driver, execution, memory = self._driver, self._execution, self._memory
        batch, n, pieces = execution.key.batch, execution.n_inputs, len(self._table.pieces)
        kernels = Kernels(driver)
        undo.callback(kernels.close)
        table = DeviceTable(driver, stream, self._table)
        undo.callback(table.close)
        residual_bytes = batch * ((n + 7) // 8)
        out_bytes = residual_bytes + 2 * batch
        offsets = DeviceBuffer(driver, 8 * batch * pieces)
        undo.callback(offsets.close)
        answers = DeviceBuffer(driver, out_bytes)
        undo.callback(answers.close)
        source = PinnedBuffer(driver, 8 * batch * pieces)
        undo.callback(source.close)
        sink = PinnedBuffer(driver, out_bytes)
        undo.callback(sink.close)
        self._message_at = source.array.view(np.uint64).reshape(batch, pieces)
        self._residual_b8 = sink.array[:residual_bytes].reshape(batch, -1)
        self._pre_l = sink.array[residual_bytes : residual_bytes + batch]
        self._invalid = sink.array[residual_bytes + batch :]
        pre_l = answers.address + residual_bytes

        def enqueue() -> None:
            driver.call("cuMemcpyHtoDAsync_v2", offsets.address, source.address,
                        8 * batch * pieces, stream.handle)  # fmt: skip
            kernels.form_detectors(
                stream, memory.address, offsets.address, table, batch, execution.input_address
            )
            execution.enqueue(stream)
            kernels.pack_output(
                stream, execution.output_address, n, batch, answers.address, pre_l, pre_l + batch
            )
            driver.call("cuMemcpyDtoHAsync_v2", sink.address, answers.address, out_bytes,
                        stream.handle)  # fmt: skip

        graph = CapturedGraph(driver, stream, enqueue, lambda: execution.check_capturable(stream))
        undo.callback(graph.close)
        return graph

    @property
    def backend(self) -> Backend:
        """The runtime that executes."""
        return self._execution.backend

    @property
    def precision(self) -> Precision:
        """The number format that executes."""
        return self._execution.precision

    def predecode_messages(self, message_at: U64Array) -> Predecoded:
        """Treat shots whose messages have arrived.

        Args:
            message_at: uint64 [n, pieces], byte offset of each message in the receive memory.

        Raises:
            ValueError: a message does not lie in the memory.
            EngineError: ``PREDECODER_ERROR``, the GPU failed; ``OUTPUT_INVALID``, a value is
                neither 0 nor 1, or a detector of the data readout fires.
        """
        self._table.check_messages(message_at, self._memory.nbytes)
        if self._graph is None:
            raise EngineError("the pre-decoder is closed", Reason.PREDECODER_ERROR)
        shots, batch = len(message_at), len(self._message_at)
        pre_l = np.empty(shots, dtype=np.uint8)
        residual_b8 = np.empty((shots, self._residual_b8.shape[1]), dtype=np.uint8)
        for first in range(0, shots, batch):
            part = message_at[first : first + batch]
            self._message_at[: len(part)] = part
            self._message_at[len(part) :] = part[0]
            try:
                self._memory.make_writes_visible()
                self._graph.run()
            except DriverError as error:
                raise EngineError(f"the GPU failed: {error}", Reason.PREDECODER_ERROR) from error
            self._check(first, len(part))
            pre_l[first : first + len(part)] = self._pre_l[: len(part)]
            residual_b8[first : first + len(part)] = self._residual_b8[: len(part)]
        return Predecoded(pre_l, residual_b8)

    def _check(self, first: int, count: int) -> None:
        for problem, bad in (
            ("a value is neither 0 nor 1", self._invalid[:count] != 0),
            (
                "a detector of the data readout fires, which no error can",
                (self._residual_b8[:count] & self._boundary_b8).any(axis=1),
            ),
        ):
            if bad.any():
                shot = first + int(np.argmax(bad))
                raise EngineError(f"output of shot {shot}: {problem}", Reason.OUTPUT_INVALID)

    def fingerprint(self) -> dict[str, str]:
        """What executes."""
        return self._execution.fingerprint()

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._graph = None
        self._undo.close()
