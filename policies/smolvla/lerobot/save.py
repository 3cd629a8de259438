"""A SmolVLA policy as LeRobot's `save_pretrained` lays it out: config, weights, statistics,
tokenizer, and the language model's config in a folder of its own.

The inverse of `source`: LeRobot's own class opens it strictly, so what no action depends on is
written too, as zeros. Knows the layout; trains nothing.
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
from trimvla.policies.smolvla.checkpoint import HEAD, deepest_names, stored_shapes, theirs
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import PrefixLayer

VLM_FOLDER = "vlm"
NORMALIZER_STEP = 5  # of LeRobot's preprocessor


def save_lerobot(
    policy: SmolVla,
    directory: Path,
    *,
    statistics: Statistics,
    tokenizer: Tokenizer,
    epsilon: float = 1e-8,
) -> Path:
    """Write a dense policy in float32 into a folder, and return it; weights appear complete or
    not at all.
    """
    (directory / VLM_FOLDER).mkdir(parents=True, exist_ok=True)
    write_folder(
        directory,
        stored_weights(policy),
        lerobot_config(policy.cfg),
        statistics=statistics,
        tokenizer=tokenizer,
        epsilon=epsilon,
        step=NORMALIZER_STEP,
    )
    write_json(directory / VLM_FOLDER / "config.json", vlm_config(policy.cfg))
    return directory


def stored_weights(policy: SmolVla) -> dict[str, Tensor]:
    """The weights by LeRobot's names and in its shapes, with zeros for what no action needs."""
    shapes = stored_shapes(policy.cfg)
    live = {
        theirs(name): weight.detach().to("cpu", torch.float32)
        for name, weight in policy.state_dict().items()
    }
    stored = {name: weight.reshape(shapes[name]).contiguous() for name, weight in live.items()}
    return {**stored, **dead_weights(policy.cfg)}


def dead_weights(cfg: SmolVlaConfig) -> dict[str, Tensor]:
    """The language model's head, its norm, and the rest of the deepest layer: zeros."""
    with torch.device("meta"):
        layer = PrefixLayer(cfg.text).state_dict()
    deepest = {
        name: torch.zeros(cfg.text.width if leaf == "norm" else layer[leaf].shape)
        for name, leaf in deepest_names(cfg).items()
    }
    return {**deepest, HEAD: torch.zeros(cfg.text.vocab, cfg.text.width)}


def lerobot_config(cfg: SmolVlaConfig) -> Fields:
    """LeRobot's config.json, as far as it differs from what LeRobot assumes or is read here."""
    side = cfg.image_size
    images = image_features(cfg.cameras, side)
    return {
        "type": cfg.family,
        "input_features": {**images, FEATURES["state"]: feature("STATE", [cfg.state_dim])},
        "output_features": {"action": feature("ACTION", [cfg.action_dim])},
        "normalization_mapping": NORM_MAP,
        "chunk_size": cfg.horizon,
        "n_action_steps": cfg.horizon,
        "max_state_dim": cfg.padded_state_dim,
        "max_action_dim": cfg.padded_action_dim,
        "resize_imgs_with_padding": [side, side],
        "tokenizer_max_length": cfg.prompt.longest,
        "num_steps": cfg.flow.steps,
        "min_period": cfg.flow.min_period,
        "max_period": cfg.flow.max_period,
        "vlm_model_name": VLM_FOLDER,
        "load_vlm_weights": False,
        "num_vlm_layers": cfg.text.layers,
        "self_attn_every_n_layers": cfg.expert.self_attention_every,
        "expert_width_multiplier": cfg.expert.width / cfg.text.width,
        "device": "cpu",
    }


def vlm_config(cfg: SmolVlaConfig) -> Fields:
    """The language model's config.json, whose sizes LeRobot builds the policy from."""
    text = cfg.text
    vision = cfg.vision
    return {
        "model_type": "smolvlm",
        "pad_token_id": cfg.prompt.pad_id,
        "scale_factor": cfg.shuffle,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": text.width,
            "intermediate_size": text.mlp_hidden,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "head_dim": text.head_dim,
            "rms_norm_eps": text.norm_eps,
            "vocab_size": text.vocab,
            "pad_token_id": cfg.prompt.pad_id,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_hidden,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.norm_eps,
        },
    }
