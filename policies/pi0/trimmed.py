"""A pi0 or pi0.5 policy under a plan: layers by pairs, narrower MLPs, fewer tokens, fewer or
lighter sampler steps.

A pair is a decoder layer and the expert layer that reads it. `layers` drops pairs; `expert_layers`
drops expert layers alone, and decoder layers behind the deepest reader go with them. Whatever is
deepest then computes keys and values only. Weights that a plan keeps whole are shared with the
dense policy. Decides nothing: decisions come as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TypeVar

from torch import nn

from trimvla.policies.nn.gemma import GemmaLayer, narrow_mlp
from trimvla.policies.nn.siglip import DroppedPatches, Siglip
from trimvla.policies.pi0.checks import check
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.expert import Expert, ExpertLayer
from trimvla.policies.pi0.kept import (
    expert_masks,
    kept_experts,
    kept_prefix,
    prefix_masks,
)
from trimvla.policies.pi0.model import Pi0, Vision
from trimvla.policies.pi0.prefix import Prefix
from trimvla.policies.trimming.places import seen_places
from trimvla.runtime.bundle.plan import Plan

Module = TypeVar("Module", bound=nn.Module)


def trim(policy: Pi0, plan: Plan) -> Pi0:
    """The policy under the plan; the dense policy itself where the plan keeps everything.

    Raises:
        ConfigError: the plan is for another config, or needs what this one does not have.
    """
    check(plan, policy.cfg)
    if plan.dense:
        return policy
    made = shallow(policy)
    made.plan = plan
    made.vision = trim_vision(policy.vision, policy.cfg, plan)
    made.language = trim_prefix(policy.language, policy.cfg, plan)
    made.expert = trim_expert(policy.expert, policy.cfg, plan)
    return made


def trim_vision(dense: Vision, cfg: Pi0Config, plan: Plan) -> Vision:
    """Kept blocks, and patches that leave on the way."""
    if plan.vision is None:
        return dense
    made = shallow(dense)
    encoder = dense.encoder
    kept = range(len(encoder.layers)) if plan.vision.blocks is None else plan.vision.blocks[0]
    patches = plan.vision.patches
    dropped = None if patches is None else DroppedPatches(patches.after, kept_patches(plan, cfg))
    made.encoder = Siglip(
        encoder.patch_embedding,
        encoder.position_embedding,
        [encoder.layers[index] for index in kept],
        encoder.post_layernorm,
        dropped=dropped,
    )
    return made


def trim_prefix(dense: Prefix, cfg: Pi0Config, plan: Plan) -> Prefix:
    """Kept layers at kept widths; the deepest without what nobody reads."""
    kept = kept_prefix(plan, cfg)
    readers = frozenset(kept_experts(plan, cfg))
    masks = prefix_masks(plan, cfg)
    layers = [narrow(dense.layers[i], masks[i]) for i in kept[:-1]]
    deepest = kept[-1]
    whole = dense.layers[deepest] if deepest < len(dense.layers) else None
    tail = whole.tail() if isinstance(whole, GemmaLayer) else dense.tail
    return Prefix(
        cfg,
        dense.embed_tokens,
        layers,
        tail,
        reads=[index in readers for index in kept[:-1]],
        tokens=plan.tokens,
        places=visual_places(plan, cfg),
    )


def narrow(module: nn.Module, channels: Sequence[int] | None) -> GemmaLayer:
    """A layer of the decoder with these channels of its MLP."""
    assert isinstance(module, GemmaLayer)
    return module if channels is None else with_mlp(module, narrow_mlp(module.mlp, channels))


def trim_expert(dense: Expert, cfg: Pi0Config, plan: Plan) -> Expert:
    """Kept layers at kept widths; everything else is shared."""
    masks = expert_masks(plan, cfg)
    made = shallow(dense)
    made.layers = nn.ModuleList(
        narrow_expert(dense.layers[index], masks[index]) for index in kept_experts(plan, cfg)
    )
    return made


def narrow_expert(module: nn.Module, channels: Sequence[int] | None) -> ExpertLayer:
    """An expert layer with these channels of its MLP."""
    assert isinstance(module, ExpertLayer)
    return module if channels is None else with_mlp(module, narrow_mlp(module.mlp, channels))


def shallow(module: Module) -> Module:
    """A module of the same parts, whose parts can be exchanged without touching the first."""
    made = copy(module)
    made._modules = dict(module._modules)
    return made


def with_mlp(layer: Module, mlp: nn.Module) -> Module:
    """A layer with another MLP; the rest is shared."""
    made = shallow(layer)
    made._modules["mlp"] = mlp
    return made


def kept_patches(plan: Plan, cfg: Pi0Config) -> tuple[int, ...]:
    """Patches of every image that the encoder gives, in raster order."""
    return seen_places(plan, cfg.patches)


def visual_places(plan: Plan, cfg: Pi0Config) -> tuple[int, ...] | None:
    """Positions of the visual rows, where the encoder drops some."""
    if plan.vision is None or plan.vision.patches is None:
        return None
    kept = kept_patches(plan, cfg)
    cameras = range(len(cfg.cameras))
    return tuple(camera * cfg.patches + patch for camera in cameras for patch in kept)
