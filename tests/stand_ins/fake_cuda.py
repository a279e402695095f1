"""A CUDA driver without a GPU: keeps the books of every call, so that misuse becomes visible.

Device memory is host memory, streams run at once, a captured graph replays what was put on the
stream, and kernels run on the CPU (``kernel_shim``) where g++ is there. Every call passes through a
C function pointer, so arguments are converted as for the real library. It shows that the host code
makes the right calls in the right order; it shows nothing about a GPU.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from ctypes import c_int, c_void_p

from gpu_decoder.gpu.driver import CALLS, Attribute, MemAllocationProp

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE = 0, 1, 2, 100
ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED, UNKNOWN = 700, 900, 999
NAMES = {
    INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS",
    CAPTURE_UNSUPPORTED: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
}
GRANULE = 2 << 20
PARAMETERS = {"form_detectors": (8, 8, 4, 8, 8, 8, 4, 4, 8), "pack_output": (8, 4, 4, 8, 8, 8)}
"""Bytes of each kernel's parameters, as a driver knows them from the image."""


class FakeCuda:
    """Stands in for ``ctypes.CDLL("libcuda.so.1")``.

    Attributes:
        calls: names in order.
        fail: name -> result to return instead of working.
        attributes: of the device.
        live: what is allocated, by kind.
        shim: kernels on the CPU, or ``None``: launches do nothing.
    """

    def __init__(self, shim: ctypes.CDLL | None = None, absent: tuple[str, ...] = ()) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.attributes = {
            Attribute.COMPUTE_CAPABILITY_MAJOR: 8,
            Attribute.COMPUTE_CAPABILITY_MINOR: 9,
            Attribute.VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: 1,
            Attribute.GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED: 1,
            Attribute.GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS: 1,
            Attribute.GPU_DIRECT_RDMA_WRITES_ORDERING: 200,
            Attribute.DMA_BUF_SUPPORTED: 1,
        }
        self.name = b"Fake GPU"
        self.live: Counter[str] = Counter()
        self.shim = shim
        self._absent = absent
        self._blocks: dict[int, tuple[int, object]] = {}
        self._capturing: list[Callable[[], int]] | None = None
        self._graphs: dict[int, list[Callable[[], int]]] = {}
        self._functions: dict[int, str] = {}
        self._error = SUCCESS
        self._thunks: dict[str, object] = {}

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or name not in CALLS or name in self._absent:
            raise AttributeError(name)
        if name not in self._thunks:
            types = [c_void_p if t is ctypes.c_char_p else t for t in CALLS[name]]

            def thunk(*arguments: object) -> int:
                self.calls.append(name)
                if name in self.fail:
                    return self.fail[name]
                return getattr(type(self), f"_{name.removesuffix('_v2')}")(self, *arguments)

            self._thunks[name] = ctypes.CFUNCTYPE(c_int, *types)(thunk)
        return self._thunks[name]

    def work(self, task: Callable[[], int]) -> int:
        """Do a task in stream order: now, or whenever the graph is launched."""
        if self._capturing is not None:
            self._capturing.append(task)
        else:
            self._error = self._error or task()
        return SUCCESS

    def covers(self, address: int | None, nbytes: int) -> bool:
        """Whether a range lies inside one live allocation."""
        start = address or 0
        return any(
            a <= start and start + nbytes <= a + size for a, (size, _) in self._blocks.items()
        )

    def _take(self, kind: str, out: ctypes._Pointer, nbytes: int, align: int = 256) -> int:
        if self._capturing is not None:
            return CAPTURE_UNSUPPORTED
        raw = ctypes.create_string_buffer(b"\xa5" * (nbytes + align), nbytes + align)
        address = -(-ctypes.addressof(raw) // align) * align
        self._blocks[address] = (nbytes, raw)
        self.live[kind] += 1
        out[0] = address
        return SUCCESS

    def _give(self, kind: str, address: int | None) -> int:
        if self._blocks.pop(address or 0, None) is None:
            return INVALID_VALUE
        self.live[kind] -= 1
        return SUCCESS

    def _handle(self, kind: str, out: ctypes._Pointer) -> int:
        self.live[kind] += 1
        out[0] = 0x1000 + len(self.calls)
        return SUCCESS

    def _drop(self, kind: str) -> int:
        self.live[kind] -= 1
        return SUCCESS if self.live[kind] >= 0 else INVALID_VALUE

    def _cuInit(self, flags: int) -> int:
        return SUCCESS

    def _cuGetErrorName(self, code: int, out: ctypes._Pointer) -> int:
        if code not in NAMES:
            return INVALID_VALUE
        out[0] = NAMES[code]
        return SUCCESS

    def _cuDriverGetVersion(self, out: ctypes._Pointer) -> int:
        out[0] = 13050
        return SUCCESS

    def _cuDeviceGet(self, out: ctypes._Pointer, ordinal: int) -> int:
        out[0] = ordinal
        return SUCCESS if ordinal == 0 else 101

    def _cuDeviceGetName(self, out: int, size: int, device: int) -> int:
        ctypes.memmove(out, self.name + b"\0", len(self.name) + 1)
        return SUCCESS

    def _cuDeviceGetAttribute(self, out: ctypes._Pointer, attribute: int, device: int) -> int:
        out[0] = self.attributes[Attribute(attribute)]
        return SUCCESS

    def _cuDevicePrimaryCtxRetain(self, out: ctypes._Pointer, device: int) -> int:
        return self._handle("context", out)

    def _cuDevicePrimaryCtxRelease(self, device: int) -> int:
        return self._drop("context")

    def _cuCtxSetCurrent(self, context: int) -> int:
        return SUCCESS

    def _cuMemAlloc(self, out: ctypes._Pointer, nbytes: int) -> int:
        return self._take("device", out, nbytes)

    def _cuMemFree(self, address: int) -> int:
        return self._give("device", address)

    def _cuMemHostAlloc(self, out: ctypes._Pointer, nbytes: int, flags: int) -> int:
        return self._take("pinned", out, nbytes)

    def _cuMemFreeHost(self, address: int) -> int:
        return self._give("pinned", address)

    def _copy(self, to: int, source: int, nbytes: int, on_device: int) -> int:
        def task() -> int:
            if not self.covers(on_device, nbytes):
                return ILLEGAL_ADDRESS
            ctypes.memmove(to, source, nbytes)
            return SUCCESS

        return self.work(task)

    def _cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> int:
        return self._copy(to, source, nbytes, to)

    def _cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> int:
        return self._copy(to, source, nbytes, source)

    def _cuMemsetD8Async(self, to: int, value: int, nbytes: int, stream: int) -> int:
        def task() -> int:
            if not self.covers(to, nbytes):
                return ILLEGAL_ADDRESS
            ctypes.memset(to, value, nbytes)
            return SUCCESS

        return self.work(task)

    def _cuMemGetAllocationGranularity(
        self, out: ctypes._Pointer, prop: ctypes._Pointer, option: int
    ) -> int:
        out[0] = GRANULE
        return SUCCESS

    def _cuMemCreate(
        self, out: ctypes._Pointer, nbytes: int, prop: ctypes._Pointer, flags: int
    ) -> int:
        wanted: MemAllocationProp = prop[0]
        pinned_on_device = (wanted.type, wanted.location.type, wanted.location.id) == (1, 1, 0)
        if nbytes % GRANULE or not pinned_on_device or not wanted.allocFlags.gpuDirectRDMACapable:
            return INVALID_VALUE
        return self._handle("memory", out)

    def _cuMemRelease(self, handle: int) -> int:
        return self._drop("memory")

    def _cuMemAddressReserve(
        self, out: ctypes._Pointer, nbytes: int, align: int, at: int, flags: int
    ) -> int:
        return self._take("range", out, nbytes, align)

    def _cuMemAddressFree(self, address: int, nbytes: int) -> int:
        return INVALID_VALUE if self.live["mapping"] else self._give("range", address)

    def _cuMemMap(self, address: int, nbytes: int, offset: int, handle: int, flags: int) -> int:
        self.live["mapping"] += 1
        return SUCCESS if self.covers(address, nbytes) else INVALID_VALUE

    def _cuMemUnmap(self, address: int, nbytes: int) -> int:
        return self._drop("mapping")

    def _cuMemSetAccess(self, address: int, nbytes: int, access: ctypes._Pointer, n: int) -> int:
        return SUCCESS if (access[0].flags, n) == (3, 1) else INVALID_VALUE

    def _cuMemGetHandleForAddressRange(
        self, out: int, address: int, nbytes: int, kind: int, flags: int
    ) -> int:
        if address % 4096 or nbytes % 4096 or kind != 1 or not self.covers(address, nbytes):
            return INVALID_VALUE
        c_int.from_address(out).value = 77
        return SUCCESS

    def _cuFlushGPUDirectRDMAWrites(self, target: int, scope: int) -> int:
        return SUCCESS if (target, scope) == (0, 100) else INVALID_VALUE

    def _cuModuleLoadData(self, out: ctypes._Pointer, image: int) -> int:
        if ctypes.string_at(image, 4) != b"\x7fELF":
            return INVALID_VALUE
        return self._handle("module", out)

    def _cuModuleGetFunction(self, out: ctypes._Pointer, module: int, name: int) -> int:
        text = ctypes.string_at(name).decode()
        out[0] = 0x2000 + len(self._functions)
        self._functions[out[0]] = text
        return SUCCESS if text in PARAMETERS else 500

    def _cuModuleUnload(self, module: int) -> int:
        return self._drop("module")

    def _cuLaunchKernel(
        self, function: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int,
        stream: int, params: ctypes._Pointer, extra: object,
    ) -> int:  # fmt: skip
        if (gy, gz, by, bz, shared) != (1, 1, 1, 1, 0) or not 0 < bx <= 1024 or gx < 1:
            return INVALID_VALUE
        name = self._functions[function]
        kept = [ctypes.string_at(params[i], size) for i, size in enumerate(PARAMETERS[name])]

        def task() -> int:
            if self.shim is None:
                return SUCCESS
            raw = [ctypes.create_string_buffer(value, len(value)) for value in kept]
            pointers = (c_void_p * len(raw))(*(ctypes.addressof(r) for r in raw))
            return self.shim.shim_launch(name.encode(), gx, bx, pointers)

        return self.work(task)

    def _cuStreamCreate(self, out: ctypes._Pointer, flags: int) -> int:
        return self._handle("stream", out)

    def _cuStreamSynchronize(self, stream: int) -> int:
        if self._capturing is not None:
            return CAPTURE_UNSUPPORTED
        return self._error

    def _cuStreamDestroy(self, stream: int) -> int:
        return self._drop("stream")

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> int:
        if self._capturing is not None or mode != 1:
            return INVALID_VALUE
        self._capturing = []
        return SUCCESS

    def _cuStreamEndCapture(self, stream: int, out: ctypes._Pointer) -> int:
        if self._capturing is None:
            return INVALID_VALUE
        tasks, self._capturing = self._capturing, None
        self._handle("graph", out)
        self._graphs[out[0]] = tasks
        return SUCCESS

    def _cuGraphInstantiateWithFlags(self, out: ctypes._Pointer, graph: int, flags: int) -> int:
        self._handle("executable", out)
        self._graphs[out[0]] = self._graphs[graph]
        return SUCCESS

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:
        for task in self._graphs[executable]:
            self._error = self._error or task()
        return SUCCESS

    def _cuGraphExecDestroy(self, executable: int) -> int:
        return self._drop("executable")

    def _cuGraphDestroy(self, graph: int) -> int:
        return self._drop("graph")
