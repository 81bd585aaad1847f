"""Memory, streams, events and CUDA graphs, using only the driver's library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mwa_export.errors import RuntimeUnavailableError
from mwa_export.trt.device import Device, DeviceMemoryError, Driver

_NON_BLOCKING, _NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: ignores what other threads do
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of one tensor on the GPU, and its page-locked counterpart on the host."""

    device: int  # address
    host: int  # address
    nbytes: int

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """View the start of the host memory as an array."""
        raw = (ctypes.c_uint8 * (prod(shape) * dtype.itemsize)).from_address(self.host)
        array: NDArray[Any] = np.ndarray(shape, dtype, memoryview(raw))
        return array


class Gpu:
    """Allocations on one GPU, all released by `close`."""

    def __init__(self, driver: Driver, device: Device) -> None:
        self._driver, self._device = driver, device
        self._allocated: list[tuple[str, Any]] = []  # function that frees, and its argument
        self._graphs: list[ctypes.c_void_p] = []

    def make_current(self) -> None:
        """Make the GPU current for the calling thread, as CUDA keeps this per thread."""
        self._driver.call("cuCtxSetCurrent", ctypes.c_void_p(self._device.context))

    def buffers(self, sizes: Mapping[str, int]) -> dict[str, Buffer]:
        """Allocate buffers. ``sizes``: name -> bytes.

        Raises:
            DeviceMemoryError: the GPU does not have enough memory.
        """
        try:
            return {name: self._buffer(max(1, size)) for name, size in sizes.items()}
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"{self._device.name}: inputs and outputs need {sum(sizes.values()) / GIB:.2f} GiB "
                f"more memory; {self._device.free / GIB:.1f} of "
                f"{self._device.memory / GIB:.1f} GiB were free at the start. Stop other programs "
                "that use it, or build engines for smaller batches: `mwa-export trt` with `batch`"
            ) from error

    def stream(self) -> ctypes.c_void_p:
        """Create a stream that does not wait for the default stream."""
        return self._made("cuStreamCreate", "cuStreamDestroy_v2", _NON_BLOCKING)

    def event(self, *, timed: bool = False) -> ctypes.c_void_p:
        """Create an event; until it is recorded, waiting for it returns immediately."""
        return self._made("cuEventCreate", "cuEventDestroy_v2", 0 if timed else _NO_TIMING)

    def _made(self, create: str, destroy: str, flags: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._driver.call(create, ctypes.byref(made), ctypes.c_uint(flags))
        self._allocated.append((destroy, made))
        return made

    def milliseconds(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Time on the GPU between two timed events. Waits for the second."""
        self.finish(end)
        found = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(found), start, end)
        return found.value

    def capture(self, stream: ctypes.c_void_p, work: Callable[[], bool]) -> ctypes.c_void_p | None:
        """Record what ``work`` enqueues on a stream as a CUDA graph, without running it.

        Returns None if it cannot be recorded; nothing was run in that case.
        """
        recorded, made = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._driver.call("cuStreamBeginCapture_v2", stream, ctypes.c_uint(_THREAD_LOCAL))
            try:
                complete = work()
            finally:
                self._driver.call("cuStreamEndCapture", stream, ctypes.byref(recorded))
            try:
                if not complete:
                    return None
                self._driver.call(
                    "cuGraphInstantiateWithFlags", ctypes.byref(made), recorded, ctypes.c_uint64(0)
                )
            finally:
                self._driver.call("cuGraphDestroy", recorded)
        except RuntimeUnavailableError:
            return None
        self._graphs.append(made)
        return made

    def launch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        """Run a recorded graph, on the buffers with which it was recorded."""
        self._driver.call("cuGraphLaunch", graph, stream)

    def discard(self, graph: ctypes.c_void_p) -> None:
        """Release a graph, which must not be running."""
        self._graphs.remove(graph)
        self._driver.call("cuGraphExecDestroy", graph)

    def record(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        """Record an event after the work enqueued on the stream so far."""
        self._driver.call("cuEventRecord", event, stream)

    def wait(self, stream: ctypes.c_void_p, event: ctypes.c_void_p) -> None:
        """Make later work of the stream wait for an event."""
        self._driver.call("cuStreamWaitEvent", stream, event, ctypes.c_uint(0))

    def finish(self, event: ctypes.c_void_p) -> None:
        """Block until an event has happened."""
        self._driver.call("cuEventSynchronize", event)

    def upload(self, buffer: Buffer, nbytes: int, stream: ctypes.c_void_p) -> None:
        """Copy the start of the host memory to the GPU."""
        device, host = ctypes.c_uint64(buffer.device), ctypes.c_void_p(buffer.host)
        self._driver.call("cuMemcpyHtoDAsync_v2", device, host, ctypes.c_size_t(nbytes), stream)

    def download(self, buffer: Buffer, nbytes: int, stream: ctypes.c_void_p) -> None:
        """Copy the start of the GPU's memory to the host."""
        device, host = ctypes.c_uint64(buffer.device), ctypes.c_void_p(buffer.host)
        self._driver.call("cuMemcpyDtoHAsync_v2", host, device, ctypes.c_size_t(nbytes), stream)

    def close(self) -> None:
        """Release everything, newest first. Nothing may be running."""
        if self._allocated:
            self.make_current()
        while self._graphs:
            self.discard(self._graphs[-1])
        while self._allocated:
            name, what = self._allocated.pop()
            self._driver.call(name, what)

    def _buffer(self, nbytes: int) -> Buffer:
        device, host = ctypes.c_uint64(), ctypes.c_void_p()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(nbytes))
        self._allocated.append(("cuMemFree_v2", device))
        self._driver.call("cuMemAllocHost_v2", ctypes.byref(host), ctypes.c_size_t(nbytes))
        self._allocated.append(("cuMemFreeHost", host))
        return Buffer(device.value, host.value or 0, nbytes)
