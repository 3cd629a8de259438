"""A directory that a user has of pi0 or pi0.5, opened: sizes, cameras, statistics and tokenizer
from its files.

LeRobot's config.json and processor files, or openpi's config.json and assets. Neither holds widths:
those come from the weights' shapes, and heads, which no shape shows, from the published sizes or
from an `architecture.json` beside the weights. Reads no weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.lerobot_fields import Fields
from trimvla.policies.pi0.checkpoint import open_weights, openpi_names, prefix_of
from trimvla.policies.pi0.config import (
    CAMERAS,
    LONGEST,
    PRESETS,
    SO400M_HEADS,
    SO400M_WIDTH,
    TEMPLATES,
    ExpertConfig,
    FlowConfig,
    GemmaConfig,
    Pi0Config,
    Pi0PromptConfig,
    Variant,
    buckets_up_to,
    siglip,
)
from trimvla.policies.pi0.layout import DECODER, EXPERT, TABLE, TOWER
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.statistics import (
    Statistics,
    lerobot_epsilon,
    lerobot_modes,
    read_lerobot,
    read_openpi,
)
from trimvla.policies.weight_names import missing
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

CONFIG = "config.json"
SIZES = "architecture.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_PLACES = (TOKENIZER, "tokenizer/tokenizer.json")
TYPES: dict[str, Variant] = {"pi0": "pi0", "pi05": "pi05"}
IMAGES = "observation.images."
EMPTY = re.compile(r"empty_camera_\d+")  # slots that a robot has no camera for
OPENPI_EPSILON = 1e-6
ENCODER_LAYER = re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.layer_norm1\.weight")
DECODER_LAYER = re.compile(re.escape(DECODER) + r"layers\.(\d+)\.input_layernorm\.weight")

Shapes = Mapping[str, tuple[int, ...]]


def variant_of(directory: Path) -> Variant | None:
    """Which of the two a directory holds, by config.json; None where it is neither."""
    path = directory / CONFIG
    if not path.is_file():
        return None
    config = read_json(path, "a policy's config", error=CheckpointError)
    if not isinstance(config, dict):
        return None
    if "type" in config:
        return TYPES.get(str(config["type"]))
    if "paligemma_variant" in config and "action_horizon" in config:
        names = openpi_names(SafetensorsFiles(directory))  # openpi's config.json does not name it
        return "pi05" if "time_mlp_in.weight" in names else "pi0"
    return None


def open_checkpoint(
    directory: Path,
    *,
    preset: str | None = None,
    statistics_key: str | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """See `Family.open_checkpoint`.

    Raises:
        ConfigError: a preset that is not this policy, or statistics that need a key.
        CheckpointError: config.json, weights or statistics that are missing or do not fit each
            other.
    """
    variant = variant_of(directory)
    if variant is None:
        raise CheckpointError(
            f"{directory}: expected config.json of type 'pi0' or 'pi05', or openpi's"
        )
    config = read_json(directory / CONFIG, "a policy's config", error=CheckpointError)
    found = (_lerobot if "type" in config else _openpi)(directory, config, variant, statistics_key)
    cfg = found.cfg
    if preset is not None:
        _check_preset(preset, cfg)
    return Checkpoint(
        cfg=cfg,
        weights=open_weights(directory, cfg),
        statistics=found.statistics.features,
        statistics_key=found.statistics.key,
        tokenizer=find_tokenizer(directory, tokenizer),
        cameras=cfg.cameras,
        directory=directory,
        extra={"modes": found.modes, "epsilon": found.epsilon, "openpi": found.openpi},
    )


def find_tokenizer(directory: Path, chosen: Path | None) -> Path | None:
    """The tokenizer that the user chose, else the one beside the weights; None where there is
    none.
    """
    places = [directory / place for place in TOKENIZER_PLACES] if chosen is None else [chosen]
    return next((path for path in places if path.is_file()), None)


@dataclass(frozen=True)
class Found:
    """What the files around the weights contain."""

    cfg: Pi0Config
    statistics: Statistics
    modes: Mapping[str, str]
    epsilon: float
    openpi: bool


def _check_preset(preset: str, cfg: Pi0Config) -> None:
    """ConfigError where the preset is none of this family, or has other widths than the weights."""
    presets = PRESETS[cfg.family]
    if preset not in presets:
        raise ConfigError(f"expected --preset as one of {sorted(presets)}, got {preset!r}")
    wanted = presets[preset]
    for name in ("vision", "language", "expert"):
        if getattr(wanted, name) != getattr(cfg, name):
            got = msgspec.to_builtins(getattr(cfg, name))
            raise ConfigError(f"expected a checkpoint of the sizes of --preset {preset}, got {got}")


# --- LeRobot ---


def _lerobot(
    directory: Path, config: Mapping[str, Any], variant: Variant, key: str | None
) -> Found:
    """A directory that LeRobot's `save_pretrained` wrote."""
    fields = Fields(directory / CONFIG, config)
    inputs = fields.features("input_features")
    cameras = tuple(
        camera_name(name)
        for name, feature in inputs.items()
        if feature.get("type") == "VISUAL" and not EMPTY.search(name)
    )
    actions = fields.features("output_features").get("action", {})
    longest = fields.count("tokenizer_max_length", LONGEST[variant])
    padded_state = fields.count("max_state_dim", 32)
    padded_action = fields.count("max_action_dim", 32)
    cfg = _config(
        directory,
        variant,
        flow=FlowConfig(
            steps=fields.count("num_inference_steps", 10),
            min_period=fields.number("min_period", 4e-3),
            max_period=fields.number("max_period", 4.0),
        ),
        longest=longest,
        cameras=cameras,
        horizon=fields.count("chunk_size", 50),
        action_dim=_dim(actions, padded_action),
        padded_action_dim=padded_action,
        state_dim=_dim(inputs.get("observation.state", {}), padded_state),
        padded_state_dim=padded_state,
    )
    resolution = config.get("image_resolution", config.get("resize_imgs_with_padding"))
    side = cfg.vision.image_size
    if resolution is not None and list(resolution) != [side, side]:
        raise CheckpointError(
            f"{fields.path}: expected image_resolution {[side, side]}, as the position table has"
            f" it, got {resolution}"
        )
    statistics = read_lerobot(directory, key)
    return Found(cfg, statistics, lerobot_modes(directory), lerobot_epsilon(directory), False)


