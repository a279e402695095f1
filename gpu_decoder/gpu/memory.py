"""Memory on and for the device: fixed buffers, and what a network card may write to.

Receive memory is an allocation of its own, in whole granules of the device (the CUDA virtual memory
calls): neither a pool nor another buffer shares its pages, so registering it as a dma-buf exposes
nothing else.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Final

import numpy as np

from gpu_decoder.gpu.driver import (
    Attribute,
    Driver,
    MemAccessDesc,
    MemAllocationProp,
    MemLocation,
)
from gpu_decoder.protocol import U8Array
from gpu_decoder.runtime.protocol import RuntimeUnavailable

_PINNED: Final = 1
_ON_DEVICE: Final = 1
_READ_WRITE: Final = 3
_GRANULARITY_MINIMUM: Final = 0
_DMA_BUF_FD: Final = 1
_ORDERED_FOR_OWNER: Final = 100
_FLUSH_BY_HOST: Final = 1
_CURRENT_CONTEXT: Final = 0
_TO_OWNER: Final = 100
NUMBERS: Final = {
    "CU_MEM_ALLOCATION_TYPE_PINNED": _PINNED,
    "CU_MEM_LOCATION_TYPE_DEVICE": _ON_DEVICE,
    "CU_MEM_ACCESS_FLAGS_PROT_READWRITE": _READ_WRITE,
    "CU_MEM_ALLOC_GRANULARITY_MINIMUM": _GRANULARITY_MINIMUM,
    "CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD": _DMA_BUF_FD,
    "CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER": _ORDERED_FOR_OWNER,
    "CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST": _FLUSH_BY_HOST,
    "CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX": _CURRENT_CONTEXT,
    "CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER": _TO_OWNER,
}
"""Names in cuda.h of the numbers above."""


class DeviceBuffer:
    """Device memory at an address that does not change.

    Attributes:
        address: of the first byte, on the device.
        nbytes: its length.
    """

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver = driver
        self.nbytes = nbytes
        address = c_uint64()
        driver.call("cuMemAlloc_v2", byref(address), nbytes)
        self.address = address.value

    def close(self) -> None:
        """Free it."""
        self._driver.call("cuMemFree_v2", self.address)


class PinnedBuffer:
    """Page-locked host memory: copies from and to it can be part of a captured graph.

    Attributes:
        address: of the first byte, on the host.
        array: uint8 [nbytes] view of it, valid until it is closed.
    """

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self._driver = driver
        address = c_void_p()
        driver.call("cuMemHostAlloc", byref(address), nbytes, 0)
        self.address = address.value or 0
        raw = (ctypes.c_uint8 * nbytes).from_address(self.address)
        self.array: U8Array = np.frombuffer(memoryview(raw), dtype=np.uint8)
        self.array[:] = 0

    def close(self) -> None:
        """Free it."""
        self._driver.call("cuMemFreeHost", self.address)


class ReceiveMemory:
    """Memory that a network card writes to and kernels read.

    Args:
        driver: the device.
        nbytes: least size; rounded up to whole granules of the device.

    Attributes:
        address: of the first byte, on the device; a multiple of the granule.
        nbytes: size, in whole granules.
        needs_flush: whether writes of the card must be flushed before a kernel reads them.

    Raises:
        RuntimeUnavailable: the device lacks a property this needs, or can neither order writes
            of a network card nor flush them.
        DriverError: a call failed; nothing stays allocated.
    """

    def __init__(self, driver: Driver, nbytes: int) -> None:
        if nbytes < 1:
            raise ValueError(f"{nbytes} bytes of receive memory, allowed: at least 1")
        driver.require(Attribute.VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)
        driver.require(Attribute.GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED)
        self._driver = driver
        self.needs_flush = _needs_flush(driver)
        kind = MemAllocationProp()
        kind.type = _PINNED
        kind.location = MemLocation(_ON_DEVICE, driver.ordinal)
        kind.allocFlags.gpuDirectRDMACapable = 1
        granule = c_size_t()
        driver.call(
            "cuMemGetAllocationGranularity", byref(granule), byref(kind), _GRANULARITY_MINIMUM
        )
        self.nbytes = -(-nbytes // granule.value) * granule.value
        handle, address = c_uint64(), c_uint64()
        with ExitStack() as undo:
            driver.call("cuMemCreate", byref(handle), self.nbytes, byref(kind), 0)
            undo.callback(driver.call, "cuMemRelease", handle)
            driver.call("cuMemAddressReserve", byref(address), self.nbytes, granule.value, 0, 0)
            self.address = address.value
            undo.callback(driver.call, "cuMemAddressFree", self.address, self.nbytes)
            driver.call("cuMemMap", self.address, self.nbytes, 0, handle, 0)
            undo.callback(driver.call, "cuMemUnmap", self.address, self.nbytes)
            access = MemAccessDesc(MemLocation(_ON_DEVICE, driver.ordinal), _READ_WRITE)
            driver.call("cuMemSetAccess", self.address, self.nbytes, byref(access), 1)
            self._undo = undo.pop_all()

    def dma_buf_fd(self) -> int:
        """File descriptor of the whole memory as a dma-buf, to register with a network card.

        The caller closes it (``os.close``) before the memory.

        Raises:
            RuntimeUnavailable: device or kernel driver without dma-buf support.
        """
        self._driver.require(Attribute.DMA_BUF_SUPPORTED)
        descriptor = c_int(-1)
        self._driver.call(
            "cuMemGetHandleForAddressRange",
            byref(descriptor), self.address, self.nbytes, _DMA_BUF_FD, 0,
        )  # fmt: skip
        return descriptor.value

    def make_writes_visible(self) -> None:
        """Order what the network card has written before kernels launched from now on."""
        if self.needs_flush:
            self._driver.call("cuFlushGPUDirectRDMAWrites", _CURRENT_CONTEXT, _TO_OWNER)

    def close(self) -> None:
        """Unmap and free it."""
        self._undo.close()


def _needs_flush(driver: Driver) -> bool:
    if driver.attribute(Attribute.GPU_DIRECT_RDMA_WRITES_ORDERING) >= _ORDERED_FOR_OWNER:
        return False
    if driver.attribute(Attribute.GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS) & _FLUSH_BY_HOST:
        return True
    raise RuntimeUnavailable(
        f"{driver.name} (driver {driver.version}) neither orders writes of a network card nor "
        "flushes them: what a kernel reads there would be undefined"
    )
