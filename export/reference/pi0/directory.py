"""A reference directory of pi0 or pi0.5, opened: the stored arrays and our policy with the stored
weights.

The public code masks absent cameras and the padding of the prompt; we leave out the first and mask
the second. So our rows are a part of the stored ones, and what is stored at padding is compared
with itself (`at_valid`). Computes nothing else and compares nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.staged import ExportedRuns, StageRuns, TorchRuns
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import Family, family_of
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.pi0.source import camera_name, open_checkpoint
from trimvla.policies.pi0.stages import trajectory_stage
from trimvla.policies.pi0.trimmed import shallow
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import LISTS, Scale
from trimvla.runtime.errors import ConfigError

DENSE = Plan()
TRAJECTORY = "trajectory"


@dataclass(frozen=True)
class Pi0Reference:
    """See the module."""

    directory: Path
    arrays: Mapping[str, np.ndarray]
    checkpoint: Checkpoint
    policy: Pi0
    features: tuple[str, ...]
    """LeRobot's names of the cameras that are there, in the policy's order."""
    absent: tuple[str, ...]
    """Names of those that are not."""
    stages: StageRuns
    """What runs the stages."""
    sums: StageRuns
    """The same, where what is reused is the sum with the old gates, as references have it."""
    left_out: frozenset[str] = frozenset()

    @property
    def keys(self) -> list[str]:
        """Stored arrays that may be compared."""
        return [key for key in self.arrays if key not in self.left_out]

    @property
    def backend(self) -> str:
        """What runs the stages."""
        return self.stages.backend

    @property
    def family(self) -> Family:
        """The policy's row."""
        return family_of(self.policy.cfg)

    @cached_property
    def described(self) -> InputsAndOutput:
        """The policy's inputs and output, as a bundle describes them."""
        return self.family.describe(self.checkpoint, DENSE)

    def array(self, key: str) -> np.ndarray:
        """The stored array. ConfigError where there is none."""
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

    def scale(self, feature: str) -> Scale:
        """How "state" or "action" is scaled, by the checkpoint's statistics."""
        described = self.described
        mode = described.action.normalization
        epsilon = described.action.epsilon
        if feature == "state":
            assert described.state is not None
            mode = described.state.statistics
            epsilon = described.state.epsilon
        lists = [tuple(self.checkpoint.statistics[feature][name]) for name in LISTS[mode]]
        low, high = lists or ((), ())
        return Scale(low, high, None, mode, epsilon)

    # --- inputs of the stored call ---

    @property
    def state(self) -> Tensor | None:
        """float[1, padded state] where the expert sees one."""
        return self.tensor("in/state_padded") if self.policy.cfg.has_state_token else None

    def ids(self, prefix: str) -> tuple[Tensor, Tensor]:
        """int64[1, L] ids and int64[1], how many are no padding."""
        return self.tensor(f"{prefix}/input_ids"), self.tensor(f"{prefix}/language_mask").sum(dim=1)

    @property
    def visual(self) -> Tensor:
        """The stored tokens of the cameras that are there: float[V, D]."""
        tokens = [self.tensor(f"vision/{name}/connector")[0] for name in self.features]
        return torch.cat(tokens)

    # --- stored rows and ours ---

    def rows(self, total: int) -> np.ndarray:
        """Which of `total` stored rows of a prefix are ours: visual rows that are there, and the
        text's.
        """
        visual = self.policy.cfg.visual_tokens
        longest = self.array("in/input_ids").shape[1]
        return np.concatenate([np.arange(visual), np.arange(total - longest, total)])

    def at_valid(self, key: str, ours: Tensor, axes: Sequence[int], valid: Tensor) -> np.ndarray:
        """The stored array, with ours at the rows `valid` bool[n] of our rows along each of the
        axes.
        """
        made = self.array(key).copy()
        places = [self.rows(made.shape[axis])[valid.numpy()] for axis in axes]
        index: list[Any] = [slice(None)] * made.ndim
        part: list[Any] = [slice(None)] * made.ndim
        if len(axes) == 1:
            index[axes[0]] = places[0]
            part[axes[0]] = valid.numpy()
            made[tuple(index)] = ours.numpy()[tuple(part)]
            return made
        first, second = axes
        grid = np.ix_(
            *(places[axes.index(a)] if a in axes else range(n) for a, n in enumerate(made.shape))
        )
        chosen = (
            ours.numpy().compress(valid.numpy(), axis=first).compress(valid.numpy(), axis=second)
        )
        made[grid] = chosen
        return made

    # --- stages under plans ---

    def run(
        self, name: str, plan: Plan, *, sums: bool = False, **tensors: Tensor
    ) -> dict[str, Tensor]:
        """A stage's outputs; "trajectory" is the action stage with x after every step."""
        cfg = self.policy.cfg
        rows = (*self.family.stages(cfg, plan, False), trajectory_stage(cfg, plan))
        stage = next(row for row in rows if row.name == name)
        return (self.sums if sums else self.stages).run(plan, stage, tensors)

    def memory(self, plan: Plan, visual: Tensor, ids: Tensor, length: Tensor) -> dict[str, Tensor]:
        """What the language stage gives, with `last`."""
        last = length - 1
        return {**self.run("language", plan, visual=visual, input_ids=ids, last=last), "last": last}

    def sample(
        self, name: str, plan: Plan, memory: Mapping[str, Tensor], *, sums: bool = False
    ) -> Tensor:
        """The action stage, or "trajectory", from the stored state and noise."""
        state = {} if self.state is None else {"state": self.state}
        inputs = {**memory, **state, "noise": self.tensor("in/noise")}
        return next(iter(self.run(name, plan, sums=sums, **inputs).values()))


