"""A policy's stages, whatever its family: what crosses their borders, and all of them run one after
the other in torch.

Families list their stages (`policies.families.Family.stages`); batch is always 1. Knows no file
format and no backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimvla.policies.families import family_of
from trimvla.policies.stage import Stage
from trimvla.runtime.bundle.manifest import GUIDED_SUFFIX, StageSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()
KEPT = "kept"
"""The output with the visual tokens that go on: an index, and so compared as one."""


def stages_of(policy: nn.Module, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy, dense or trimmed; `guided` with those that take known rows."""
    cfg: Any = policy.cfg
    plan: Any = policy.plan
    return family_of(cfg).stages(cfg, plan, guided)


def prompt_lengths(cfg: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Lengths of the prompt that a policy is exported for; none where it reads no instruction."""
    prompt = getattr(cfg, "prompt", None)
    return () if prompt is None else tuple(prompt.buckets)


def is_guided(stage: Stage) -> bool:
    """Whether it stands in for another one where rows are known."""
    return stage.name.endswith(GUIDED_SUFFIX)


def stage_spec(cfg: Any, stage: Stage, file: str, plan: Plan = DENSE) -> StageSpec:  # noqa: ANN401
    """What crosses the stage's border, for the manifest."""
    tensors = family_of(cfg).tensor_specs(cfg, plan)
    inputs = tuple(tensors[name] for name in stage.inputs)
    outputs = tuple(tensors[name] for name in stage.outputs)
    return StageSpec(file, inputs, outputs)


def walk(
    policy: nn.Module, tensors: dict[str, Tensor], guided: bool = False
) -> Iterator[tuple[Stage, dict[str, Tensor], dict[str, Tensor]]]:
    """Run the stages in torch, in order; yield each with its inputs and its outputs. Adds outputs
    to `tensors`.

    Where the optional stages are `guided`, the chunk that was sampled without them, three rows on,
    is what is known.
    """
    stages = stages_of(policy, guided)
    for stage in [*(s for s in stages if not is_guided(s)), *(s for s in stages if is_guided(s))]:
        if is_guided(stage):
            tensors |= known_rows(tensors["actions"])
        inputs = {name: tensors[name] for name in stage.inputs}
        outputs = run_stage(stage, policy, inputs)
        tensors.update(outputs)
        yield stage, inputs, outputs


def run_stage(stage: Stage, policy: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One stage in torch, by names."""
    with torch.no_grad():
        result = stage.module(policy)(*(inputs[name] for name in stage.inputs))
    values = result if isinstance(result, tuple) else (result,)
    return dict(zip(stage.outputs, values, strict=True))


def known_rows(actions: Tensor, shift: int = 3) -> dict[str, Tensor]:
    """Inputs for a guided stage: float[1, H, A] `shift` rows on, two frozen, then ever less
    guided, the last free.
    """
    ahead = actions.shape[1] - shift
    known = torch.zeros_like(actions)
    known[:, :ahead] = actions[:, shift:]
    weight = torch.zeros(1, actions.shape[1], 1)
    weight[0, :ahead, 0] = torch.linspace(1.0 + 2.0 / ahead, 0.0, ahead).clamp(max=1.0)
    return {"known": known, "weight": weight}
