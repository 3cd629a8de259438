"""The torch baselines of a benchmark: a bundle's policy with torch behind its stages, eager or
compiled, in float32.

The policy around the stages stays the runtime's own, so both sides of a ratio pay the same for
image, prompt and chunk. Weights are those beside the bundle, as `verify` takes them; a baseline
whose actions differ from the bundle's is refused. Knows no clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trimvla.export.graphs.stages import stages_of
from trimvla.export.verify import checkpoint_beside, patch_of, under_plan
from trimvla.launch.bench.turns import COMPILED
from trimvla.runtime.backends.chain import HostChain
from trimvla.runtime.backends.runner import check_inputs
from trimvla.runtime.bundle.manifest import Manifest, StageSpec
from trimvla.runtime.errors import BackendError, CheckpointError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

TOLERANCE = 1e-3  # on the raw sample; rounding is 1e-5


class TorchRunner:
    """One stage by torch, on the CPU; keeps the runner's contract."""

    def __init__(self, module: nn.Module, spec: StageSpec, backend: str) -> None:
        """`backend` is `benchmark.EAGER` or `COMPILED`, which compiles at the first call of every
        prompt length.
        """
        self.spec = spec
        self._backend = backend
        module = module.eval()
        self._run = (
            torch.compile(module, dynamic=False, fullgraph=True) if backend == COMPILED else module
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`; BackendError where torch cannot compile the stage."""
        check_inputs(self.spec, inputs)
        tensors = [
            torch.from_numpy(np.require(inputs[tensor.name], requirements="W"))
            for tensor in self.spec.inputs
        ]
        try:
            with torch.inference_mode():
                got = self._run(*tensors)
        except RuntimeError as error:  # all of the compiler's are
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise BackendError(f"{self._backend} cannot run '{self.spec.file}': {first}") from error
        values = got if isinstance(got, tuple) else (got,)
        return {
            tensor.name: value.numpy()
            for tensor, value in zip(self.spec.outputs, values, strict=True)
        }

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`."""
        return {"backend": self._backend, "version": torch.__version__, "provider": "cpu"}

    def close(self) -> None:
        """See `runner.Runner`."""
        del self._run


def load_model(directory: Path, manifest: Manifest, otherwise: Path | None = None) -> nn.Module:
    """The torch policy of a bundle, under its plan.

    Args:
        directory: the bundle.
        manifest: its own.
        otherwise: a bundle of the same dense policy, for a bundle that has no checkpoint of its own
            beside it.

    Raises:
        CheckpointError: there is no checkpoint, or the bundle's patch is not beside it.
        BundleError: it is of another policy.
    """
    try:
        dense = checkpoint_beside(directory)
    except CheckpointError:
        if otherwise is None:
            raise
        dense = checkpoint_beside(otherwise)
    return under_plan(dense, manifest, directory, patch_of(manifest, directory))


def on_torch(policy: Policy, model: nn.Module, backend: str) -> Policy:
    """The policy with torch behind its stages; `model` is its torch twin under the same plan."""
    runners = {
        stage.name: TorchRunner(stage.module(model), policy.manifest.stages[stage.name], backend)
        for stage in stages_of(model)
    }
    twin = copy(policy)
    twin.chain = HostChain(runners)
    return twin


def check_same(policy: Policy, baseline: Policy, observation: Observation) -> None:
    """Raise BackendError where the two give different actions: then their times mean nothing for
    each other.
    """
    expected, got = (each.infer(observation).sample for each in (policy, baseline))
    worst = float(np.abs(got - expected).max())
    if not worst <= TOLERANCE:
        name = policy.manifest.name
        ran = next(iter(baseline.describe().values()))["backend"]
        raise BackendError(
            f"{ran}: expected the actions of bundle '{name}' within {TOLERANCE:g}, got {worst:.2g}"
            " apart"
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let an operator of torch use so many threads, all cores with 0."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
