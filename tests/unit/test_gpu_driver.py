"""Driver, receive memory and graphs on a stand-in for libcuda: order of calls, named failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cuda_signatures
import numpy as np
import pytest
from stand_ins.fake_cuda import GRANULE, NO_DEVICE, OUT_OF_MEMORY, FakeCuda

from gpu_decoder.gpu import driver as driver_module
from gpu_decoder.gpu.driver import Attribute, Driver, DriverError
from gpu_decoder.gpu.graph import WARM_UPS, CapturedGraph, Stream
from gpu_decoder.gpu.memory import DeviceBuffer, PinnedBuffer, ReceiveMemory
from gpu_decoder.runtime.protocol import RuntimeUnavailable

RECORDED = Path(__file__).parents[1] / "data" / "cuda" / "signatures.json"
ORDERING = Attribute.GPU_DIRECT_RDMA_WRITES_ORDERING
FLUSH_OPTIONS = Attribute.GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS


def test_a_device_is_described_and_given_back() -> None:
    cuda = FakeCuda()
    with Driver(library=cuda) as driver:
        assert (driver.name, driver.capability, driver.version) == ("Fake GPU", (8, 9), "13.5")
        assert cuda.live["context"] == 1
    assert not +cuda.live


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LIBRARY", "libabsent.so.1")
    with pytest.raises(RuntimeUnavailable, match=r"no NVIDIA driver: libabsent.so.1 .* ort_cpu"):
        Driver()


def test_an_old_driver_and_a_missing_device_say_so() -> None:
    with pytest.raises(RuntimeUnavailable, match="no cuMemGetHandleForAddressRange: install"):
        Driver(library=FakeCuda(absent=("cuMemGetHandleForAddressRange",)))
    cuda = FakeCuda()
    cuda.fail["cuInit"] = NO_DEVICE
    with pytest.raises(RuntimeUnavailable, match=r"GPU 0: cuInit failed: CUDA_ERROR_NO_DEVICE \(1"):
        Driver(library=cuda)
    with pytest.raises(RuntimeUnavailable, match=r"GPU 3: cuDeviceGet failed: unknown CUresult"):
        Driver(3, FakeCuda())


def _receive(cuda: FakeCuda) -> None:
    with Driver(library=cuda) as driver:
        memory = ReceiveMemory(driver, 3 * GRANULE + 1)
        try:
            assert memory.dma_buf_fd() == 77
            memory.make_writes_visible()
        finally:
            memory.close()


def test_receive_memory_is_its_own_pages_and_exported_as_a_dma_buf() -> None:
    cuda = FakeCuda()
    with Driver(library=cuda) as driver:
        memory = ReceiveMemory(driver, 3 * GRANULE + 1)
        assert (memory.nbytes, memory.address % GRANULE) == (4 * GRANULE, 0)
        assert "cuMemAlloc_v2" not in cuda.calls, "no allocation that others could share"
        memory.close()
    made = [c for c in cuda.calls if c.startswith("cuMem")]
    assert made == [
        "cuMemGetAllocationGranularity", "cuMemCreate", "cuMemAddressReserve", "cuMemMap",
        "cuMemSetAccess", "cuMemUnmap", "cuMemAddressFree", "cuMemRelease",
    ]  # fmt: skip
    assert not +cuda.live


@pytest.mark.parametrize(
    ("ordering", "options", "flushes"),
    [(200, 0, 0), (100, 1, 0), (0, 1, 1), (0, 3, 1), (0, 2, None), (0, 0, None)],
)
def test_writes_are_flushed_only_where_the_device_does_not_order_them(
    ordering: int, options: int, flushes: int | None
) -> None:
    cuda = FakeCuda()
    cuda.attributes |= {ORDERING: ordering, FLUSH_OPTIONS: options}
    if flushes is None:
        with pytest.raises(RuntimeUnavailable, match=r"neither orders writes .* nor flushes"):
            _receive(cuda)
    else:
        _receive(cuda)
    assert cuda.calls.count("cuFlushGPUDirectRDMAWrites") == (flushes or 0)
    assert not +cuda.live


@pytest.mark.parametrize(
    "attribute",
    [
        Attribute.VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        Attribute.GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
        Attribute.DMA_BUF_SUPPORTED,
    ],
)
def test_a_device_without_a_property_is_named(attribute: Attribute) -> None:
    cuda = FakeCuda()
    cuda.attributes[attribute] = 0
    with pytest.raises(RuntimeUnavailable, match=rf"Fake GPU \(driver 13.5\): no {attribute.name}"):
        _receive(cuda)
    assert not +cuda.live


def _replay(cuda: FakeCuda) -> None:
    """Copy to the device, copy back, three times with other data."""
    with Driver(library=cuda) as driver:
        parts: list[Callable[[], None]] = []
        try:
            stream = Stream(driver)
            parts.append(stream.close)
            device = DeviceBuffer(driver, 16)
            parts.append(device.close)
            source, sink = PinnedBuffer(driver, 16), PinnedBuffer(driver, 16)
            parts += [source.close, sink.close]

            def enqueue() -> None:
                driver.call("cuMemcpyHtoDAsync_v2", device.address, source.address, 16, 0)
                driver.call("cuMemcpyDtoHAsync_v2", sink.address, device.address, 16, 0)

            graph = CapturedGraph(driver, stream, enqueue)
            parts.append(graph.close)
            for value in (1, 2, 3):
                source.array[:] = value
                graph.run()
                assert np.all(sink.array == value)
        finally:
            for close in reversed(parts):
                close()


def test_a_graph_is_captured_after_a_warm_up_and_replayed() -> None:
    cuda = FakeCuda()
    _replay(cuda)
    stream = [c for c in cuda.calls if c.startswith(("cuStream", "cuGraph", "cuMemcpyH"))]
    assert stream == [
        "cuStreamCreate", *["cuMemcpyHtoDAsync_v2"] * WARM_UPS, "cuStreamSynchronize",
        "cuStreamBeginCapture_v2", "cuMemcpyHtoDAsync_v2", "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags", *["cuGraphLaunch", "cuStreamSynchronize"] * 3,
        "cuGraphExecDestroy", "cuGraphDestroy", "cuStreamDestroy_v2",
    ]  # fmt: skip
    assert not +cuda.live


def _calls(scenario: Callable[[FakeCuda], None], **attributes: int) -> list[str]:
    cuda = FakeCuda()
    cuda.attributes |= {Attribute[name]: value for name, value in attributes.items()}
    scenario(cuda)
    frees = ("Destroy", "Free", "Release", "Unmap", "Unload")
    return sorted({c for c in cuda.calls if not any(f in c for f in frees)} - {"cuInit"})


FAILURES = [
    (scenario, call)
    for scenario in (_receive, _replay)
    for call in _calls(scenario, GPU_DIRECT_RDMA_WRITES_ORDERING=0)
    if call != "cuDeviceGet"
]


@pytest.mark.parametrize(("scenario", "call"), FAILURES)
def test_every_call_that_fails_is_named_and_nothing_stays_allocated(
    scenario: Callable[[FakeCuda], None], call: str
) -> None:
    cuda = FakeCuda()
    cuda.attributes[ORDERING] = 0
    cuda.fail[call] = OUT_OF_MEMORY
    with pytest.raises(
        DriverError, match=rf"{call} failed: CUDA_ERROR_OUT_OF_MEMORY \(2\)"
    ) as seen:
        scenario(cuda)
    assert (seen.value.call, seen.value.code) == (call, OUT_OF_MEMORY)
    assert not +cuda.live


def test_work_that_may_not_be_captured_fails_and_the_capture_is_ended() -> None:
    cuda = FakeCuda()
    with Driver(library=cuda) as driver:
        stream = Stream(driver)
        captured: list[DeviceBuffer] = []

        def enqueue() -> None:
            captured.append(DeviceBuffer(driver, 1))

        with pytest.raises(DriverError, match=r"cuMemAlloc_v2 failed: .*CAPTURE_UNSUPPORTED"):
            CapturedGraph(driver, stream, enqueue)
        stream.synchronize()  # not capturing any more
        for buffer in captured:
            buffer.close()
        stream.close()
    assert len(captured) == WARM_UPS
    assert not +cuda.live


def test_a_failure_on_the_device_is_raised_where_it_is_waited_for() -> None:
    cuda = FakeCuda()
    with Driver(library=cuda) as driver:
        stream = Stream(driver)
        driver.call("cuMemsetD8Async", 4096, 0, 16, stream.handle)
        with pytest.raises(DriverError, match=r"cuStreamSynchronize .*ILLEGAL_ADDRESS"):
            stream.synchronize()


def test_signatures_and_numbers_are_those_of_the_header() -> None:
    """The table of calls against what a compiler read from cuda.h (tests/data/cuda)."""
    recorded = json.loads(RECORDED.read_text())
    assert recorded["numbers"] == cuda_signatures.numbers()
    assert recorded["arguments"] == cuda_signatures.arguments()
