"""TensorRT, and TensorRT for RTX: a bundle's stages as engines that `trimvla build` made for this
very device.

Finds the engines under their keys and refuses any other; the stages run one behind the other on the
device, each as one captured CUDA graph, and only the chain's own inputs and outputs cross to the
host. Not yet run on a GPU: what the tests know of it they know from a fake that follows the
documented API. Knows no graph, and builds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np

from trimvla.runtime.backends.chain import Milliseconds, Tensors, chain_io
from trimvla.runtime.backends.runner import check_inputs
from trimvla.runtime.backends.tensorrt import engine_cache as engines
from trimvla.runtime.backends.tensorrt import engine_folders
from trimvla.runtime.backends.tensorrt import library as trt_library
from trimvla.runtime.backends.tensorrt.cuda import Cuda
from trimvla.runtime.backends.tensorrt.device import find_device
from trimvla.runtime.backends.tensorrt.engine import STATIC, StageEngine
from trimvla.runtime.backends.tensorrt.engine_cache import EngineRecord
from trimvla.runtime.backends.tensorrt.tensors import DeviceTensor, plan_tensors
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import Manifest, StageSpec
from trimvla.runtime.errors import BackendError, SpecError


class TrtStages:
    """Engines of one bundle on the device, with one stream, one buffer a tensor and one scratch
    memory.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        names: tuple[str, ...],
        backend: str,
        folders: Sequence[Path],
    ) -> None:
        """Find, load, bind and capture the engines of these stages.

        Raises BackendError; names what is missing.
        """
        library = trt_library.load_trt(backend)
        device = find_device()
        with ExitStack() as undo:  # what was opened before something fails is closed again
            self.cuda = Cuda()
            undo.callback(self.cuda.close)
            self.gpu = device.gpu
            self.title = library.title
            self.library = library
            self.records: dict[str, EngineRecord] = {}
            self.stages: dict[str, StageEngine] = {}
            for name in names:
                wanted = engines.stage_key(
                    manifest,
                    name,
                    backend=backend,
                    version=library.version,
                    device=device,
                    directory=directory,
                )
                folder, record = engines.require_in(folders, wanted, directory)
                path = folder / record.key.file
                spec = manifest.stages[name]
                stage = StageEngine(library, path, spec, wanted.buckets, record.sha256)
                undo.callback(stage.close)
                self.records[name] = record
                self.stages[name] = stage
            self._prepare({name: manifest.stages[name] for name in names}, manifest.buckets)
            undo.callback(self.cuda.settle)  # the first thing that closing does
            self._undo = undo.pop_all()

    def _prepare(self, specs: Mapping[str, StageSpec], buckets: tuple[int, ...]) -> None:
        self.tensors = {
            name: DeviceTensor(plan, self.cuda)
            for name, plan in plan_tensors(specs, buckets).items()
        }
        size = max(1, *(stage.scratch_bytes for stage in self.stages.values()))
        scratch = self.cuda.device_memory(size)
        for stage in self.stages.values():
            stage.prepare(self.cuda, self.tensors, scratch, size)

    def bucket(self, name: str, inputs: Mapping[str, np.ndarray]) -> int:
        """The prompt length of these inputs; SpecError where the stage's engine has no profile for
        it.
        """
        stage = self.stages[name]
        if stage.buckets == [STATIC]:
            return STATIC
        length = next(
            inputs[spec.name].shape[index]
            for spec in stage.spec.inputs
            for index, axis in enumerate(spec.shape)
            if isinstance(axis, str)
        )
        if length not in stage.buckets:
            raise SpecError(
                f"expected a prompt length of {stage.buckets} for 'input_ids', got {length}"
            )
        return length

    def close(self) -> None:
        """Free the device."""
        self._undo.close()