def without_gates(policy: Pi0) -> Pi0:
    """The policy with `ungated` false."""
    made = shallow(policy)
    made.ungated = False
    return made


def open_reference(directory: Path) -> Pi0Reference:
    """Open the checkpoint and `reference.npz`.

    Raises:
        ConfigError, CheckpointError: one of them is missing or does not fit.
    """
    checkpoint = open_checkpoint(directory)
    try:
        with np.load(directory / "reference.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError) as error:
        path = directory / "reference.npz"
        raise ConfigError(f"expected an archive of arrays in {path}, got: {error}") from error
    masks = {
        key.removeprefix("pixels/").removesuffix("_mask"): bool(arrays[key].all())
        for key in arrays
        if key.startswith("pixels/") and key.endswith("_mask")
    }
    by_name = {camera_name(feature): feature for feature in masks}
    present = tuple(name for name in checkpoint.cameras if masks.get(by_name.get(name, "")))
    if not present:
        raise ConfigError(
            f"reference.npz: expected pixels of a camera of {list(checkpoint.cameras)}, got none"
        )
    cfg = checkpoint.cfg.with_cameras(present)
    policy = family_of(cfg).build(cfg, checkpoint.weights)
    assert isinstance(policy, Pi0)
    return Pi0Reference(
        directory,
        arrays,
        replace(checkpoint, cfg=cfg, cameras=present),
        policy,
        stages=TorchRuns(policy),
        sums=TorchRuns(without_gates(policy)),
        features=tuple(by_name[name] for name in present),
        absent=tuple(feature for feature, there in masks.items() if not there),
    )


def exported(reference: Pi0Reference, directory: Path, every_plan: bool) -> Pi0Reference:
    """The same reference with its stages exported into the directory."""
    left_out = frozenset() if every_plan else left_out_when_exported(reference)
    for name in ("stages", "sums"):
        (directory / name).mkdir()
    return replace(
        reference,
        stages=ExportedRuns(reference.policy, directory / "stages"),
        sums=ExportedRuns(without_gates(reference.policy), directory / "sums"),
        left_out=left_out,
    )


def left_out_when_exported(reference: Pi0Reference) -> frozenset[str]:
    """Arrays that exported graphs are not compared with: each needs an unrolled graph of its own.

    One schedule, one count of tokens, one choice of pairs and one of expert layers are left.
    """
    first: dict[str, str] = {}
    left_out: set[str] = set()
    for key in reference.arrays:
        match = re.fullmatch(r"(cache/interval|tokens/K|layers/both|layers/expert)([^/]+)/.+", key)
        if match and first.setdefault(match[1], match[2]) != match[2]:
            left_out.add(key)
    return frozenset(left_out)


Compute = Callable[[Pi0Reference], Any]
