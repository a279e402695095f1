"""The CUDA driver through ctypes: every call declared once, every result checked by name.

The driver API and not CuPy: it needs no package, a test can stand in for it call by call, and
receive memory that a network card writes to needs these calls anyway. TensorRT works on the
device's primary context, so that is the one used here. One worker process drives one device from
one thread.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Self

from gpu_decoder.runtime.protocol import RuntimeUnavailable

LIBRARY: Final = "libcuda.so.1"


class Attribute(IntEnum):
    """Device attributes that are asked for (values: ``CUdevice_attribute`` of cuda.h)."""

    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102
    GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED = 110
    GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS = 117
    GPU_DIRECT_RDMA_WRITES_ORDERING = 118
    DMA_BUF_SUPPORTED = 124


class MemLocation(Structure):
    """``CUmemLocation``."""

    _fields_ = (("type", c_int), ("id", c_int))


class _AllocFlags(Structure):
    _fields_ = (
        ("compressionType", ctypes.c_ubyte),
        ("gpuDirectRDMACapable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class MemAllocationProp(Structure):
    """``CUmemAllocationProp``."""

    _fields_ = (
        ("type", c_int),
        ("requestedHandleTypes", c_int),
        ("location", MemLocation),
        ("win32HandleMetaData", c_void_p),
        ("allocFlags", _AllocFlags),
    )


class MemAccessDesc(Structure):
    """``CUmemAccessDesc``."""

    _fields_ = (("location", MemLocation), ("flags", c_int))


CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, ctypes.c_ubyte, c_size_t, c_void_p),
    "cuMemGetAllocationGranularity": (POINTER(c_size_t), POINTER(MemAllocationProp), c_int),
    "cuMemCreate": (POINTER(c_uint64), c_size_t, POINTER(MemAllocationProp), c_uint64),
    "cuMemRelease": (c_uint64,),
    "cuMemAddressReserve": (POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, POINTER(MemAccessDesc), c_size_t),
    "cuMemGetHandleForAddressRange": (c_void_p, c_uint64, c_size_t, c_int, c_uint64),
    "cuFlushGPUDirectRDMAWrites": (c_int, c_int),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuLaunchKernel": (
        c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)
    ),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}  # fmt: skip
"""Exported name of each driver call in use -> types of its arguments (cuda.h of CUDA 13.5)."""


class DriverError(RuntimeError):
    """A driver call failed.

    Attributes:
        call: exported name.
        code: ``CUresult``.
    """

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call} failed: {name} ({code})")
        self.call = call
        self.code = code


class Driver:
    """One device, its primary context current in this thread.

    Args:
        ordinal: number of the device among the visible ones.
        library: stands in for ``libcuda`` in tests.

    Raises:
        RuntimeUnavailable: no driver, a driver without one of ``CALLS``, or no such device.
        DriverError: another call failed.
    """

    def __init__(self, ordinal: int = 0, library: object = None) -> None:
        self._library: Any = _load() if library is None else library
        for name, types in CALLS.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise RuntimeUnavailable(
                    f"the NVIDIA driver has no {name}: install one of CUDA 12 or later"
                ) from None
            function.argtypes, function.restype = types, c_int
        number, version, context = c_int(), c_int(), c_void_p()
        try:
            self.call("cuInit", 0)
            self.call("cuDeviceGet", byref(number), ordinal)
        except DriverError as error:
            raise RuntimeUnavailable(f"no usable GPU {ordinal}: {error}") from error
        self.call("cuDriverGetVersion", byref(version))
        self.ordinal = number.value
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.call("cuDevicePrimaryCtxRetain", byref(context), self.ordinal)
        try:
            self.call("cuCtxSetCurrent", context)
            self.name = self._name()
            self.capability = (
                self.attribute(Attribute.COMPUTE_CAPABILITY_MAJOR),
                self.attribute(Attribute.COMPUTE_CAPABILITY_MINOR),
            )
        except DriverError:
            self.close()
            raise

    def call(self, name: str, *arguments: object) -> None:
        """Call the driver.

        Raises:
            DriverError: the result is not ``CUDA_SUCCESS``.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise DriverError(name, code, self._error_name(code))

    def attribute(self, attribute: Attribute) -> int:
        """Attribute of the device."""
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), int(attribute), self.ordinal)
        return value.value

    def require(self, attribute: Attribute) -> None:
        """Refuse a device without a property.

        Raises:
            RuntimeUnavailable: the attribute is 0.
        """
        if not self.attribute(attribute):
            raise RuntimeUnavailable(f"{self.name} (driver {self.version}): no {attribute.name}")

    def close(self) -> None:
        """Give the context back; whatever was made in it must be gone."""
        self.call("cuDevicePrimaryCtxRelease_v2", self.ordinal)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self.ordinal)
        return text.value.decode(errors="replace")

    def _error_name(self, code: int) -> str:
        text = c_char_p()
        if self._library.cuGetErrorName(code, byref(text)) or text.value is None:
            return "unknown CUresult"
        return text.value.decode(errors="replace")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise RuntimeUnavailable(
            f"no NVIDIA driver: {LIBRARY} cannot be loaded ({error}); "
            "install the driver of the GPU, or choose the backend ort_cpu or openvino"
        ) from error
