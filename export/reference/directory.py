"""A reference directory, opened: the stored arrays and our policy with the stored weights.

The format is in docs/reference/reference-format.md. Knows how to read; computes and compares
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.architecture import policy_config, read_architecture
from trimvla.export.reference.planned_stages import PlannedStages, TorchStages
from trimvla.policies.cogact.checkpoint import load_official
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.diffusion import DdimStep, ddim_steps
from trimvla.policies.nn.vision import Vit
from trimvla.runtime.errors import ConfigError

RUN = re.compile(r"ddim(\d+)_cfg([\d.]+)")


@dataclass(frozen=True)
class Reference:
    """A reference directory, opened: the stored arrays, our policy with the stored weights, and
    what runs it.
    """

    directory: Path
    arrays: Mapping[str, np.ndarray]
    policy: CogAct
    stages: PlannedStages
    """What runs the stages."""
    left_out: frozenset[str] = frozenset()
    """Stored arrays that are not compared."""

    @property
    def backend(self) -> str:
        """What runs the stages, for the report."""
        return self.stages.backend

    @property
    def keys(self) -> list[str]:
        """Stored arrays that may be compared."""
        return [key for key in self.arrays if key not in self.left_out]

    def array(self, key: str) -> np.ndarray:
        """The stored array.

        Raises:
            ConfigError: the archive does not hold it.
        """
        if key not in self.arrays:
            raise ConfigError(f"reference.npz: expected array '{key}', got none")
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        """The stored array as a tensor."""
        return torch.from_numpy(self.array(key))

    def matches(self, pattern: str) -> list[tuple[str, re.Match[str]]]:
        """Stored keys that the regular expression matches entirely, with their matches."""
        found = ((key, re.fullmatch(pattern, key)) for key in self.keys)
        return [(key, match) for key, match in found if match]

    @property
    def statistics(self) -> Path:
        """Where the action statistics lie, if they are there."""
        return self.directory / "dataset_statistics.json"

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer lies, if it is there."""
        return self.directory / "tokenizer.json"

    @property
    def encoders(self) -> list[tuple[str, Vit]]:
        """The ViTs under the short names that the keys use: dino, siglip."""
        names = [vit.name.removesuffix("_featurizer") for vit in self.policy.cfg.vision]
        return [
            (name, vit)
            for name, vit in zip(names, self.policy.vision.encoders, strict=True)
            if isinstance(vit, Vit)
        ]

    def sampler(self, run: str) -> tuple[list[DdimStep], float]:
        """Steps and guidance scale of a run named `ddim<steps>_cfg<scale>`."""
        match = RUN.fullmatch(run)
        if match is None:
            raise ConfigError(f"expected a run named ddim<steps>_cfg<scale>, got '{run}'")
        return ddim_steps(self.policy.cfg.diffusion.train_steps, int(match[1])), float(match[2])


def open_reference(directory: Path | str) -> Reference:
    """Open `architecture.json`, the official checkpoint and `reference.npz`.

    Raises:
        ConfigError, CheckpointError: one of them is missing or does not fit.
    """
    directory = Path(directory)
    policy = load_official(directory, policy_config(read_architecture(directory)))
    try:
        arrays = np.load(directory / "reference.npz", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected an archive of arrays in {directory / 'reference.npz'}, got: {error}"
        ) from error
    return Reference(directory, arrays, policy, TorchStages(policy))
