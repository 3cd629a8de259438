"""A pi0 policy as LeRobot's `save_pretrained` lays it out: config, weights, statistics, tokenizer.

The inverse of `source`: what is trained here is opened like any checkpoint. Sizes that no shape
shows go into architecture.json. Knows the layout; trains nothing.
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

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.layout import sources, stored_shapes
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.pi0.source import IMAGES

NORMALIZER_FILE = "policy_preprocessor_step_0_normalizer_processor.safetensors"
NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
FEATURES = {"action": "action", "state": "observation.state"}
PREFIX = "model."
Statistics = Mapping[str, Mapping[str, list[float]]]
"""Feature -> "mean" and "std" -> a number a dimension."""


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
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "model.safetensors.partial"
    save_file(stored_weights(policy, dtype), partial, metadata={"format": "pt"})
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
    _write(directory / "architecture.json", architecture(policy.cfg))
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


def lerobot_config(cfg: Pi0Config) -> dict[str, Any]:
    """The fields of LeRobot's config.json for a policy, as far as they are read."""
    side = cfg.vision.image_size
    images = {f"{IMAGES}{name}": _feature("VISUAL", [3, side, side]) for name in cfg.cameras}
    return {
        "type": cfg.family,
        "input_features": {**images, FEATURES["state"]: _feature("STATE", [cfg.state_dim])},
        "output_features": {"action": _feature("ACTION", [cfg.action_dim])},
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


def preprocessor(epsilon: float) -> dict[str, Any]:
    """The one step of LeRobot's pipeline that holds numbers."""
    step = {
        "registry_name": "normalizer_processor",
        "config": {"eps": epsilon, "norm_map": NORM_MAP},
        "state_file": NORMALIZER_FILE,
    }
    return {"name": "policy_preprocessor", "steps": [step]}


def architecture(cfg: Pi0Config) -> dict[str, Any]:
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


def _feature(kind: str, shape: list[int]) -> dict[str, Any]:
    return {"type": kind, "shape": shape}


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
