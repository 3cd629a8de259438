"""A tiny SmolVLA policy of random weights, its inputs, and a checkpoint as LeRobot writes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from trimvla.policies.smolvla.checkpoint import dead_names, deepest_names, stored_shapes, theirs
from trimvla.policies.smolvla.config import (
    ExpertConfig,
    SmolVlaConfig,
    SmolVlaPromptConfig,
    TextConfig,
    siglip,
)
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import PrefixLayer
from trimvla.policies.smolvla.stages import example_inputs
from trimvla.runtime.bundle.plan import Plan

TINY = SmolVlaConfig(
    name="smolvla",
    cameras=("front", "wrist"),
    image_size=32,
    vision=siglip(image_size=32, patch_size=4, width=24, depth=3, heads=2, mlp=32),
    shuffle=2,
    text=TextConfig(width=32, layers=5, heads=4, kv_heads=2, head_dim=8, mlp_hidden=48, vocab=300),
    expert=ExpertConfig(width=24, mlp_hidden=64),
    prompt=SmolVlaPromptConfig(buckets=(8, 16)),
    horizon=6,
    action_dim=4,
    padded_action_dim=12,
    state_dim=5,
    padded_state_dim=10,
)


def random_policy(cfg: SmolVlaConfig = TINY, seed: int = 0) -> SmolVla:
    """Weights that every layer feels: torch's default ones, norms and biases moved."""
    torch.manual_seed(seed)
    policy = SmolVla.of(cfg).eval()
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embed" in name:
                weight.normal_(0.0, 0.2)
            else:
                weight.mul_(1.5)
    return policy


def inputs(cfg: SmolVlaConfig = TINY, plan: Plan | None = None, seed: int = 0) -> dict[str, Tensor]:
    """One observation of a prompt in the larger bucket, by tensor name."""
    generator = torch.Generator().manual_seed(seed)
    return example_inputs(cfg, plan or Plan(), cfg.prompt.longest, generator)


@torch.no_grad()
def act(policy: SmolVla, given: dict[str, Tensor]) -> Tensor:
    """The whole policy."""
    return policy(
        given["images"], given["input_ids"], given["last"] + 1, given["state"], given["noise"]
    )


def write_checkpoint(directory: Path, cfg: SmolVlaConfig = TINY, seed: int = 0) -> SmolVla:
    """A folder as LeRobot writes it, with dead weights of noise; the policy whose weights it
    holds.
    """
    policy = random_policy(cfg, seed)
    state = policy.state_dict()
    tensors = {theirs(name): weight for name, weight in state.items()}
    shapes = stored_shapes(cfg)
    tensors = {name: tensor.reshape(shapes[name]) for name, tensor in tensors.items()}
    tensors |= dead_tensors(cfg)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
    )
    write_config(directory, cfg)
    statistics = {
        f"{feature}.{name}": torch.rand(dim) + (1.0 if name == "std" else 0.0)
        for feature, dim in (("observation.state", cfg.state_dim), ("action", cfg.action_dim))
        for name in ("mean", "std")
    }
    save_file(statistics, directory / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    return policy


def dead_tensors(cfg: SmolVlaConfig) -> dict[str, Tensor]:
    """What a file holds besides: the language model's head and the rest of the deepest layer."""
    layer = PrefixLayer(cfg.text).state_dict()
    found = {
        name: torch.randn(cfg.text.width) if leaf == "norm" else torch.randn_like(layer[leaf])
        for name, leaf in deepest_names(cfg).items()
    }
    head = next(name for name in dead_names(cfg) if name.endswith("lm_head.weight"))
    return {**found, head: torch.randn(cfg.text.vocab, cfg.text.width)}


def write_config(directory: Path, cfg: SmolVlaConfig = TINY, **fields: Any) -> None:
    """config.json, with these fields changed (None: left out), and the language model's folder
    `vlm`.
    """
    image = {"type": "VISUAL", "shape": [3, 40, 60]}
    config = {
        "type": "smolvla",
        "input_features": {
            **{f"observation.images.{name}": image for name in cfg.cameras},
            "observation.state": {"type": "STATE", "shape": [cfg.state_dim]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [cfg.action_dim]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "chunk_size": cfg.horizon,
        "max_state_dim": cfg.padded_state_dim,
        "max_action_dim": cfg.padded_action_dim,
        "resize_imgs_with_padding": [cfg.image_size, cfg.image_size],
        "tokenizer_max_length": cfg.prompt.longest,
        "vlm_model_name": "vlm",
        "num_vlm_layers": cfg.text.layers,
        "self_attn_every_n_layers": cfg.expert.self_attention_every,
        **fields,
    }
    stated = {name: value for name, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(stated))
    (directory / "vlm").mkdir(exist_ok=True)
    text = msgspec.to_builtins(cfg.text)
    model = {
        "pad_token_id": cfg.prompt.pad_id,
        "text_config": {
            "num_attention_heads": text["heads"],
            "num_key_value_heads": text["kv_heads"],
            "head_dim": text["head_dim"],
            "rms_norm_eps": text["norm_eps"],
            "rope_theta": 123456.0,  # which nobody reads
        },
        "vision_config": {"num_attention_heads": cfg.vision.heads},
    }
    (directory / "vlm" / "config.json").write_text(json.dumps(model))
