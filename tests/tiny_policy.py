"""A policy of the CogACT shape that is small enough for every test, and its checkpoint in the
official layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trimvla.export.bundle import BundleRequest, export_policy
from trimvla.export.inputs import with_action
from trimvla.policies.cogact.layout import dead_weights, live_weights
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.source import inputs_and_output
from trimvla.policies.sizes.config import (
    DiffusionConfig,
    HeadConfig,
    LanguageConfig,
    PolicyConfig,
    ProjectorConfig,
    PromptConfig,
    VitConfig,
)
from trimvla.runtime.bundle.manifest import ActionKind, Manifest
from trimvla.runtime.bundle.plan import Plan

HALF = (0.5, 0.5, 0.5)

TINY = PolicyConfig(
    name="tiny",
    vision=(
        VitConfig(
            name="dino_featurizer",
            image_size=32,
            patch_size=8,
            width=32,
            depth=3,
            heads=2,
            mlp_hidden=64,
            feature_block=1,
            class_token=True,
            registers=2,
            layer_scale=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        VitConfig(
            name="siglip_featurizer",
            image_size=32,
            patch_size=8,
            width=16,
            depth=2,
            heads=2,
            mlp_hidden=40,
            feature_block=0,
            attention_pool=True,
            mean=HALF,
            std=HALF,
        ),
    ),
    projector=ProjectorConfig(hidden=(64, 32)),
    language=LanguageConfig(width=32, layers=3, heads=2, mlp_hidden=48, vocab=64),
    head=HeadConfig(depth=2, width=32, heads=2, frequency=32),
    diffusion=DiffusionConfig(inference_steps=2),
    prompt=PromptConfig(bos_id=1, eos_id=2, empty_id=3, pad_id=0, buckets=(12, 16)),
)


def random_policy(cfg: PolicyConfig = TINY, seed: int = 0) -> CogAct:
    """Every parameter random: no zero-initialised part may hide a mistake."""
    torch.manual_seed(seed)
    policy = CogAct(cfg)
    with torch.no_grad():
        for parameter in policy.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.normal_(std=fan_in**-0.5)
    return policy.eval()


def official_checkpoint(cfg: PolicyConfig = TINY) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights in the official layout, dead ones included: {group: {key: tensor}}."""
    shapes = {name: weight.shape for name, weight in live_weights(cfg).items()} | dead_weights(cfg)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        group, key = name.split(".", 1)
        fan_in = shape[-1] if len(shape) > 1 else 1
        groups.setdefault(group, {})[key] = torch.randn(shape, generator=generator) * fan_in**-0.5
    return groups


def write_official(directory: Path, groups: dict[str, dict[str, torch.Tensor]]) -> Path:
    """Write `directory/checkpoints/tiny.pt`."""
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save({"model": groups}, directory / "checkpoints" / "tiny.pt")
    return directory


def inputs(cfg: PolicyConfig = TINY, length: int = 12, last: int = 9) -> tuple[torch.Tensor, ...]:
    """Random (image, input_ids, last, noise) for one call, padded right of `last`."""
    side = cfg.image_size
    head = cfg.head
    image = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
    ids = torch.randint(4, cfg.language.vocab, (1, length))
    ids[:, 0] = cfg.prompt.bos_id
    ids[:, last] = cfg.prompt.eos_id
    ids[:, last + 1 :] = cfg.prompt.pad_id
    return image, ids, torch.tensor([last]), torch.randn(1, head.horizon, head.action_dim)


def export_cogact(
    policy: CogAct,
    plan: Plan,
    statistics: Mapping[str, Any],
    tokenizer: Path,
    out: Path,
    *,
    statistics_key: str,
    control_hz: float,
    kinds: Sequence[ActionKind] = (),
    **options: Any,
) -> Manifest:
    """`export_policy` of a CogACT with the inputs and output that its family describes."""
    described = inputs_and_output(policy.cfg, statistics_key)
    return export_policy(
        BundleRequest(
            policy=policy,
            described=with_action(described, control_hz, kinds),
            plan=plan,
            statistics=statistics,
            tokenizer=tokenizer,
            out=out,
            **options,
        )
    )
