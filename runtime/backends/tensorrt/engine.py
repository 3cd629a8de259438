"""One stage's engine on the device: loaded, checked against its spec, and captured as one CUDA
graph per prompt bucket.

Every bucket has a context of its own, bound once to the addresses of its tensors, so that a
captured graph stays true; all contexts, of all stages, share one scratch memory, for they run one
after the other in one stream. What is called here exists from TensorRT 10.3 to 11.4 and in TensorRT
for RTX. Knows no bundle and no cache.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimvla.runtime.backends.tensorrt.cuda import Cuda, Graph
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, dtype_name
from trimvla.runtime.backends.tensorrt.tensors import DeviceTensor, shape_at
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError
from trimvla.runtime.specs import describe

STATIC = 0  # the bucket of a stage without a symbolic axis


class StageEngine:
    """A loaded engine.

    First `scratch_bytes`, then `prepare`, then `launch` as often as one likes.
    """

    def __init__(
        self,
        library: TrtLibrary,
        path: Path,
        spec: StageSpec,
        buckets: Sequence[int],
        sha256: str | None = None,
    ) -> None:
        """Load it.

        Args:
            library: what built it.
            path: the engine.
            spec: what must cross its border.
            buckets: the prompt lengths that it must have a profile for; empty for a stage that sees
                no prompt.
            sha256: of the engine, from its record; not checked when left out.

        Raises:
            BackendError: it does not load here, or is not the engine of such a stage.
        """
        self.spec = spec
        self._library = library
        self._path = path
        self._runtime = library.module.Runtime(library.logger)
        self._engine: Any = load(library, self._runtime, path, sha256)
        self._check_border()
        self._profiles = self._find_profiles(buckets)
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Graph] = {}

    @property
    def buckets(self) -> list[int]:
        """The prompt lengths that it can run; [STATIC] for a stage that sees no prompt."""
        return list(self._profiles)

    @property
    def scratch_bytes(self) -> int:
        """What its contexts need of the shared memory."""
        return int(self._engine.device_memory_size_v2)

    def prepare(
        self, cuda: Cuda, tensors: Mapping[str, DeviceTensor], scratch: int, scratch_bytes: int
    ) -> None:
        """Bind and capture every bucket.

        Args:
            cuda: the device.
            tensors: a buffer for everything that crosses the border, by name; set to zero.
            scratch: the address of the shared memory.
            scratch_bytes: its size.

        Raises:
            BackendError: the library refuses something; names the call, and its reason.
        """
        strategy = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        for bucket, profile in self._profiles.items():
            context = self._must(
                "create_execution_context", self._engine.create_execution_context(strategy)
            )
            context.set_device_memory(scratch, scratch_bytes)
            if profile:  # a new context stands at profile 0
                self._call(context, "set_optimization_profile_async", profile, cuda.stream)
            self._bind(context, tensors, bucket)
            enqueue = self._enqueue(context, cuda.stream)
            enqueue()  # once outside of a capture: what the library loads late is loaded now
            cuda.synchronize()
            self._graphs[bucket] = cuda.capture(enqueue)
            self._contexts[bucket] = context

    def launch(self, cuda: Cuda, bucket: int) -> None:
        """Run the stage at this prompt length, in the stream's order."""
        cuda.launch(self._graphs[bucket])

    def close(self) -> None:
        """Let go of everything but the device's memory: contexts before their engine, it before its
        runtime.
        """
        self._graphs.clear()
        self._contexts.clear()
        self._engine = None
        self._runtime = None

    def _bind(self, context: Any, tensors: Mapping[str, DeviceTensor], bucket: int) -> None:  # noqa: ANN401
        for tensor in self.spec.inputs:
            if any(isinstance(axis, str) for axis in tensor.shape):
                self._call(context, "set_input_shape", tensor.name, shape_at(tensor, bucket))
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            self._call(context, "set_tensor_address", tensor.name, tensors[tensor.name].address)
        try:
            missing = list(context.infer_shapes())
        except RuntimeError as error:
            raise BackendError(
                f"{self._path}: no shapes at prompt length {bucket}: {error}"
            ) from error
        if missing:
            raise BackendError(
                f"{self._path}: the shapes of {missing} are still open at prompt length {bucket}"
            )

    def _enqueue(self, context: Any, stream: int) -> Callable[[], None]:  # noqa: ANN401 - the library has no types
        return lambda: self._call(context, "execute_async_v3", stream)

    def _call(self, context: Any, name: str, *arguments: object) -> None:  # noqa: ANN401 - the library has no types
        """One call that answers whether it worked."""
        self._must(f"{name}{arguments}", getattr(context, name)(*arguments))

    def _must(self, what: str, answer: Any) -> Any:  # noqa: ANN401 - the library has no types
        if not answer:
            raise BackendError(
                f"{self._path}: {self._library.title} refused {what}: {self._library.complaint()}"
            )
        return answer

    def _check_border(self) -> None:
        """The engine's own inputs and outputs must be those of the spec: names, dtypes, shapes, all
        on the device.
        """
        trt = self._library.module
        engine = self._engine
        modes = (
            ("inputs", trt.TensorIOMode.INPUT, self.spec.inputs),
            ("outputs", trt.TensorIOMode.OUTPUT, self.spec.outputs),
        )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for kind, mode, specs in modes:
            expected = {spec.name: describe(spec.dtype, shape_at(spec, -1)) for spec in specs}
            got = {
                name: self._described(name)
                for name in names
                if engine.get_tensor_mode(name) == mode
            }
            if expected != got:
                raise BackendError(f"{self._path}: expected {kind} {expected}, got {got}")
        elsewhere = [
            name for name in names if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE
        ]
        if elsewhere:
            raise BackendError(
                f"{self._path}: expected all tensors on the device, got {elsewhere} on the host"
            )

    def _described(self, name: str) -> str:
        shape = tuple(int(axis) for axis in self._engine.get_tensor_shape(name))
        return describe(dtype_name(self._engine.get_tensor_dtype(name)), shape)

    def _find_profiles(self, buckets: Sequence[int]) -> dict[int, int]:
        """Prompt length -> profile of that one length."""
        symbolic = next(
            (
                spec
                for spec in self.spec.inputs
                if any(isinstance(axis, str) for axis in spec.shape)
            ),
            None,
        )
        if symbolic is None:
            return {STATIC: 0}
        axis = next(index for index, length in enumerate(symbolic.shape) if isinstance(length, str))
        found = {}
        for profile in range(self._engine.num_optimization_profiles):
            low, _, high = (
                tuple(shape)
                for shape in self._engine.get_tensor_profile_shape(symbolic.name, profile)
            )
            if low == high:
                found[int(low[axis])] = profile
        if set(found) != set(buckets):
            raise BackendError(
                f"{self._path}: expected profiles for prompt lengths {list(buckets)}, got"
                f" {list(found)}"
            )
        return found


def load(library: TrtLibrary, runtime: Any, path: Path, sha256: str | None = None) -> Any:  # noqa: ANN401 - no types
    """Deserialise; the file is mapped, so that on unified memory its pages can go as soon as they
    are read.

    What is hashed is the very mapping that is deserialised: the name may have become another file's
    by now.
    """
    library.complaints.clear()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as serialised,
    ):
        if sha256 is not None and (got := hashlib.sha256(serialised).hexdigest()) != sha256:
            raise BackendError(
                f"{path}: expected sha256 {sha256}, got {got}: run `trimvla build` again"
            )
        engine = runtime.deserialize_cuda_engine(serialised)
    if engine is None:
        raise BackendError(f"{path}: {library.title} cannot load it: {library.complaint()}")
    return engine
