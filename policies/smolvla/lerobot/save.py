"""A SmolVLA policy as LeRobot's `save_pretrained` lays it out: config, weights, statistics,
tokenizer, and the language model's config in a folder of its own.

The inverse of `source`: LeRobot's own class opens it strictly, so what no action depends on is
written too, as zeros. Knows the layout; trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.smolvla.checkpoint import HEAD, deepest_names, stored_shapes, theirs
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.lerobot.sizes import IMAGES
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import PrefixLayer

NORMALIZER_FILE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
FEATURES = {"action": "action", "state": "observation.state"}
VLM_FOLDER = "vlm"
Statistics = Mapping[str, Mapping[str, list[float]]]
"""Feature -> "mean" and "std" -> a number a dimension."""


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
    partial = directory / "model.safetensors.partial"
    save_file(stored_weights(policy), partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors makes it private
    partial.replace(directory / "model.safetensors")
    stored = {
        f"{FEATURES[feature]}.{name}": torch.tensor(values, dtype=torch.float32)
        for feature, table in statistics.items()
        for name, values in table.items()
    }
    save_file(stored, directory / NORMALIZER_FILE)
    (directory / NORMALIZER_FILE).chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(directory / "config.json", lerobot_config(policy.cfg))
    _write(directory / "policy_preprocessor.json", preprocessor(epsilon))
    _write(directory / VLM_FOLDER / "config.json", vlm_config(policy.cfg))
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


def lerobot_config(cfg: SmolVlaConfig) -> dict[str, Any]:
    """LeRobot's config.json, as far as it differs from what LeRobot assumes or is read here."""
    side = cfg.image_size
    images = {f"{IMAGES}{name}": _feature("VISUAL", [3, side, side]) for name in cfg.cameras}
    return {
        "type": cfg.family,
        "input_features": {**images, FEATURES["state"]: _feature("STATE", [cfg.state_dim])},
        "output_features": {"action": _feature("ACTION", [cfg.action_dim])},
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


def vlm_config(cfg: SmolVlaConfig) -> dict[str, Any]:
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


def preprocessor(epsilon: float) -> dict[str, Any]:
    """The one step of LeRobot's pipeline that holds numbers."""
    step = {
        "registry_name": "normalizer_processor",
        "config": {"eps": epsilon, "norm_map": NORM_MAP},
        "state_file": NORMALIZER_FILE,
    }
    return {"name": "policy_preprocessor", "steps": [step]}


def _feature(kind: str, shape: list[int]) -> dict[str, Any]:
    return {"type": kind, "shape": shape}


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
