"""A reference directory of DB-CogACT, opened: stored arrays, and our policy with stored weights.

The stored `input_ids` hold -200 where the image goes; ours are what is behind it, and what is
before it is folded in. Computes nothing and compares nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from trimvla.export.reference.directory import RUN
from trimvla.export.reference.staged import ExportedRuns, StageRuns, TorchRuns
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.cogact.stages import STEP_STAGES
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.dbcogact.source import build, describe, open_checkpoint
from trimvla.policies.dbcogact.stages import stages
from trimvla.policies.nn.diffusion import DdimStep, ddim_steps
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import Scale
from trimvla.runtime.errors import ConfigError

DENSE = Plan()
PLANNED = re.compile(
    r"(layerdrop/n)(\d+)/cognition_feature"
    r"|(evla/.+/K)(\d+)/(?:kept|cognition_feature|.+_sample)"
    r"|(cache/interval)(\d+)/normalized"
)
"""Arrays that a graph of a plan of its own gives."""
PICTURE = -200
"""Stands for the image in stored ids."""


@dataclass(frozen=True)
class DbReference:
    """See the module."""

    directory: Path
    arrays: Mapping[str, np.ndarray]
    checkpoint: Checkpoint
    policy: DbCogAct
    graphs: Path | None = None
    """Where stages are exported to; without it, torch runs them."""
    left_out: frozenset[str] = frozenset()
    head_of: DbReference | None = None
    """Whose exported action stage is this one's too; its own where left out."""

    @property
    def keys(self) -> list[str]:
        """Stored arrays that may be compared."""
        return [key for key in self.arrays if key not in self.left_out]

    @cached_property
    def stages(self) -> StageRuns:
        """What runs the stages."""
        if self.graphs is None:
            return TorchRuns(self.policy)
        return ExportedRuns(self.policy, Path(mkdtemp(dir=self.graphs)))

    @property
    def backend(self) -> str:
        """What runs the stages, for the report."""
        return self.stages.backend

    @cached_property
    def described(self) -> InputsAndOutput:
        """The policy's inputs and output, as a bundle describes them."""
        return describe(self.checkpoint, DENSE)

    @cached_property
    def scale(self) -> Scale:
        """How actions are scaled."""
        lists = self.checkpoint.statistics["action"]
        low, high = (tuple(map(float, lists[name])) for name in ("min", "max"))
        return Scale(low, high, None, "min_max", 0.0)

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer lies."""
        assert self.checkpoint.tokenizer is not None
        return self.checkpoint.tokenizer

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

    def sampler(self, run: str) -> tuple[list[DdimStep], float]:
        """Steps and guidance scale of a run named `ddim<steps>_cfg<scale>`."""
        match = RUN.fullmatch(run)
        if match is None:
            raise ConfigError(f"expected a run named ddim<steps>_cfg<scale>, got '{run}'")
        train_steps = self.policy.cfg.diffusion.train_steps
        return ddim_steps(train_steps, int(match[1])), float(match[2])

    # --- ids ---

    def halves(self, key: str) -> tuple[Tensor, Tensor]:
        """Stored ids before and behind the image: int64[1, m], int64[1, L]."""
        ids = self.tensor(key)
        places = (ids == PICTURE).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ConfigError(f"reference.npz: expected {PICTURE} once in '{key}'")
        return ids[None, : places[0]], ids[None, places[0] + 1 :]

    def whole(self, visual: Tensor, key: str) -> Tensor:
        """float[1, P, D] and stored ids -> the decoder's whole input, float[1, m + P + L, D]."""
        before, after = (self.policy.language.embed_tokens(ids) for ids in self.halves(key))
        return torch.cat([before, visual, after], dim=1)

    # --- several images ---

    @cached_property
    def two_pictures(self) -> DbReference:
        """The same checkpoint, looking through two cameras."""
        return self.with_cameras(("first", "second"))

    def with_cameras(self, cameras: tuple[str, ...]) -> DbReference:
        """The same checkpoint, looking through other cameras; its stages run the same way."""
        cfg = msgspec.structs.replace(self.policy.cfg, cameras=cameras)
        checkpoint = replace(self.checkpoint, cfg=cfg, cameras=cameras)
        policy = build(cfg, self.checkpoint.weights)
        # the head sees no camera: a graph of the same weights would be the same graph
        is_shared = self.graphs is not None and have_same_weights(policy.head, self.policy.head)
        head_of = self if is_shared else None
        return replace(self, checkpoint=checkpoint, policy=policy, head_of=head_of)

    # --- stages under plans ---

    def run(self, name: str, plan: Plan, **tensors: Tensor) -> dict[str, Tensor]:
        """Outputs of a stage under a plan.

        "action_full" and "action_reuse" are one sampler step.
        """
        rows = (*stages(self.policy.cfg, plan), *STEP_STAGES)
        stage = next(row for row in rows if row.name == name)
        return self.stages.run(plan, stage, tensors)

    def cognition(
        self, plan: Plan, visual: Tensor, key: str = "in/input_ids"
    ) -> tuple[Tensor, Tensor | None]:
        """float[1, P, D], stored ids -> float[1, D], and int64[1, K] where tokens are dropped."""
        _, ids = self.halves(key)
        got = self.run("language", plan, visual=visual, input_ids=ids, last=last_index(ids))
        return got["cognition"], got.get("kept")

    def sample(self, plan: Plan, cognition: Tensor) -> Tensor:
        """The chunk float[1, H, A] from the stored noise."""
        noise = self.tensor("action/noise")
        owner = self.head_of or self
        return owner.run("action", plan, cognition=cognition, noise=noise)["actions"]


def have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same parameters and buffers, bit by bit."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


def last_index(ids: Tensor) -> Tensor:
    """int64[1, L] without padding -> int64[1]."""
    return torch.tensor([ids.shape[1] - 1])


def open_reference(directory: Path) -> DbReference:
    """Open the checkpoint and `reference.npz`.

    Raises:
        ConfigError, CheckpointError: one of them is missing or does not fit.
    """
    checkpoint = open_checkpoint(directory)
    path = directory / "reference.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected an archive of arrays in {path}, got: {error}") from error
    policy = build(checkpoint.cfg, checkpoint.weights)
    return DbReference(directory, arrays, checkpoint, policy)


def exported(reference: DbReference, directory: Path, every_plan: bool) -> DbReference:
    """The same reference with its stages exported into the directory."""
    left_out = frozenset() if every_plan else left_out_when_exported(list(reference.arrays))
    return replace(reference, graphs=directory, left_out=left_out)


def left_out_when_exported(keys: list[str]) -> frozenset[str]:
    """Arrays that exported graphs are not compared with: each needs a graph of its own.

    Of dropped layers, of counts of tokens and of unrolled schedules the first is left.
    """
    first: dict[str, str] = {}
    left_out: set[str] = set()
    for key in keys:
        match = PLANNED.fullmatch(key)
        if match is None:
            continue
        kind, count = (part for part in match.groups() if part is not None)
        if first.setdefault(kind, count) != count:
            left_out.add(key)
    return frozenset(left_out)
