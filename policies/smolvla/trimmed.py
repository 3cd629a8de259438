"""A SmolVLA policy under a plan: layers by pairs, narrower MLPs, less of the images, fewer tokens
and sampler steps.

A pair is a decoder layer and the expert layer that reads it. `layers` drops pairs; `expert_layers`
drops expert layers alone, and decoder layers behind the deepest reader go with them. Whatever is
deepest then computes keys and values only. A kept expert layer stays of its kind, by its original
index. Weights that a plan keeps whole are shared with the dense policy. Decides nothing: decisions
come in as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TypeVar

from torch import nn

from trimvla.policies.nn.gemma import narrow_mlp
from trimvla.policies.nn.grouped import GatedMlp
from trimvla.policies.nn.siglip import DroppedPatches, Siglip
from trimvla.policies.smolvla.checks import check
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.expert import Expert
from trimvla.policies.smolvla.kept import (
    blocks,
    expert_channels,
    image_side,
    kept_experts,
    kept_prefix,
    places,
    prefix_channels,
    reads,
    tokens_per_image,
    tokens_seen,
)
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import DeepestLayer, Prefix
from trimvla.policies.smolvla.vision import Vision, patches_of, table_rows
from trimvla.runtime.bundle.plan import Plan

Layer = TypeVar("Layer", bound=nn.Module)


def trim(policy: SmolVla, plan: Plan) -> SmolVla:
    """The policy under the plan; the dense policy itself where the plan keeps everything.

    Raises:
        ConfigError: the plan is for another config, or needs what this one does not have.
    """
    cfg = policy.cfg
    check(plan, cfg)
    if plan.dense:
        return policy
    made = SmolVla(
        cfg,
        trim_vision(policy.vision, cfg, plan),
        trim_prefix(policy.prefix, cfg, plan),
        trim_expert(policy.expert, cfg, plan),
        plan=plan,
        reads=reads(plan, cfg),
    )
    return made.train(policy.training)


def trim_vision(dense: Vision, cfg: SmolVlaConfig, plan: Plan) -> Vision:
    """Kept blocks, for images of the plan's size, with patches that leave on the way."""
    if plan.vision is None:
        return dense
    encoder = dense.encoder
    grid = image_side(plan, cfg) // cfg.vision.patch_size
    seen = tokens_seen(plan, cfg)
    dropped = None
    if plan.vision.patches is not None and len(seen) < tokens_per_image(plan, cfg):
        after = plan.vision.patches.after
        dropped = DroppedPatches(after, patches_of(seen, grid, cfg.shuffle))
    made = Siglip(
        encoder.patch_embedding,
        encoder.position_embedding,
        [encoder.layers[index] for index in blocks(plan, cfg)],
        encoder.post_layernorm,
        positions=table_rows(grid, cfg),
        dropped=dropped,
    )
    return Vision(made, dense.connector, dense.shuffle)


def trim_prefix(dense: Prefix, cfg: SmolVlaConfig, plan: Plan) -> Prefix:
    """Kept layers at kept widths; the deepest without what nobody reads."""
    kept = kept_prefix(plan, cfg)
    channels = prefix_channels(plan, cfg)
    inner = [narrow(dense.layers[index], channels[index]) for index in kept[:-1]]
    rows = places(plan, cfg)
    visual = len(cfg.cameras) * tokens_per_image(plan, cfg)
    return Prefix(
        cfg,
        dense.embed_tokens,
        dense.state_proj,
        [*inner, DeepestLayer.sharing(dense.layers[kept[-1]])],
        tokens=plan.tokens,
        places=None if len(rows) == visual else rows,
        visual=visual,
    )


def trim_expert(dense: Expert, cfg: SmolVlaConfig, plan: Plan) -> Expert:
    """Kept layers at kept widths; everything else is shared."""
    channels = expert_channels(plan, cfg)
    kept = kept_experts(plan, cfg)
    return dense.with_layers(narrow(dense.layers[index], channels[index]) for index in kept)


def narrow(layer: Layer, channels: Sequence[int] | None) -> Layer:
    """The layer with only these channels of its MLP; the rest is shared."""
    if channels is None:
        return layer
    made = copy(layer)
    mlp = layer.get_submodule("mlp")
    assert isinstance(mlp, GatedMlp)
    made._modules = {**layer._modules, "mlp": narrow_mlp(mlp, channels)}
    return made
