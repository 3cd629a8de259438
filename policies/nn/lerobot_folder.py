"""A checkpoint in LeRobot's layout, written: what the flow families' folders have in common.

Weights, statistics and tokenizer as its `save_pretrained` leaves them. Knows files; no family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

IMAGES = "observation.images."
FEATURES = {"action": "action", "state": "observation.state"}
"""Our name of a feature -> LeRobot's."""
NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
Statistics = Mapping[str, Mapping[str, list[float]]]
"""Feature -> "mean" and "std" -> a number a dimension."""
Fields = dict[str, object]
"""Of a JSON file in LeRobot's words."""


def write_folder(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: Fields,
    *,
    statistics: Statistics,
    tokenizer: Tokenizer,
    epsilon: float,
    step: int,
) -> None:
    """Write a checkpoint into a folder, which is made; weights appear complete or not at all.

    Args:
        directory: where.
        weights: by LeRobot's names.
        config: config.json.
        statistics: see `Statistics`.
        tokenizer: of the prompt.
        epsilon: added to each standard deviation.
        step: which of the preprocessor's steps normalises, by which its file is named.
    """
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "model.safetensors.partial"
    save_file(dict(weights), partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors makes it private
    partial.replace(directory / "model.safetensors")
    stored = {
        f"{FEATURES[feature]}.{name}": torch.tensor(values, dtype=torch.float32)
        for feature, table in statistics.items()
        for name, values in table.items()
    }
    normalizer = directory / f"policy_preprocessor_step_{step}_normalizer_processor.safetensors"
    save_file(stored, normalizer)
    normalizer.chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "config.json", config)
    write_json(directory / "policy_preprocessor.json", _preprocessor(epsilon, normalizer.name))


def feature(kind: str, shape: list[int]) -> Fields:
    """One of config.json's input or output features."""
    return {"type": kind, "shape": shape}


def image_features(cameras: tuple[str, ...], side: int) -> Fields:
    """Square images of some cameras, as input features."""
    return {f"{IMAGES}{name}": feature("VISUAL", [3, side, side]) for name in cameras}


def write_json(path: Path, fields: Fields) -> None:
    """Write a table, indented."""
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _preprocessor(epsilon: float, state_file: str) -> Fields:
    """The one step of LeRobot's pipeline that holds numbers."""
    step = {
        "registry_name": "normalizer_processor",
        "config": {"eps": epsilon, "norm_map": NORM_MAP},
        "state_file": state_file,
    }
    return {"name": "policy_preprocessor", "steps": [step]}
