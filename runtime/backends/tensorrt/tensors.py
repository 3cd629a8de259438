"""The tensors of a bundle's stages in a device's memory: which there are, how large, and how they
get there and back.

Every name is one buffer at one address, as large as its largest prompt bucket needs, so that a
stage reads what the stage before it wrote. Where CPU and GPU share one memory, what crosses the
border of the stages lies in mapped host memory and is never copied. Knows CUDA through `cuda.Cuda`
and no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimvla.runtime.backends.tensorrt.cuda import Cuda
from trimvla.runtime.bundle.manifest import StageSpec, TensorSpec


@dataclass(frozen=True)
class TensorPlan:
    """One tensor: `between`: a stage makes it and a later one takes it, so it need not leave the
    device.
    """

    spec: TensorSpec
    nbytes: int
    between: bool


def plan_tensors(stages: Mapping[str, StageSpec], buckets: Sequence[int]) -> dict[str, TensorPlan]:
    """Every tensor of these stages by name, each at the largest of the buckets' lengths."""
    made = {tensor.name for spec in stages.values() for tensor in spec.outputs}
    taken = {tensor.name for spec in stages.values() for tensor in spec.inputs}
    specs = {
        tensor.name: tensor for spec in stages.values() for tensor in (*spec.inputs, *spec.outputs)
    }
    longest = max(buckets, default=1)
    return {
        name: TensorPlan(
            spec,
            math.prod(shape_at(spec, longest)) * np.dtype(spec.dtype).itemsize,
            name in made & taken,
        )
        for name, spec in specs.items()
    }


def shape_at(spec: TensorSpec, bucket: int) -> tuple[int, ...]:
    """The tensor's shape where its symbolic axis, if it has one, is this long."""
    return tuple(bucket if isinstance(axis, str) else axis for axis in spec.shape)


class DeviceTensor:
    """One tensor's buffer, and its twin on the host; on unified memory the two are one, unless it
    is `between`.
    """

    def __init__(self, plan: TensorPlan, cuda: Cuda) -> None:
        self.spec = plan.spec
        self._cuda = cuda
        self._host = cuda.host_memory(plan.nbytes)
        self._copied = plan.between or not cuda.integrated
        self.address = cuda.device_memory(plan.nbytes) if self._copied else self._host.on_device

    def upload(self, value: np.ndarray) -> None:
        """Put the value where the device finds it.

        The stream must have done all that still reads the last one.
        """
        flat = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
        self._host.view[: flat.size] = flat
        if self._copied:
            self._cuda.upload(self.address, self._host, flat.size)

    def download(self) -> None:
        """Bring the value to the host, in the stream's order; `value` may be read once the stream
        is done.
        """
        if self._copied:
            self._cuda.download(self._host, self.address, self._host.view.size)

    def value(self, bucket: int) -> np.ndarray:
        """What was downloaded, as a fresh array."""
        shape = shape_at(self.spec, bucket)
        dtype = np.dtype(self.spec.dtype)
        return (
            self._host.view[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape).copy()
        )
