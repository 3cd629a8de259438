"""CogACT's stages: one row each, with what crosses its border. Batch is always 1.

    image -> vision -> visual; visual, input_ids, last -> language -> cognition; cognition, noise ->
    action -> actions

Shapes are worked out from a policy's config and plan. Knows no file format and no backend.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.diffusion import Known, guided
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import visual_tokens
from trimvla.policies.stage import PROMPT_AXIS, SAMPLED_TOLERANCE, Stage
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()


class VisionStage(nn.Module):
    """Image to visual tokens."""

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
    """The same where visual tokens are dropped; also gives the kept ones, so that a runtime can
    show them.
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


class GuidedActionStage(nn.Module):
    """The same, with rows that are known: frozen or guided towards (real-time chunking)."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, cognition: Tensor, noise: Tensor, known: Tensor, weight: Tensor) -> Tensor:
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


class ReuseStep(nn.Module):
    """One sampler step that adds an earlier step's residual instead."""

    def __init__(self, policy: CogAct) -> None:
        super().__init__()
        self.head = policy.head
        self.guidance = guidance_scale(policy)

    def forward(self, cognition: Tensor, x: Tensor, t: Tensor, residual: Tensor) -> Tensor:
        """As `FullStep.forward`, with its residual as an input -> float[1, H, A]."""
        return guided(CachedDit(self.head, (), residual), cognition, self.guidance)(x, t)


STAGES = (
    Stage("vision", VisionStage, ("image",), ("visual",), 1e-4),
    Stage("language", LanguageStage, ("visual", "input_ids", "last"), ("cognition",), 1e-4),
    Stage("action", ActionStage, ("cognition", "noise"), ("actions",), SAMPLED_TOLERANCE),
)
KEPT = Stage("language", KeptLanguageStage, STAGES[1].inputs, ("cognition", "kept"), 1e-4)
GUIDED = Stage(
    "action_guided",
    GuidedActionStage,
    ("cognition", "noise", "known", "weight"),
    ("guided_actions",),
    SAMPLED_TOLERANCE,
    weights_of="action",
)
STEP_STAGES = (
    Stage("action_full", FullStep, ("cognition", "x", "t"), ("epsilon", "residual"), 1e-4),
    Stage("action_reuse", ReuseStep, ("cognition", "x", "t", "residual"), ("epsilon",), 1e-4),
)


def stages(cfg: PolicyConfig, plan: Plan = DENSE, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan; `guided` with the optional one."""
    found = STAGES if plan.tokens is None else (STAGES[0], KEPT, STAGES[2])
    return (*found, GUIDED) if guided else found


def guidance_scale(policy: CogAct) -> float:
    """Of the plan, else of the config."""
    return policy.plan.guidance_scale(policy.cfg.diffusion.guidance)


def tensor_specs(cfg: PolicyConfig, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    side = cfg.image_size
    width = cfg.language.width
    chunk = (1, cfg.head.horizon, cfg.head.action_dim)
    guidance = plan.guidance_scale(cfg.diffusion.guidance)
    visual = visual_tokens(cfg.patches, plan)
    kept = visual if plan.tokens is None else plan.tokens.keep
    residual = (2 if guidance > 1.0 else 1, cfg.head.horizon + 1, cfg.head.width)
    specs = (
        TensorSpec("image", "uint8", (1, side, side, 3)),
        TensorSpec("visual", "float32", (1, visual, width)),
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
        TensorSpec("residual", "float32", residual),
    )
    return {spec.name: spec for spec in specs}


def example_inputs(
    cfg: PolicyConfig, plan: Plan, bucket: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random image, prompt of this bucket's length and noise, by tensor name.

    The image is coarse blocks under fine noise, so that both low and high frequencies are excited.
    """
    side = cfg.image_size
    prompt = cfg.prompt
    coarse = torch.rand(1, 4, 4, 3, generator=generator)
    coarse = coarse.repeat_interleave(-(-side // 4), 1)[:, :side]
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
