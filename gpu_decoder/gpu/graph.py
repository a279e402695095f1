"""A stream, and work that is captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from ctypes import byref, c_void_p
from typing import Final

from gpu_decoder.gpu.driver import Driver

WARM_UPS: Final = 3
"""Plain runs before a capture: lazy loading and first-use allocations may not happen inside it."""

_NON_BLOCKING: Final = 1
_THREAD_LOCAL: Final = 1
NUMBERS: Final = {
    "CU_STREAM_NON_BLOCKING": _NON_BLOCKING,
    "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": _THREAD_LOCAL,
}
"""Names in cuda.h of the numbers above."""


class Stream:
    """Work in order.

    Attributes:
        handle: ``CUstream``, as TensorRT takes it too.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        stream = c_void_p()
        driver.call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self.handle = stream.value or 0

    def synchronize(self) -> None:
        """Wait until all of it is done; failures of the work are raised here."""
        self._driver.call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Destroy it."""
        self._driver.call("cuStreamDestroy_v2", self.handle)


class CapturedGraph:
    """Work on fixed addresses, captured after a warm-up.

    Args:
        driver: the device.
        stream: where the work goes.
        enqueue: puts the work on the stream, the same each time.
        check_warm: called between warm-up and capture; raises if the work cannot be captured.

    Raises:
        DriverError: a call failed; no capture stays open and nothing stays allocated.
    """

    def __init__(
        self,
        driver: Driver,
        stream: Stream,
        enqueue: Callable[[], None],
        check_warm: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver = driver
        self._stream = stream
        for _ in range(WARM_UPS):
            enqueue()
        stream.synchronize()
        check_warm()
        graph, executable = c_void_p(), c_void_p()
        with ExitStack() as undo:
            driver.call("cuStreamBeginCapture_v2", stream.handle, _THREAD_LOCAL)
            try:
                enqueue()
            except BaseException:
                self._abandon()
                raise
            driver.call("cuStreamEndCapture", stream.handle, byref(graph))
            undo.callback(driver.call, "cuGraphDestroy", graph)
            driver.call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
            undo.callback(driver.call, "cuGraphExecDestroy", executable)
            self._executable = executable
            self._undo = undo.pop_all()

    def run(self) -> None:
        """Replay the work and wait for it."""
        self._driver.call("cuGraphLaunch", self._executable, self._stream.handle)
        self._stream.synchronize()

    def close(self) -> None:
        """Destroy it."""
        self._undo.close()

    def _abandon(self) -> None:
        """End a capture that failed, so that the stream can be destroyed."""
        graph = c_void_p()
        try:
            self._driver.call("cuStreamEndCapture", self._stream.handle, byref(graph))
        except RuntimeError:
            return  # the failure that led here is the one to report
        if graph.value:
            self._driver.call("cuGraphDestroy", graph)