def camera_name(feature: str) -> str:
    """`observation.images.base` -> `base`; `observation.image` -> `image`."""
    return feature.removeprefix(IMAGES).removeprefix("observation.")


def _dim(feature: object, padded: int) -> int:
    """Length of a feature's vector, or the padded one where the feature is not described."""
    shape = feature.get("shape") if isinstance(feature, dict) else None
    return int(shape[0]) if isinstance(shape, list) and len(shape) == 1 else padded


# --- openpi ---


def _openpi(directory: Path, config: Mapping[str, Any], variant: Variant, key: str | None) -> Found:
    """A directory that openpi's converter to PyTorch wrote."""
    fields = Fields(directory / CONFIG, config)
    statistics = read_openpi(directory, key)
    mode = "quantiles" if variant == "pi05" else "mean_std"
    wanted = "q01" if variant == "pi05" else "mean"
    padded = fields.count("action_dim", 32)
    cfg = _config(
        directory,
        variant,
        flow=FlowConfig(),
        longest=LONGEST[variant],
        cameras=CAMERAS,
        horizon=fields.count("action_horizon", 50),
        action_dim=min(padded, len(statistics.array("action", wanted))),
        padded_action_dim=padded,
        state_dim=min(padded, len(statistics.array("state", wanted))),
        padded_state_dim=padded,
        image_dtype="uint8",
    )
    return Found(cfg, statistics, {"state": mode, "action": mode}, OPENPI_EPSILON, True)


# --- sizes ---


def _config(
    directory: Path,
    variant: Variant,
    *,
    flow: FlowConfig,
    longest: int,
    **described: Any,  # noqa: ANN401
) -> Pi0Config:
    """The config of these words and of the weights' shapes."""
    files = SafetensorsFiles(directory)
    shapes = {name: files.shape(stored) for name, stored in openpi_names(files).items()}
    sizes = _read_sizes(directory / SIZES)
    try:
        return Pi0Config(
            family=variant,
            name=str(sizes.get("name", variant)),
            vision=_vision(shapes, sizes.get("vision", {}), directory),
            language=_language(shapes, sizes.get("text", {})),
            expert=ExpertConfig(
                width=shapes["action_in_proj.weight"][0],
                mlp_hidden=shapes[f"{EXPERT}model.layers.0.mlp.gate_proj.weight"][0],
            ),
            flow=flow,
            prompt=_prompt(variant, longest, sizes.get("prompt", {})),
            **described,
        )
    except KeyError as error:
        raise missing(files.place, prefix_of(files) + str(error.args[0]), files) from None


def _read_sizes(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    sizes = read_json(path, "a policy's sizes", error=CheckpointError)
    if not isinstance(sizes, dict):
        raise CheckpointError(f"{path}: expected a table of sizes, got {type(sizes).__name__}")
    return sizes


def _vision(shapes: Shapes, sizes: Mapping[str, Any], directory: Path):  # noqa: ANN202
    width, _, patch, _ = shapes[f"{TOWER}embeddings.patch_embedding.weight"]
    side = math.isqrt(shapes[f"{TOWER}embeddings.position_embedding.weight"][0])
    heads = sizes.get("heads", SO400M_HEADS if width == SO400M_WIDTH else None)
    if heads is None:
        raise CheckpointError(
            f"{directory / SIZES}: expected the number of heads under 'vision' for an encoder of"
            f" width {width}, which is not the published {SO400M_WIDTH}; no weight's shape shows it"
        )
    return siglip(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=_depth(ENCODER_LAYER, shapes),
        heads=heads,
        mlp=shapes[f"{TOWER}encoder.layers.0.mlp.fc1.weight"][0],
    )


def _language(shapes: Shapes, sizes: Mapping[str, Any]) -> GemmaConfig:
    vocab, width = shapes[TABLE]
    kv_heads = sizes.get("kv_heads", 1)  # of every published Gemma of these families
    head_dim = shapes[f"{DECODER}layers.0.self_attn.k_proj.weight"][0] // kv_heads
    return GemmaConfig(
        width=width,
        layers=_depth(DECODER_LAYER, shapes),
        heads=shapes[f"{DECODER}layers.0.self_attn.q_proj.weight"][0] // head_dim,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_hidden=shapes[f"{DECODER}layers.0.mlp.gate_proj.weight"][0],
        vocab=vocab,
        norm_eps=sizes.get("norm_eps", 1e-6),
        rope_theta=sizes.get("rope_theta", 10000.0),
    )


def _depth(pattern: re.Pattern[str], shapes: Shapes) -> int:
    """Layers with such a norm."""
    found = [int(match[1]) for name in shapes if (match := pattern.fullmatch(name))]
    return max(found, default=-1) + 1


def _prompt(variant: Variant, longest: int, sizes: Mapping[str, Any]) -> Pi0PromptConfig:
    return Pi0PromptConfig(
        template=TEMPLATES[variant],
        bos_id=sizes.get("bos", 2),
        pad_id=sizes.get("pad", 0),
        buckets=buckets_up_to(longest),
    )