class TrtRunner:
    """One stage by itself: its inputs from the host and its outputs to the host, each time."""

    def __init__(self, stages: TrtStages, name: str) -> None:
        """A stage of opened ones; closing the runner closes them all."""
        self.spec = stages.stages[name].spec
        self._stages = stages
        self._name = name

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        stages = self._stages
        bucket = self._stages.bucket(self._name, inputs)
        for name, value in inputs.items():
            stages.tensors[name].upload(value)
        stages.stages[self._name].launch(stages.cuda, bucket)
        outputs = [stages.tensors[spec.name] for spec in self.spec.outputs]
        for tensor in outputs:
            tensor.download()
        stages.cuda.synchronize()
        return {tensor.spec.name: tensor.value(bucket) for tensor in outputs}

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`."""
        stages = self._stages
        record = self._stages.records[self._name]
        return {
            "backend": stages.library.backend,
            "version": stages.library.version,
            "provider": stages.gpu,
            "engine": record.key.file,
            "precision": record.precision,
            "memory": "unified" if stages.cuda.integrated else "pinned",
        }

    def close(self) -> None:
        """See `runner.Runner`."""
        self._stages.close()


class TrtChain:
    """All stages in one pass over the stream: what lies between two of them never leaves the
    device.
    """

    def __init__(self, stages: TrtStages) -> None:
        """`stages` in their order."""
        self._stages = stages
        self.runners = {name: TrtRunner(stages, name) for name in stages.stages}
        self._marks = [stages.cuda.event() for _ in range(len(stages.stages) + 1)]

    def run(
        self, inputs: Mapping[str, np.ndarray], stages: Sequence[str] | None = None
    ) -> tuple[Tensors, Milliseconds]:
        """See `chain.Chain.run`."""
        opened = self._stages
        cuda = self._stages.cuda
        stages = tuple(self.runners) if stages is None else stages
        taken, made = chain_io({name: self.runners[name] for name in stages})
        self._check(inputs, taken)
        buckets = {name: opened.bucket(name, inputs) for name in stages}
        marks = self._marks[: len(stages) + 1]
        cuda.record(marks[0])
        for name in taken:
            opened.tensors[name].upload(inputs[name])
        for index, name in enumerate(stages):
            opened.stages[name].launch(cuda, buckets[name])
            if index + 1 < len(stages):
                cuda.record(marks[index + 1])
        for name in made:
            opened.tensors[name].download()
        cuda.record(marks[-1])
        cuda.synchronize()
        took = [cuda.milliseconds(*pair) for pair in pairwise(marks)]
        longest = max(buckets.values())
        outputs = {name: opened.tensors[name].value(longest) for name in made}
        return outputs, dict(zip(stages, took, strict=True))

    def close(self) -> None:
        """See `chain.Chain.close`."""
        self._stages.close()

    def _check(self, inputs: Mapping[str, np.ndarray], taken: Sequence[str]) -> None:
        if set(inputs) != set(taken):
            raise SpecError(f"expected inputs {sorted(taken)}, got {sorted(inputs)}")
        for name in taken:
            self._stages.tensors[name].spec.array.validate(inputs[name])


def create(
    model: Path,
    spec: StageSpec,
    *,
    backend: str,
    provider: str | None = None,
    threads: int = 0,
    engines: Path | None = None,
) -> TrtRunner:
    """See `runner.create`: the engine of the stage whose graph `model` is, in its bundle."""
    manifest = bundles.load(model.parent, verify_hashes=False)
    found = [name for name, stage in manifest.stages.items() if stage.file == model.name]
    if not found or manifest.stages[found[0]] != spec:
        raise BackendError(
            f"{model}: expected a stage of the bundle that it lies in, with the spec of its"
            " manifest"
        )
    return TrtRunner(
        _open(
            model.parent, manifest, (found[0],), backend=backend, provider=provider, folder=engines
        ),
        found[0],
    )


def open_chain(
    directory: Path,
    manifest: Manifest,
    *,
    backend: str,
    provider: str | None = None,
    threads: int = 0,
    engines: Path | None = None,
    stages: Sequence[str],
) -> TrtChain:
    """See `chain.open_chain`."""
    return TrtChain(
        _open(
            directory, manifest, tuple(stages), backend=backend, provider=provider, folder=engines
        )
    )


def _open(
    directory: Path,
    manifest: Manifest,
    names: tuple[str, ...],
    *,
    backend: str,
    provider: str | None,
    folder: Path | None,
) -> TrtStages:
    """`threads` means nothing here; a `provider` is the name of the GPU that must be there."""
    gpu = find_device().gpu
    if provider is not None and provider != gpu:
        raise BackendError(f"expected GPU {provider!r} for 'provider', this machine's is {gpu!r}")
    folders = engine_folders.to_look_in(folder, engines.content_digest(manifest))
    return TrtStages(directory, manifest, names, backend, folders)
