"""The exported stages: one row each, with inputs, outputs, symbolic axes and how close a backend
must come to torch.

Shapes are worked out from a policy's config; batch is always 1. Knows no file format and no
backend.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.diffusion import Known, guided
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.stage import PROMPT_AXIS, SAMPLED_TOLERANCE, Stage
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.manifest import PromptSpec, StageSpec, TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()


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


class KeptLanguageStage(nn.Module):
    """The same where visual tokens are dropped; also says which ones were kept, so that a runtime
    can show them.
    """

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.language = policy.language

    def forward(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """float[1, P, D], int64[1, L], int64[1] -> float[1, D], int64[1, K] raster indices."""
        language = self.language
        assert isinstance(language, TrimmedDecoder)
        return language.cognition_and_kept(visual, input_ids, last)


class ActionStage(nn.Module):
    """Cognition feature and noise to an action chunk: all DDIM steps, unrolled, with guidance."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, cognition: Tensor, noise: Tensor) -> Tensor:
        """float[1, D], float[1, H, A] -> float[1, H, A], normalised and not clipped."""
        return self.policy.act(cognition, noise)


class GuidedActionStage(ActionStage):
    """The same, with rows that are known: frozen or guided towards (real-time chunking)."""

    def forward(self, cognition: Tensor, noise: Tensor, known: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `ActionStage.forward`; float[1, H, A] and float[1, H, 1] from 0 (free) to 1
        (frozen).
        """
        return self.policy.act(cognition, noise, Known(known, weight))


class FullStep(nn.Module):
    """One sampler step that runs the head's blocks: predicted noise, and what the blocks added to
    the stream.
    """

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.head = policy.head
        self.guidance = guidance_scale(policy)

    def forward(self, cognition: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """float[1, D], float[1, H, A], float[1] -> float[1, H, A], float[b, 1 + H, w]; b = 2 under
        guidance.
        """
        net = CachedDit(self.head, (0,))
        epsilon = guided(net, cognition, self.guidance)(x, t)
        assert net.residual is not None
        return epsilon, net.residual


class ReuseStep(FullStep):
    """One sampler step that adds an earlier step's residual instead."""

    def forward(self, cognition: Tensor, x: Tensor, t: Tensor, residual: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `FullStep.forward`, with its residual as an input -> float[1, H, A]."""
        return guided(CachedDit(self.head, (), residual), cognition, self.guidance)(x, t)


STAGES = (
    Stage("vision", VisionStage, ("image",), ("visual",), 1e-4),
    Stage("language", LanguageStage, ("visual", "input_ids", "last"), ("cognition",), 1e-4),
    Stage("action", ActionStage, ("cognition", "noise"), ("actions",), SAMPLED_TOLERANCE),
)


GUIDED = Stage(
    "action_guided",
    GuidedActionStage,
    ("cognition", "noise", "known", "weight"),
    ("guided_actions",),
    SAMPLED_TOLERANCE,
    weights_of="action",
)
KEPT = Stage("language", KeptLanguageStage, STAGES[1].inputs, ("cognition", "kept"), 1e-4)
STEP_STAGES = (
    Stage("action_full", FullStep, ("cognition", "x", "t"), ("epsilon", "residual"), 1e-4),
    Stage("action_reuse", ReuseStep, ("cognition", "x", "t", "residual"), ("epsilon",), 1e-4),
)


def stages_under(plan: Plan, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan; `guided` with the optional one."""
    stages = STAGES if plan.tokens is None else (STAGES[0], KEPT, STAGES[2])
    return (*stages, GUIDED) if guided else stages


def guidance_scale(policy: CogAct) -> float:
    """Of the plan, else of the config."""
    return policy.cfg.diffusion.guidance if policy.plan.guidance is None else policy.plan.guidance


def tensor_specs(cfg: PolicyConfig, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    side = cfg.image_size
    patches = cfg.patches
    width = cfg.language.width
    chunk = (1, cfg.head.horizon, cfg.head.action_dim)
    guided_by = cfg.diffusion.guidance if plan.guidance is None else plan.guidance
    kept = patches if plan.tokens is None else plan.tokens.keep
    specs = (
        TensorSpec("image", "uint8", (1, side, side, 3)),
        TensorSpec("visual", "float32", (1, patches, width)),
        TensorSpec("input_ids", "int64", (1, PROMPT_AXIS)),
        TensorSpec("last", "int64", (1,)),
        TensorSpec("cognition", "float32", (1, width)),
        TensorSpec("noise", "float32", chunk),
        TensorSpec("actions", "float32", chunk),
        TensorSpec("known", "float32", chunk),
        TensorSpec("weight", "float32", (1, cfg.head.horizon, 1)),
        TensorSpec("guided_actions", "float32", chunk),
        TensorSpec("kept", "int64", (1, kept)),
        TensorSpec("x", "float32", chunk),
        TensorSpec("t", "float32", (1,)),
        TensorSpec("epsilon", "float32", chunk),
        TensorSpec(
            "residual",
            "float32",
            (2 if guided_by > 1.0 else 1, cfg.head.horizon + 1, cfg.head.width),
        ),
    )
    return {spec.name: spec for spec in specs}


def stage_spec(cfg: PolicyConfig, stage: Stage, file: str, plan: Plan = DENSE) -> StageSpec:
    """What crosses the stage's border, for the manifest."""
    tensors = tensor_specs(cfg, plan)
    inputs, outputs = (
        tuple(tensors[name] for name in names) for names in (stage.inputs, stage.outputs)
    )
    return StageSpec(file, inputs, outputs)


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

    The picture is coarse blocks under fine noise, so that both low and high frequencies are
    excited.
    """
    side = cfg.image_size
    prompt = cfg.prompt
    coarse = torch.rand(1, 4, 4, 3, generator=generator).repeat_interleave(-(-side // 4), 1)[
        :, :side
    ]
    coarse = coarse.repeat_interleave(-(-side // 4), 2)[:, :, :side]
    fine = torch.rand(1, side, side, 3, generator=generator)
    ids = torch.randint(cfg.language.vocab, (1, bucket), generator=generator)
    last = int(torch.randint(bucket // 2, bucket, (1,), generator=generator))
    ids[:, 0] = prompt.bos_id
    ids[:, last] = prompt.eos_id
    ids[:, last + 1 :] = prompt.pad_id
    return {
        "image": (255 * (0.8 * coarse + 0.2 * fine)).to(torch.uint8),
        "input_ids": ids,
        "last": torch.tensor([last]),
        "noise": torch.randn(1, cfg.head.horizon, cfg.head.action_dim, generator=generator),
    }


def walk(
    policy: CogAct, tensors: dict[str, Tensor], guided: bool = False
) -> Iterator[tuple[Stage, dict[str, Tensor], dict[str, Tensor]]]:
    """Run the stages in torch, in order; yield each with its inputs and its outputs.

    Adds outputs to `tensors`.

    Where the optional stage is `guided`, the chunk that was sampled without it, three rows on, is
    what is known.
    """
    for stage in stages_under(policy.plan, guided):
        if stage is GUIDED:
            tensors |= known_rows(tensors["actions"])
        inputs = {name: tensors[name] for name in stage.inputs}
        with torch.no_grad():
            result = stage.module(policy)(*inputs.values())
        outputs = dict(
            zip(stage.outputs, result if isinstance(result, tuple) else (result,), strict=True)
        )
        tensors.update(outputs)
        yield stage, inputs, outputs


def known_rows(actions: Tensor, shift: int = 3) -> dict[str, Tensor]:
    """Inputs for the guided stage: float[1, H, A] `shift` rows on, two frozen, then ever less
    guided, the last free.
    """
    ahead = actions.shape[1] - shift
    known = torch.zeros_like(actions)
    known[:, :ahead] = actions[:, shift:]
    weight = torch.zeros(1, actions.shape[1], 1)
    weight[0, :ahead, 0] = torch.linspace(1.0 + 2.0 / ahead, 0.0, ahead).clamp(max=1.0)
    return {"known": known, "weight": weight}
