"""An ACT reference directory, opened: stored arrays, our policy with the stored weights.

Knows how to read; computes and compares nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.staged import StageRuns, TorchRuns
from trimvla.policies.act.checkpoint import build
from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.describe import describe
from trimvla.policies.act.model import Act
from trimvla.policies.act.source import camera_features, open_checkpoint, read_fields
from trimvla.policies.checkpoint import Checkpoint
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class ActReference:
    """A directory, opened."""

    arrays: Mapping[str, np.ndarray]
    checkpoint: Checkpoint
    policy: Act
    features: Mapping[str, str]
    """Our name of each camera -> its feature's."""
    runs: StageRuns
    """What runs the stages."""

    @property
    def cfg(self) -> ActConfig:
        """Sizes."""
        return self.policy.cfg

    @property
    def described(self) -> InputsAndOutput:
        """What the runtime knows."""
        return describe(self.checkpoint, Plan())

    @property
    def keys(self) -> Sequence[str]:
        """Stored arrays that may be compared."""
        return list(self.arrays)

    @property
    def backend(self) -> str:
        """What runs the stages."""
        return self.runs.backend

    def array(self, key: str) -> np.ndarray:
        """The stored array. ConfigError where there is none."""
        if key not in self.arrays:
            raise ConfigError(f"reference.npz: expected array '{key}', got none")
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        """The stored array as a tensor."""
        return torch.from_numpy(self.array(key))

    def through(self, runs: StageRuns) -> ActReference:
        """The same, with its stages run by something else."""
        return replace(self, runs=runs)


def open_reference(directory: Path) -> ActReference:
    """Open a LeRobot checkpoint with `reference.npz` beside it.

    Raises:
        ConfigError, CheckpointError: one of them is missing or does not fit.
    """
    checkpoint = open_checkpoint(directory)
    path = directory / "reference.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected an archive of arrays in {path}, got: {error}") from error
    policy = build(checkpoint.cfg, checkpoint.weights)
    features = camera_features(read_fields(directory))
    return ActReference(arrays, checkpoint, policy, features, TorchRuns(policy))
