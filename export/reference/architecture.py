"""`architecture.json` of a reference directory -> the policy's config.

The official checkpoint does not hold its own sizes; a reference directory states them in this file
(the format is in docs/reference/reference-format.md). Knows the file's fields; reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimvla.policies.sizes.config import (
    Activation,
    DiffusionConfig,
    HeadConfig,
    LanguageConfig,
    PolicyConfig,
    ProjectorConfig,
    PromptConfig,
    VitConfig,
)
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_json

ENCODERS = ("dino", "siglip")  # channel order of the concatenated features
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "silu": "silu"}

# what the modules implement and a file may not contradict: section, field, value
FIXED = (
    ("llm", "hidden_act", "silu"),
    ("llm", "tie_word_embeddings", False),
    ("action_model", "noise_schedule", "squaredcos_cap_v2"),
    ("action_model", "learn_sigma", False),
    ("action_model", "past_action_window_size", 0),
)

Section = Mapping[str, Any]


def read_architecture(directory: Path) -> dict[str, Any]:
    """`architecture.json` of a reference directory, of any family. Raises ConfigError."""
    path = directory / "architecture.json"
    found = read_json(path, "the sizes of a reference policy")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def policy_config(architecture: Section) -> PolicyConfig:
    """Build the config that a reference directory's `architecture.json` describes.

    Raises:
        ConfigError: a field is missing, or needs something that the modules do not do.
    """
    try:
        _check_fixed(architecture)
        return PolicyConfig(
            name=str(architecture["action_model"]["type"]),
            vision=tuple(_vit(name, architecture) for name in ENCODERS),
            projector=_projector(architecture["projector"]),
            language=_language(architecture["llm"]),
            head=_head(architecture["action_model"]),
            diffusion=DiffusionConfig(train_steps=architecture["action_model"]["diffusion_steps"]),
            prompt=_prompt(architecture["llm"]),
        )
    except KeyError as error:
        raise ConfigError(f"architecture.json: expected field {error}, got none") from error


def _check_fixed(architecture: Section) -> None:
    for section, field, value in FIXED:
        found = architecture[section].get(field, value)
        if found != value:
            raise ConfigError(
                f"architecture.json: expected {value!r}, got {found!r} for '{section}.{field}'"
            )
    language = architecture["llm"]
    if language["num_key_value_heads"] != language["num_attention_heads"]:
        raise ConfigError("architecture.json: expected as many key-value heads as heads in 'llm'")


def _vit(name: str, architecture: Section) -> VitConfig:
    section = architecture[name]
    class_token = section["num_prefix_tokens"] > section["reg_tokens"]
    return VitConfig(
        name=f"{name}_featurizer",
        image_size=architecture["image_size"],
        patch_size=architecture["patch_size"],
        width=section["embed_dim"],
        depth=section["depth"],
        heads=section["num_heads"],
        mlp_hidden=section["mlp_hidden"],
        feature_block=section["feature_block_index"],
        mean=tuple(section["mean"]),
        std=tuple(section["std"]),
        class_token=class_token,
        registers=section["reg_tokens"],
        layer_scale=section["layer_scale"],
        attention_pool=not class_token,  # timm pools with attention where there is no class token
        norm_eps=section["layer_norm_eps"],
        activation=ACTIVATIONS[section["act"]],
    )


def _projector(section: Section) -> ProjectorConfig:
    return ProjectorConfig(hidden=(section["hidden_dim"], section["out_dim"]))


def _language(section: Section) -> LanguageConfig:
    return LanguageConfig(
        width=section["hidden_size"],
        layers=section["num_hidden_layers"],
        heads=section["num_attention_heads"],
        mlp_hidden=section["intermediate_size"],
        vocab=section["vocab_size"],
        norm_eps=section["rms_norm_eps"],
        rope_theta=section["rope_theta"],
    )


def _head(section: Section) -> HeadConfig:
    return HeadConfig(
        depth=section["depth"],
        width=section["hidden_size"],
        heads=section["num_heads"],
        mlp_ratio=section["mlp_ratio"],
        horizon=section["chunk"],
        action_dim=section["action_dim"],
        frequency=section["frequency_embedding_size"],
    )


def _prompt(section: Section) -> PromptConfig:
    return PromptConfig(
        bos_id=section["bos_token_id"],
        eos_id=section["eos_token_id"],
        empty_id=section["empty_token_id"],
        pad_id=section["pad_token_id"],
    )
