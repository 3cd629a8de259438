"""The stages of a policy, one behind the other: the image goes in, the sampled actions come out.

Between two stages a tensor travels under its name. `HostChain` takes every result back to the host,
which any backend can do; a backend that can leave them on its device brings a chain of its own.
Knows neither images nor prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from trimvla.runtime.backends.runner import Runner, find_backend
from trimvla.runtime.bundle.manifest import PLAIN, Manifest, StageSpec

Tensors = dict[str, np.ndarray]
Milliseconds = dict[str, float]
Opened = TypeVar("Opened", bound=Runner)


class Chain(Protocol):
    """Executes stages, in their order."""

    @property
    def runners(self) -> Mapping[str, Runner]:
        """Each stage by itself, for whoever measures or compares one."""
        ...

    def run(
        self, inputs: Mapping[str, np.ndarray], stages: Sequence[str] | None = None
    ) -> tuple[Tensors, Milliseconds]:
        """One pass.

        Args:
            inputs: what none of the stages makes, by tensor name: images, prompt, state, noise.
            stages: those that run, in their order, of the ones that were opened; all of them when
                left out.

        Returns:
            At least every tensor that no later stage takes (`actions`, and `kept` where tokens are
            dropped), as fresh arrays; and the time of every stage, its copies included.

        Raises:
            SpecError: an input of another dtype or shape than its stage's spec.
        """
        ...

    def close(self) -> None:
        """Free the device; the chain and its runners are not used again."""
        ...


class HostChain:
    """Stage after stage through their runners; every tensor lies on the host in between."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        """`runners` in the stages' order."""
        self.runners = dict(runners)

    def run(
        self, inputs: Mapping[str, np.ndarray], stages: Sequence[str] | None = None
    ) -> tuple[Tensors, Milliseconds]:
        """See `Chain.run`."""
        tensors = dict(inputs)
        took = {}
        for name in self.runners if stages is None else stages:
            start = time.monotonic_ns()
            runner = self.runners[name]
            tensors |= runner.run({spec.name: tensors[spec.name] for spec in runner.spec.inputs})
            took[name] = (time.monotonic_ns() - start) / 1e6
        return tensors, took

    def close(self) -> None:
        """See `Chain.close`."""
        for runner in self.runners.values():
            runner.close()


def open_chain(
    directory: Path,
    manifest: Manifest,
    *,
    backend: str = "onnxruntime",
    provider: str | None = None,
    threads: int = 0,
    engines: Path | None = None,
    stages: Sequence[str] | None = None,
) -> Chain:
    """These stages of a bundle, by default those of a plain call, chained.

    On their device where the backend can. Options as for `runner.create`.

    Example:
        >>> import numpy as np
        >>> from trimvla.runtime import find_bundle, load_manifest, open_chain
        >>> place = find_bundle("tabletop")
        >>> chain = open_chain(place, load_manifest(place), threads=1, stages=("vision",))
        >>> spec = chain.runners["vision"].spec.inputs[0]
        >>> spec.name, spec.dtype
        ('image', 'uint8')
        >>> image = np.zeros(spec.shape, np.uint8)
        >>> outputs, milliseconds = chain.run({"image": image}, ("vision",))
        >>> outputs["visual"].shape
        (1, 256, 192)
        >>> chain.close()
    """
    stages = manifest.modes[PLAIN] if stages is None else stages
    module, options = find_backend(backend, provider, threads, engines)
    if hasattr(module, "open_chain"):
        return module.open_chain(directory, manifest, stages=stages, **options)
    specs = {name: manifest.stages[name] for name in stages}
    return HostChain(open_all(module.create, directory, specs, options))


def open_all(
    create: Callable[..., Opened],
    directory: Path,
    specs: Mapping[str, StageSpec],
    options: Mapping[str, Any],
) -> dict[str, Opened]:
    """One runner a stage; where one does not open, those before it are closed."""
    runners: dict[str, Opened] = {}
    with ExitStack() as undo:
        for name, spec in specs.items():
            runners[name] = create(directory / spec.file, spec, **options)
            undo.callback(runners[name].close)
        undo.pop_all()
    return runners


def chain_io(runners: Mapping[str, Runner]) -> tuple[list[str], list[str]]:
    """Names of the tensors that no stage makes, and of those that no stage takes: what goes in and
    what comes out.
    """
    taken = dict.fromkeys(spec.name for runner in runners.values() for spec in runner.spec.inputs)
    made = dict.fromkeys(spec.name for runner in runners.values() for spec in runner.spec.outputs)
    return [name for name in taken if name not in made], [
        name for name in made if name not in taken
    ]
