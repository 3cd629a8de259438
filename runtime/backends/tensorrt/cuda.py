"""The few CUDA calls that a runner needs, through cuda-python: one device, one stream, and all
memory that lies on it.

Written against `cuda.bindings.runtime`, whose calls used here are the same from 12.8 (JetPack 6) to
13.5; it is imported when a device is opened, and never before. Where CPU and GPU share one memory
(Jetson), host memory is mapped instead of copied. Every call is checked; what fails names the call
and CUDA's own reason. Knows no engine.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimvla.runtime.errors import BackendError, BackendUnavailableError

MODULE = "cuda.bindings.runtime"
# codes after which the context still works: invalid value, out of memory, not ready, and all of
# stream capture. What CUDA calls sticky, and whatever else there may be, ends the process: only
# another one gets a
# context that works.
OF_ONE_CALL = frozenset({1, 2, 600, *range(900, 910)})
INSTALL = (
    "pip install 'cuda-bindings>=12.8,<13' on JetPack 6 (CUDA 12), pip install 'cuda-bindings>=13'"
    " on JetPack 7 and wherever else the driver has CUDA 13"
)


@dataclass(frozen=True)
class HostMemory:
    """Pinned memory of the host: its bytes as uint8[n], and where the device sees it."""

    view: np.ndarray
    address: int
    on_device: int


class Graph:
    """Captured work; `Cuda.launch` runs it.

    It reads and writes the addresses that it was captured with.
    """

    def __init__(self, executable: Any) -> None:  # noqa: ANN401 - the library has no types
        self.executable = executable


def load_runtime() -> Any:  # noqa: ANN401 - the library has no types
    """CUDA's runtime API as a module; BackendError names what to install."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendError(f"cuda-python is not installed ({error}): {INSTALL}") from error


class Cuda:
    """The first GPU, with one stream. All that is made through it lives until `close`."""

    def __init__(self) -> None:
        """Raises BackendError: cuda-python is missing, or there is no GPU, or no driver for this
        CUDA.
        """
        self._api = load_runtime()
        self._undo: list[tuple[str, tuple[Any, ...]]] = []
        self._lost = False
        try:
            count = self.call("cudaGetDeviceCount")
        # some versions raise where there is no driver at all
        except (BackendError, RuntimeError) as error:
            raise BackendError(
                f"no GPU here that CUDA can use, and engines run on one only ({error})"
            ) from error
        if not count:
            raise BackendError("no GPU here, and engines run on one only (cudaGetDeviceCount: 0)")
        # waiting sleeps: cores are few
        self.call("cudaSetDeviceFlags", self._api.cudaDeviceScheduleBlockingSync)
        self.integrated = bool(
            self.call("cudaDeviceGetAttribute", self._api.cudaDeviceAttr.cudaDevAttrIntegrated, 0)
        )
        self._stream = self._made(
            "cudaStreamCreateWithFlags", "cudaStreamDestroy", self._api.cudaStreamNonBlocking
        )

    @property
    def stream(self) -> int:
        """The stream's handle, as other libraries take it."""
        return int(self._stream)

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - the library has no types
        """One call of the runtime API: what it returns beside its status.

        Raises BackendError where that is not success, BackendUnavailableError where no later call
        can have any.
        """
        status, *values = getattr(self._api, name)(*arguments)
        if int(status):
            _, reason = self._api.cudaGetErrorString(status)
            text = f"{name}: {reason.decode()} ({getattr(status, 'name', status)})"
            self._lost = self._lost or int(status) not in OF_ONE_CALL
            raise BackendUnavailableError(text) if self._lost else BackendError(text)
        return values[0] if values else None

    def device_memory(self, size: int) -> int:
        """The address of so many bytes on the device, set to zero."""
        address = self._made("cudaMalloc", "cudaFree", size)
        self.call("cudaMemsetAsync", address, 0, size, self._stream)
        return int(address)

    def host_memory(self, size: int) -> HostMemory:
        """So many pinned bytes, set to zero, which the device can read and write where they are."""
        address = int(
            self._made("cudaHostAlloc", "cudaFreeHost", size, self._api.cudaHostAllocMapped)
        )
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        view[:] = 0
        return HostMemory(view, address, int(self.call("cudaHostGetDevicePointer", address, 0)))

    def upload(self, target: int, source: HostMemory, size: int) -> None:
        """Copy to the device, in the stream's order."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", target, source.address, size, kind, self._stream)

    def download(self, target: HostMemory, source: int, size: int) -> None:
        """Copy from the device, in the stream's order."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", target.address, source, size, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self.call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts into the stream, as a graph; nothing of it is executed."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(self._stream)  # its own complaint would hide the reason
            raise
        graph = self.call("cudaStreamEndCapture", self._stream)
        executable = self._made("cudaGraphInstantiate", "cudaGraphExecDestroy", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return Graph(executable)

    def launch(self, graph: Graph) -> None:
        """Execute captured work, in the stream's order."""
        self.call("cudaGraphLaunch", graph.executable, self._stream)

    def event(self) -> Any:  # noqa: ANN401 - the library has no types
        """A mark in the stream, to be recorded."""
        return self._made("cudaEventCreate", "cudaEventDestroy")

    def record(self, event: Any) -> None:  # noqa: ANN401 - the library has no types
        """Put the mark here."""
        self.call("cudaEventRecord", event, self._stream)

    def milliseconds(self, start: Any, end: Any) -> float:  # noqa: ANN401 - the library has no types
        """Between two marks that the stream has passed."""
        return float(self.call("cudaEventElapsedTime", start, end))

    def settle(self) -> None:
        """Wait before something is freed; on a lost device there is nothing to wait for."""
        if not self._lost:
            self.synchronize()

    def close(self) -> None:
        """Wait, then free everything, newest first.

        A lost device's memory went with its context.
        """
        if self._lost:
            self._undo.clear()
        if self._undo:
            self.synchronize()
        while self._undo:
            name, arguments = self._undo.pop()
            self.call(name, *arguments)

    def _made(self, name: str, undo: str, *arguments: object) -> Any:  # noqa: ANN401 - the library has no types
        """Call `name`, and remember that `close` calls `undo` on its result."""
        made = self.call(name, *arguments)
        self._undo.append((undo, (made,)))
        return made
