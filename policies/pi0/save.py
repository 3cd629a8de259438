"""A pi0 policy as LeRobot's `save_pretrained` lays it out: config, weights, statistics, tokenizer.

The inverse of `source`: what is trained here is opened like any checkpoint. Sizes that no shape
shows go into architecture.json. Knows the layout; trains nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.nn.lerobot_folder import (
    FEATURES,
    NORM_MAP,
    Fields,
    Statistics,
    feature,
    image_features,
    write_folder,
    write_json,
)
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.layout import sources, stored_shapes
from trimvla.policies.pi0.model import Pi0

NORMALIZER_STEP = 0  # of LeRobot's preprocessor
PREFIX = "model."


def save_lerobot(
    policy: Pi0,
    directory: Path,
    *,
    statistics: Statistics,
    tokenizer: Tokenizer,
    epsilon: float,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a dense policy into a folder, and return it; weights appear complete or not at all."""
    write_folder(
        directory,
        stored_weights(policy, dtype),
        lerobot_config(policy.cfg),
        statistics=statistics,
        tokenizer=tokenizer,
        epsilon=epsilon,
        step=NORMALIZER_STEP,
    )
    write_json(directory / "architecture.json", architecture(policy.cfg))
    return directory


def stored_weights(policy: Pi0, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights by LeRobot's names and in its shapes."""
    ours = policy.state_dict()
    shapes = stored_shapes(policy.cfg)
    stored: dict[str, Tensor] = {}
    for name, source in sources(policy.cfg).items():
        weight = ours[name].detach().to("cpu", torch.float32) - source.offset
        shape = shapes[source.name]
        if source.columns is None:
            stored[source.name] = weight.reshape(shape)
            continue
        whole = stored.setdefault(source.name, torch.zeros(shape))
        whole[:, slice(*source.columns)] = weight
    return {f"{PREFIX}{name}": weight.to(dtype).contiguous() for name, weight in stored.items()}


def lerobot_config(cfg: Pi0Config) -> Fields:
    """The fields of LeRobot's config.json for a policy, as far as they are read."""
    side = cfg.vision.image_size
    images = image_features(cfg.cameras, side)
    return {
        "type": cfg.family,
        "input_features": {**images, FEATURES["state"]: feature("STATE", [cfg.state_dim])},
        "output_features": {"action": feature("ACTION", [cfg.action_dim])},
        "chunk_size": cfg.horizon,
        "max_state_dim": cfg.padded_state_dim,
        "max_action_dim": cfg.padded_action_dim,
        "image_resolution": [side, side],
        "tokenizer_max_length": cfg.prompt.longest,
        "num_inference_steps": cfg.flow.steps,
        "min_period": cfg.flow.min_period,
        "max_period": cfg.flow.max_period,
        "normalization_mapping": NORM_MAP,
    }


def architecture(cfg: Pi0Config) -> Fields:
    """Sizes that neither config.json nor a shape shows."""
    language = cfg.language
    return {
        "family": cfg.family,
        "name": cfg.name,
        "vision": {"heads": cfg.vision.heads},
        "text": {
            "kv_heads": language.kv_heads,
            "norm_eps": language.norm_eps,
            "rope_theta": language.rope_theta,
        },
        "prompt": {"bos": cfg.prompt.bos_id, "pad": cfg.prompt.pad_id},
    }
