"""TensorRT's runtime as its Python API gives it, over `fake_cuda`: an engine is a note of a graph
and its profiles.

Engines compute through ONNX Runtime, on fake device memory, when the stream gets there. What the
documentation asks of a caller is asked here: shapes within the profile, every address set and large
enough, scratch memory where the context has none of its own, one execution before a capture. Names
are those of the real API; test_trt_runner.py compares them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tests.fake_cuda import ALIGNMENT, FakeCuda
from trimvla.runtime.backends.tensorrt.library import TrtLibrary

SCRATCH = 1000
DataType = IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT32": 3, "UINT8": 5, "INT64": 8})
TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
}


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


def serialised(model: Path, profiles: Sequence[dict[str, tuple[int, ...]]]) -> bytes:
    """An engine of this graph; one dict of input shapes a profile."""
    return json.dumps({"engine of": str(model), "profiles": profiles}).encode()


class FakeTrt:
    """The module. `contexts` are all that were made; `refuse` names a call of theirs that fails."""

    DataType, TensorIOMode, TensorLocation = DataType, TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, cuda: FakeCuda, version: str = "10.3.0") -> None:
        self.cuda = cuda
        self.__version__ = version
        self.complaints: deque[str] = deque(maxlen=20)
        self.contexts: list[Context] = []
        self.refuse = ""

    def library(self, backend: str = "tensorrt") -> TrtLibrary:
        return TrtLibrary(backend, self, self.__version__, self, self.complaints)

    def Runtime(self, logger: FakeTrt) -> Runtime:  # noqa: N802
        return Runtime(self)


class Runtime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, serialized_engine) -> Engine | None:
        try:
            note = json.loads(memoryview(serialized_engine).tobytes())
        except json.JSONDecodeError:
            self._trt.complaints.append("magicTag does not match")
            return None
        return Engine(self._trt, Path(note["engine of"]), note["profiles"])


class Engine:
    def __init__(self, trt: FakeTrt, model: Path, profiles: list[dict[str, list[int]]]) -> None:
        self._trt = trt
        self._profiles = profiles
        self._session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}
        self._all = {**self._inputs, **self._outputs}
        self._executed = False

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._profiles))

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self._all[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(axis, str) else axis for axis in self._all[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(self._profiles[profile_index][name])] * 3

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context:
        context = Context(self._trt, self, strategy)
        self._trt.contexts.append(context)
        return context


class Context:
    def __init__(
        self, trt: FakeTrt, engine: Engine, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._own_memory = strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        self._profile = 0
        self._memory = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.executions = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory, size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._shapes.clear()
        self._profile = profile_index
        return self._allowed(
            "set_optimization_profile_async", profile_index < self._engine.num_optimization_profiles
        )

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        dynamic = -1 in self._engine.get_tensor_shape(name)
        want = (
            self._engine.get_tensor_profile_shape(name, self._profile)[2]
            if dynamic
            else self._shape(name)
        )
        return self._allowed("set_input_shape", tuple(shape) == tuple(want))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self._allowed(
            "set_tensor_address", name in self._engine._all and memory % ALIGNMENT == 0
        )

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if -1 in self._shape(name)]

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self._trt.cuda.stream(stream_handle)
        first = not self._engine._executed
        buffers = {name: self._buffer(name) for name in self._engine._all}
        scratch = self._trt.cuda.memory(*self._memory)
        fine = (
            not self.infer_shapes()
            and all(buffer is not None for buffer in buffers.values())
            and (self._own_memory or (scratch is not None and scratch.size >= SCRATCH))
            and not (first and stream.captured is not None)
        )
        if not self._allowed("execute_async_v3", fine):
            return False
        self._engine._executed = True
        self.executions += 1
        stream.add(lambda: self._compute(buffers, scratch))
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, self._engine.get_tensor_shape(name))

    def _buffer(self, name: str) -> np.ndarray | None:
        """The tensor, as a view of the device's memory."""
        shape = self._shape(name)
        dtype = np.dtype(TYPES[self._engine._all[name].type][1])
        if -1 in shape or name not in self.addresses:
            return None
        raw = self._trt.cuda.memory(self.addresses[name], int(np.prod(shape)) * dtype.itemsize)
        return None if raw is None else raw.view(dtype).reshape(shape)

    def _compute(self, buffers: dict[str, np.ndarray | None], scratch: np.ndarray | None) -> None:
        if scratch is not None:
            scratch.fill(0xEE)  # it is nobody else's now
        inputs = {name: np.array(buffers[name]) for name in self._engine._inputs}
        for name, value in zip(
            self._engine._outputs, self._engine._session.run(None, inputs), strict=True
        ):
            np.copyto(buffers[name], value)  # pyright: ignore[reportArgumentType]

    def _allowed(self, call: str, fine: bool) -> bool:
        if fine and self._trt.refuse != call:
            return True
        self._trt.complaints.append(f"API usage error in {call}")
        return False
