"""TensorRT's API as in `fake_trt`, computing in a real CUDA stream: for GPUs on which no TensorRT
is installed.

An execution is three things in the stream that it is given, eager or captured: inputs to the host,
ONNX Runtime in a host function, outputs to the device. Everything of the runner is real then, but
the library that makes kernels.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from tests import fake_trt
from tests.fake_trt import TYPES, FakeTrt
from trimvla.runtime.backends.tensorrt.cuda import load_runtime

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class StreamTrt(FakeTrt):
    """The module. `failures` are what went wrong in host functions, which cannot raise."""

    def __init__(self, version: str = "10.3.0") -> None:
        super().__init__(None, version)  # pyright: ignore[reportArgumentType] - no fake device below
        self.failures: list[Exception] = []

    def Runtime(self, logger: FakeTrt) -> Runtime:  # noqa: N802
        return Runtime(self)


class Runtime(fake_trt.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> fake_trt.Engine | None:
        engine = super().deserialize_cuda_engine(serialized_engine)
        if engine is not None:
            engine.__class__ = Engine
        return engine


class Engine(fake_trt.Engine):
    def create_execution_context(
        self, strategy: fake_trt.ExecutionContextAllocationStrategy
    ) -> fake_trt.Context:
        context = Context(self._trt, self, strategy)
        self._trt.contexts.append(context)
        return context


class Context(fake_trt.Context):
    _kept: tuple[Any, ...] = ()  # what the stream, or a graph, will come back to

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._allowed("execute_async_v3", not self.infer_shapes()):
            return False
        api = load_runtime()
        engine = self._engine
        staged = {name: self._stage(api, name) for name in engine._all}

        def copy(target: int, source: int, size: int) -> None:
            _must(
                api.cudaMemcpyAsync(
                    target, source, size, api.cudaMemcpyKind.cudaMemcpyDefault, stream_handle
                )
            )

        def compute(_: int | None) -> None:
            try:
                inputs = {name: staged[name].copy() for name in engine._inputs}
                for name, value in zip(
                    engine._outputs, engine._session.run(None, inputs), strict=True
                ):
                    staged[name][...] = np.asarray(value)
            except Exception as error:  # in the driver's thread nobody would hear of it
                self._trt.failures.append(error)  # pyright: ignore[reportAttributeAccessIssue]

        function = HOST_FUNCTION(compute)
        for name in engine._inputs:
            copy(staged[name].ctypes.data, self.addresses[name], staged[name].nbytes)
        _must(
            api.cudaLaunchHostFunc(
                stream_handle, api.cudaHostFn_t(ctypes.cast(function, ctypes.c_void_p).value), 0
            )
        )
        for name in engine._outputs:
            copy(self.addresses[name], staged[name].ctypes.data, staged[name].nbytes)
        self._kept = (*self._kept, function, staged)
        self.executions += 1
        return True

    def _stage(self, api: Any, name: str) -> np.ndarray:
        """Pinned memory for a tensor, as an array."""
        dtype = np.dtype(TYPES[self._engine._all[name].type][1])
        shape = self._shape(name)
        size = math.prod(shape) * dtype.itemsize
        address = int(_must(api.cudaHostAlloc(size, api.cudaHostAllocMapped)))
        return (
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
            .view(dtype)
            .reshape(shape)
        )


def _must(result: tuple[Any, ...]) -> Any:
    """What a call returned beside its status."""
    status, *values = result
    assert int(status) == 0, status
    return values[0] if values else None
