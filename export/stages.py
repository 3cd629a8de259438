"""The exported stages: one row each, with inputs, output, symbolic axes and how close a backend must come to torch.

Shapes are worked out from a policy's config; batch is always 1. Knows no file format and no backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimvla.policies.cogact import CogAct
from trimvla.policies.config import PolicyConfig
from trimvla.runtime.manifest import PromptSpec, StageSpec, TensorSpec

PROMPT_AXIS = "prompt"  # takes the values of the prompt buckets only


class VisionStage(nn.Module):
    """Picture to visual tokens."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.vision = policy.vision

    def forward(self, image: Tensor) -> Tensor:
        """uint8[1, S, S, 3] -> float[1, P, D]."""
        return self.vision(image)


class LanguageStage(nn.Module):
    """Visual tokens and prompt to the cognition feature."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.language = policy.language

    def forward(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> Tensor:
        """float[1, P, D], int64[1, L], int64[1] -> float[1, D]."""
        return self.language.cognition(visual, input_ids, last)


class ActionStage(nn.Module):
    """Cognition feature and noise to an action chunk: all DDIM steps, unrolled, with guidance."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, cognition: Tensor, noise: Tensor) -> Tensor:
        """float[1, D], float[1, H, A] -> float[1, H, A], normalised and not clipped."""
        return self.policy.act(cognition, noise)


@dataclass(frozen=True)
class Stage:
    """One graph. `tolerance` is the largest absolute difference from torch, in float32, on the same inputs."""

    name: str
    module: type[VisionStage] | type[LanguageStage] | type[ActionStage]
    inputs: tuple[str, ...]
    output: str
    tolerance: float


STAGES = (
    Stage("vision", VisionStage, ("image",), "visual", 1e-4),
    Stage("language", LanguageStage, ("visual", "input_ids", "last"), "cognition", 1e-4),
    Stage("action", ActionStage, ("cognition", "noise"), "actions", 1e-4),
)


def tensor_specs(cfg: PolicyConfig) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    side, patches, width = cfg.image_size, cfg.patches, cfg.language.width
    chunk = (1, cfg.head.horizon, cfg.head.action_dim)
    specs = (
        TensorSpec("image", "uint8", (1, side, side, 3)),
        TensorSpec("visual", "float32", (1, patches, width)),
        TensorSpec("input_ids", "int64", (1, PROMPT_AXIS)),
        TensorSpec("last", "int64", (1,)),
        TensorSpec("cognition", "float32", (1, width)),
        TensorSpec("noise", "float32", chunk),
        TensorSpec("actions", "float32", chunk),
    )
    return {spec.name: spec for spec in specs}


def stage_spec(cfg: PolicyConfig, stage: Stage, file: str) -> StageSpec:
    """What crosses the stage's border, for the manifest."""
    tensors = tensor_specs(cfg)
    return StageSpec(file, tuple(tensors[name] for name in stage.inputs), (tensors[stage.output],))


def prompt_spec(cfg: PolicyConfig) -> PromptSpec:
    """How the runtime makes this policy's prompts."""
    prompt = cfg.prompt
    return PromptSpec(
        template=prompt.template,
        bos_id=prompt.bos_id,
        suffix_ids=(prompt.empty_id, prompt.eos_id),
        pad_id=prompt.pad_id,
        buckets=prompt.buckets,
    )


def example_inputs(cfg: PolicyConfig, bucket: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A random picture, prompt of this bucket's length and noise, by tensor name.

    The picture is coarse blocks under fine noise, so that both low and high frequencies are excited.
    """
    side, prompt = cfg.image_size, cfg.prompt
    coarse = torch.rand(1, 4, 4, 3, generator=generator).repeat_interleave(-(-side // 4), 1)[:, :side]
    coarse = coarse.repeat_interleave(-(-side // 4), 2)[:, :, :side]
    fine = torch.rand(1, side, side, 3, generator=generator)
    ids = torch.randint(cfg.language.vocab, (1, bucket), generator=generator)
    last = int(torch.randint(bucket // 2, bucket, (1,), generator=generator))
    ids[:, 0], ids[:, last], ids[:, last + 1 :] = prompt.bos_id, prompt.eos_id, prompt.pad_id
    return {
        "image": (255 * (0.8 * coarse + 0.2 * fine)).to(torch.uint8),
        "input_ids": ids,
        "last": torch.tensor([last]),
        "noise": torch.randn(1, cfg.head.horizon, cfg.head.action_dim, generator=generator),
    }


def walk(policy: CogAct, tensors: dict[str, Tensor]) -> Iterator[tuple[Stage, dict[str, Tensor], Tensor]]:
    """Run the stages in torch, in order; yield each with its inputs and its output. Adds outputs to `tensors`."""
    for stage in STAGES:
        inputs = {name: tensors[name] for name in stage.inputs}
        with torch.no_grad():
            tensors[stage.output] = stage.module(policy)(**inputs)
        yield stage, inputs, tensors[stage.output]
