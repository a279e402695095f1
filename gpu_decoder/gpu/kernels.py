"""The kernels on a device: compiled for it, loaded, launched."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from ctypes import byref, c_uint, c_uint64, c_void_p
from typing import Final

from gpu_decoder.gpu.compile import KERNELS, kernels_cubin
from gpu_decoder.gpu.driver import Driver
from gpu_decoder.gpu.graph import Stream
from gpu_decoder.gpu.memory import DeviceBuffer
from gpu_decoder.gpu.slots import DetectorTable

BLOCK_THREADS: Final = 256


class DeviceTable:
    """A ``DetectorTable`` on the device; the copy is done when the stream has been synchronised."""

    def __init__(self, driver: Driver, stream: Stream, table: DetectorTable) -> None:
        self.table = table
        with ExitStack() as undo:
            self.addresses = []
            for array in (table.row_start, table.row_piece, table.row_bit):
                buffer = DeviceBuffer(driver, max(array.nbytes, 1))
                undo.callback(buffer.close)
                driver.call(
                    "cuMemcpyHtoDAsync_v2",
                    buffer.address, array.ctypes.data, array.nbytes, stream.handle,
                )  # fmt: skip
                self.addresses.append(buffer.address)
            stream.synchronize()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Free it."""
        self._undo.close()


class Kernels:
    """``form_detectors`` and ``pack_output`` of ``kernels.cu`` (arguments: there).

    Raises:
        CompileError, RuntimeUnavailable: see ``compile``.
        DriverError: the image cannot be loaded.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._module = c_void_p()
        driver.call("cuModuleLoadData", byref(self._module), kernels_cubin(driver.capability))
        self._functions: dict[str, c_void_p] = {}
        try:
            for name in KERNELS:
                function = c_void_p()
                driver.call("cuModuleGetFunction", byref(function), self._module, name.encode())
                self._functions[name] = function
        except RuntimeError:
            self.close()
            raise

    def form_detectors(
        self, stream: Stream, memory: int, message_at: int, table: DeviceTable,
        batch: int, dets: int,
    ) -> None:  # fmt: skip
        """Enqueue the kernel; ``memory``, ``message_at`` and ``dets`` are device addresses."""
        n = table.table.n_detectors
        self._launch(
            "form_detectors", stream, batch * n,
            c_uint64(memory), c_uint64(message_at), c_uint(len(table.table.pieces)),
            *map(c_uint64, table.addresses), c_uint(n), c_uint(batch), c_uint64(dets),
        )  # fmt: skip

    def pack_output(
        self, stream: Stream, output: int, n_detectors: int, batch: int,
        residual: int, pre_l: int, invalid: int,
    ) -> None:  # fmt: skip
        """Enqueue the kernel; ``output``, ``residual``, ... are device addresses."""
        self._driver.call("cuMemsetD8Async", invalid, 0, batch, stream.handle)
        self._launch(
            "pack_output", stream, batch * ((n_detectors + 7) // 8),
            c_uint64(output), c_uint(n_detectors), c_uint(batch),
            c_uint64(residual), c_uint64(pre_l), c_uint64(invalid),
        )  # fmt: skip

    def close(self) -> None:
        """Unload them."""
        self._driver.call("cuModuleUnload", self._module)

    def _launch(
        self, name: str, stream: Stream, threads: int, *arguments: c_uint | c_uint64
    ) -> None:
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        blocks = -(-threads // BLOCK_THREADS)
        self._driver.call(
            "cuLaunchKernel", self._functions[name],
            blocks, 1, 1, BLOCK_THREADS, 1, 1, 0, stream.handle, pointers, None,
        )  # fmt: skip
