"""CUDA's runtime API as `cuda.bindings.runtime` gives it, without a GPU: as strict as the
documentation, and as lazy.

Device addresses are no addresses of this process, so whoever reads device memory from the host dies
at once. Fresh memory holds rubbish. Work in a stream happens when somebody waits for it, never
before; captured work when its graph is launched. What the API forbids comes back as its error code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

RUBBISH = 0xCC
ALIGNMENT = 256
FIRST_ADDRESS = 0x7F_0000_0000_0000

Work = Callable[[], None]
Status = IntEnum(
    "cudaError_t",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorNoDevice": 100,
        "cudaErrorNotReady": 600,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorStreamCaptureUnsupported": 900,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)
STICKY = frozenset(
    {
        "cudaMemcpyAsync",
        "cudaGraphLaunch",
        "cudaStreamSynchronize",
        "cudaEventRecord",
        "cudaFree",
        "cudaFreeHost",
    }
)
OK = Status["cudaSuccess"]
INVALID = Status["cudaErrorInvalidValue"]
NOT_READY = Status["cudaErrorNotReady"]
UNSUPPORTED = Status["cudaErrorStreamCaptureUnsupported"]
INVALIDATED = Status["cudaErrorStreamCaptureInvalidated"]


@dataclass
class Stream:
    number: int
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    broken: bool = False

    def __int__(self) -> int:
        return self.number

    def add(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


@dataclass
class Event:
    passed_at: int | None = None


class FakeCuda:
    """The module. `calls` counts what was called; `live` is what was made and not freed."""

    cudaError_t = Status  # noqa: N815
    cudaDeviceAttr = IntEnum("cudaDeviceAttr", {"cudaDevAttrIntegrated": 18})  # noqa: N815
    cudaMemcpyKind = IntEnum(  # noqa: N815
        "cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2}
    )
    cudaStreamCaptureMode = IntEnum(  # noqa: N815
        "cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1}
    )
    cudaHostAllocMapped = 2  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaDeviceScheduleBlockingSync = 4  # noqa: N815

    def __init__(self, *, integrated: bool = False, devices: int = 1) -> None:
        self.integrated = integrated
        self.devices = devices
        self.calls: Counter[str] = Counter()
        self.live: dict[int, object] = {}
        self._device: dict[int, np.ndarray] = {}
        self._host: dict[int, np.ndarray] = {}
        self._streams: dict[int, Stream] = {}
        self._next = FIRST_ADDRESS
        self._time = 0
        self.lost = False
        """Whether the context is: as on a device, every later call then gives the same error."""

    def __getattribute__(self, name: str):
        if name.startswith("cuda"):
            object.__getattribute__(self, "calls")[name] += 1
            if object.__getattribute__(self, "lost") and name in STICKY:
                return lambda *arguments: (Status["cudaErrorIllegalAddress"], None)
        return object.__getattribute__(self, name)

    # what the fake TensorRT needs

    def memory(self, address: int, size: int) -> np.ndarray | None:
        """uint8[size] of the device at this address, if all of it lies in one live allocation."""
        for start, data in self._device.items():
            if start <= address and address + size <= start + data.size:
                return data[address - start :][:size]
        return None

    def stream(self, handle: int) -> Stream:
        return self._streams[handle]

    # the API

    def cudaGetErrorString(self, status):  # noqa: N802
        return OK, f"words for {status.name}".encode()

    def cudaGetDeviceCount(self):  # noqa: N802
        return (OK, self.devices) if self.devices else (Status["cudaErrorNoDevice"], None)

    def cudaSetDeviceFlags(self, flags):  # noqa: N802
        return (OK if flags == self.cudaDeviceScheduleBlockingSync else INVALID,)

    def cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        known = attribute is self.cudaDeviceAttr.cudaDevAttrIntegrated and device < self.devices
        return (OK, int(self.integrated)) if known else (INVALID, None)

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        stream = Stream(len(self._streams) + 1)
        self._streams[stream.number] = self.live[id(stream)] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream):  # noqa: N802
        return self._freed(id(stream))

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        if stream.captured is not None:
            stream.broken = True
            return (UNSUPPORTED,)
        while stream.queue:
            stream.queue.pop(0)()
        return (OK,)

    def cudaMalloc(self, size):  # noqa: N802
        if any(stream.captured is not None for stream in self._streams.values()):
            return UNSUPPORTED, None
        address = self._place(np.full(size, RUBBISH, np.uint8))
        self.live[address] = "device"
        return OK, address

    def cudaFree(self, address):  # noqa: N802
        return self._freed(address, self._device)

    def cudaHostAlloc(self, size, flags):  # noqa: N802
        data = np.full(size, RUBBISH, np.uint8)
        address = data.ctypes.data
        self._host[address] = data
        self.live[address] = "host"
        if flags & self.cudaHostAllocMapped:
            self._place(data)
        return OK, address

    def cudaFreeHost(self, address):  # noqa: N802
        return self._freed(address, self._host)

    def cudaHostGetDevicePointer(self, address, flags):  # noqa: N802
        data = self._host.get(address)
        places = [place for place, mapped in self._device.items() if mapped is data]
        return (OK, places[0]) if data is not None and places and flags == 0 else (INVALID, None)

    def cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        memory = self.memory(address, size)
        if memory is None:
            return (INVALID,)
        stream.add(lambda: memory.fill(value))
        return (OK,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        up = kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice
        device, host = (target, source) if up else (source, target)
        memory = self.memory(device, size)
        pinned = self._host.get(host)
        if memory is None or pinned is None or size > pinned.size:
            return (INVALID,)
        to, of = (memory, pinned[:size]) if up else (pinned[:size], memory)
        stream.add(lambda: np.copyto(to, of))
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        if stream.captured is not None:
            return (INVALID,)
        stream.captured = []
        stream.broken = False
        return (OK,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        work = stream.captured
        stream.captured = None
        if work is None or stream.broken:
            return INVALIDATED, None
        graph = SimpleNamespace(work=work)
        self.live[id(graph)] = graph
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        executable = SimpleNamespace(work=list(graph.work))
        self.live[id(executable)] = executable
        return OK, executable

    def cudaGraphDestroy(self, graph):  # noqa: N802
        return self._freed(id(graph))

    def cudaGraphExecDestroy(self, executable):  # noqa: N802
        return self._freed(id(executable))

    def cudaGraphLaunch(self, executable, stream):  # noqa: N802
        for work in executable.work:
            stream.add(work)
        return (OK,)

    def cudaEventCreate(self):  # noqa: N802
        event = Event()
        self.live[id(event)] = event
        return OK, event

    def cudaEventDestroy(self, event):  # noqa: N802
        return self._freed(id(event))

    def cudaEventRecord(self, event, stream):  # noqa: N802
        event.passed_at = None
        stream.add(lambda: self._pass(event))
        return (OK,)

    def cudaEventElapsedTime(self, start, end):  # noqa: N802
        if start.passed_at is None or end.passed_at is None:
            return NOT_READY, None
        return OK, float(end.passed_at - start.passed_at)

    def _pass(self, event: Event) -> None:
        self._time += 1
        event.passed_at = self._time

    def _place(self, data: np.ndarray) -> int:
        address = self._next
        self._device[address] = data
        self._next += -(-data.size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        return address

    def _freed(self, key: int, table: dict[int, np.ndarray] | None = None):
        if self.live.pop(key, None) is None:
            return (INVALID,)
        data = None if table is None else table.pop(key, None)
        for place in [place for place, mapped in self._device.items() if mapped is data]:
            del self._device[place]
        return (OK,)
