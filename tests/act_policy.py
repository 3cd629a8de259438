"""A tiny ACT policy of random weights, and a checkpoint as LeRobot writes one.

Its ResNet cannot be small: the public class takes it as torchvision has it. So weights are drawn by
their names, the same wherever they are drawn, and only what LeRobot's own class (0.4.4) gave with
such weights is stored (`tests/act_tiny`: its config, processors and `reference.npz`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from trimvla.policies.act.checkpoint import build, dead_names, recipes, stored_shapes
from trimvla.policies.act.config import IMAGENET_MEAN, IMAGENET_STD, ActConfig
from trimvla.policies.act.model import Act

STORED = Path(__file__).parent / "act_tiny"
CASES = ("a", "b", "c")
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"

TINY = ActConfig(
    name="act",
    cameras=("front", "wrist"),
    image_height=48,
    image_width=80,
    mean=(IMAGENET_MEAN,) * 2,
    std=(IMAGENET_STD,) * 2,
    width=32,
    heads=4,
    mlp_hidden=48,
    encoder_layers=4,
    horizon=10,
    latent_dim=8,
    vae_layers=2,
)


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A stored weight, by its name: float32."""
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return np.float32(0.5) + np.abs(noise)
    if len(shape) == 1:
        return np.float32(0.2) * noise + np.float32(name.endswith(".weight"))
    gain = 0.5 if len(shape) == 4 else 2.0
    return noise * np.float32(np.sqrt(gain / np.prod(shape[1:])))


def write_weights(directory: Path, cfg: ActConfig) -> None:
    """`model.safetensors`, dead weights too."""
    weights = {name: drawn(name, shape) for name, shape in stored_shapes(cfg).items()}
    dead = {name: drawn(name, (2,)) for name in dead_names(cfg)}
    save_file({**weights, **dead}, directory / "model.safetensors")


def write_checkpoint(directory: Path, cfg: ActConfig = TINY, **fields: Any) -> Path:
    """A folder as LeRobot writes it; `fields` of config.json changed (None: left out)."""
    directory.mkdir(parents=True, exist_ok=True)
    image = {"type": "VISUAL", "shape": [3, cfg.image_height, cfg.image_width]}
    inputs = {f"observation.images.{name}": image for name in cfg.cameras}
    config = {
        "type": "act",
        "input_features": {
            **inputs,
            "observation.state": {"type": "STATE", "shape": [cfg.state_dim]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [cfg.action_dim]}},
        "normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ACTION"), "MEAN_STD"),
        "chunk_size": cfg.horizon,
        "vision_backbone": cfg.backbone,
        "dim_model": cfg.width,
        "n_heads": cfg.heads,
        "dim_feedforward": cfg.mlp_hidden,
        "n_encoder_layers": cfg.encoder_layers,
        "latent_dim": cfg.latent_dim,
        "use_vae": cfg.vae_layers > 0,
        "n_vae_encoder_layers": max(1, cfg.vae_layers),
        **fields,
    }
    stated = {name: value for name, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(stated))
    statistics: dict[str, np.ndarray] = {}
    for name in inputs:
        statistics[f"{name}.mean"] = np.array(IMAGENET_MEAN, np.float32).reshape(3, 1, 1)
        statistics[f"{name}.std"] = np.array(IMAGENET_STD, np.float32).reshape(3, 1, 1)
    rng = np.random.default_rng(0)
    for name, dim in (("observation.state", cfg.state_dim), ("action", cfg.action_dim)):
        statistics[f"{name}.mean"] = rng.random(dim, np.float32)
        statistics[f"{name}.std"] = rng.random(dim, np.float32) + np.float32(0.5)
    save_file(statistics, directory / NORMALIZER)
    write_weights(directory, cfg)
    return directory


def write_reference(directory: Path, case: str) -> Path:
    """A stored case, with the weights that LeRobot's class had: a reference directory."""
    from trimvla.policies.act.source import config_of

    shutil.copytree(STORED / case, directory)
    write_weights(directory, config_of(directory))
    return directory


def random_policy(cfg: ActConfig = TINY) -> Act:
    """The policy whose weights `write_weights` writes."""
    weights = {
        ours: recipe.make(*(torch.from_numpy(drawn(*one)) for one in recipe.stored.items()))
        for ours, recipe in recipes(cfg).items()
    }
    return build(cfg, weights)


def inputs(cfg: ActConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """One observation, by tensor name."""
    from trimvla.policies.act.stages import example_inputs
    from trimvla.runtime.bundle.plan import Plan

    return example_inputs(cfg, Plan(), 0, torch.Generator().manual_seed(seed))
