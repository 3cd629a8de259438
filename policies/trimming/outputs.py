"""What a policy gives on calibration samples, and how far that moves when language layers are left
out: what the output-aware criteria look at.

Everything is computed in torch through the family's own stages, with the same noise for the dense
policy and the others. What lies before the language stage is computed once. Knows no criterion and
decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from trimvla.policies.stage import Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

Measured = Literal["feature", "chunk"]
"""The cognition feature, or the action chunk."""
TENSORS: Mapping[Measured, str] = {"feature": "cognition", "chunk": "actions"}
MOST_SAMPLES = 24
"""A greedy order needs about layers^2 / 2 runs of every sample; more samples change it little."""
STILL = 1e-3
"""A dimension whose spread is below this share of the widest one does not count: it is padding."""

Sample = Mapping[str, Tensor]


class Runnable(Protocol):
    """The parts of a family's row that run a policy (`policies.families.Family`)."""

    @property
    def trim(self) -> Any:  # noqa: ANN401 - the family's policy
        """(dense policy, plan) -> the policy under the plan."""
        ...

    @property
    def stages(self) -> Any:  # noqa: ANN401 - a callable of the family's config
        """(cfg, plan, guided) -> its stages."""
        ...

    @property
    def tensor_specs(self) -> Any:  # noqa: ANN401 - a callable of the family's config
        """(cfg, plan) -> every tensor that crosses a stage's border."""
        ...


class Outputs:
    """One dense policy on some samples."""

    def __init__(
        self,
        family: Runnable,
        policy: Any,  # noqa: ANN401 - the family's policy
        samples: Sequence[Sample],
        seed: int = 0,
    ) -> None:
        """Nothing is computed yet.

        Args:
            family: what trims and runs it.
            policy: dense, with `cfg`.
            samples: input tensors by name, ids without padding; of more than `MOST_SAMPLES`, that
                many are taken, evenly spread.
            seed: of the noise.
        """
        self.family = family
        self.policy = policy
        rows = np.linspace(0, len(samples) - 1, min(len(samples), MOST_SAMPLES)).round()
        self.samples = [samples[int(row)] for row in rows]
        self.seed = seed

    def distances(self, kept: Sequence[int], of: Measured) -> list[float]:
        """How far the outputs are from the dense ones when each of the kept layers goes too.

        Args:
            kept: language layers that are there, at least two, ascending.
            of: what is compared.

        Returns:
            One `distance` for each of `kept`.
        """
        return [
            self.distance(Plan(layers=tuple(layer for layer in kept if layer != gone)), of)
            for gone in kept
        ]

    def distance(self, plan: Plan, of: Measured) -> float:
        """How far the outputs under a plan are from the dense ones: mean square of the difference,
        each dimension in units of its own spread over all samples of the dense policy.

        Raises:
            ConfigError: the policy has no such output, or all samples are alike.
        """
        name = self._name(of)
        dense = self._dense[name]
        made = torch.stack([tensors[name] for tensors in self._run(plan)])
        flat = dense.flatten(0, -2)
        spread = flat.std(dim=0, correction=0)
        counts = spread > STILL * spread.max()
        if not counts.any():
            raise ConfigError(
                f"expected calibration samples on which '{name}' differs, got"
                f" {len(self.samples)} alike"
            )
        moved = (made - dense).flatten(0, -2)[:, counts] / spread[counts]
        return float(moved.square().mean())

    def _name(self, of: Measured) -> str:
        name = TENSORS[of]
        given = {output for stage in self._stages(Plan()) for output in stage.outputs}
        if name not in given:
            raise ConfigError(
                f"expected a policy with a tensor '{name}' for this criterion, got"
                f" {sorted(given)}: a criterion of the action chunk works for every policy"
            )
        return name

    def _stages(self, plan: Plan) -> tuple[Stage, ...]:
        return self.family.stages(self.policy.cfg, plan, False)

    @cached_property
    def _given(self) -> list[dict[str, Tensor]]:
        """Every sample with its noise, where the policy draws some."""
        specs: Mapping[str, TensorSpec] = self.family.tensor_specs(self.policy.cfg, Plan())
        if "noise" not in specs:
            return [dict(sample) for sample in self.samples]
        shape = tuple(int(axis) for axis in specs["noise"].shape)
        made: list[dict[str, Tensor]] = []
        for index, sample in enumerate(self.samples):
            generator = torch.Generator().manual_seed(self.seed * MOST_SAMPLES + index)
            made.append({**sample, "noise": torch.randn(shape, generator=generator)})
        return made

    @cached_property
    def _before(self) -> list[dict[str, Tensor]]:
        """The same up to the language stage."""
        first = self._stages(Plan())[:1]
        return [_run(first, self.policy, start) for start in self._given]

    @cached_property
    def _dense(self) -> dict[str, Tensor]:
        """The dense policy's outputs, stacked."""
        found = [_run(self._stages(Plan())[1:], self.policy, start) for start in self._before]
        names = [name for name in TENSORS.values() if name in found[0]]
        return {name: torch.stack([tensors[name] for tensors in found]) for name in names}

    def _run(self, plan: Plan) -> list[dict[str, Tensor]]:
        policy = self.family.trim(self.policy, plan)
        same = plan.vision is None
        stages = self._stages(plan)[1 if same else 0 :]
        starts = self._before if same else self._given
        return [_run(stages, policy, start) for start in starts]


@torch.no_grad()
def _run(
    stages: Sequence[Stage],
    policy: Any,  # noqa: ANN401 - the family's policy
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Stages one behind the other; everything that they were given and gave."""
    values = dict(tensors)
    for stage in stages:
        result = stage.module(policy)(*(values[name] for name in stage.inputs))
        given = result if isinstance(result, tuple) else (result,)
        values.update(zip(stage.outputs, given, strict=True))
    return values
