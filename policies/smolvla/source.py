"""A SmolVLA checkpoint that a user has, opened: sizes, cameras, statistics and tokenizer from
LeRobot's files.

config.json does not hold the language model's sizes: they come from the weights' shapes, and heads,
which no shape shows, from the config of the model that `vlm_model_name` names: a folder, or one of
the published ones that are known here. Reads no weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.sizes.config import VitConfig
from trimvla.policies.smolvla.checkpoint import CONNECTOR, EXPERT, TEXT, VISION, open_weights
from trimvla.policies.smolvla.config import (
    PRESETS,
    ExpertConfig,
    FlowConfig,
    SmolVlaConfig,
    SmolVlaPromptConfig,
    TextConfig,
    buckets_up_to,
    siglip,
)
from trimvla.policies.statistics import (
    Statistics,
    lerobot_epsilon,
    lerobot_modes,
    read_lerobot,
)
from trimvla.runtime.bundle.scale import LISTS
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TYPE = "smolvla"
IMAGES = "observation.images."
EMPTY = re.compile(r"empty_camera_\d+")  # slots that no robot has a camera for
STATE = "observation.state"
ACTION = "action"
PAD = 2  # <|im_end|> of SmolLM2's tokenizers; padding is never looked at
TEXT_LAYER = re.compile(re.escape(TEXT) + r"layers\.(\d+)\.input_layernorm\.weight")
VISION_LAYER = re.compile(re.escape(VISION) + r"encoder\.layers\.(\d+)\.layer_norm1\.weight")
# what the modules do, and a config.json may not contradict
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_mode": ("cross_attn", "self_attn"),
    "adapt_to_pi_aloha": (False,),
    "use_delta_joint_actions_aloha": (False,),
    "add_image_special_tokens": (False,),
    "n_obs_steps": (1,),
    "patch_positions": ("identity", "shifted"),
}


@dataclass(frozen=True)
class Vlm:
    """What no weight's shape shows of a vision-language model."""

    head_dim: int
    """Of the decoder."""
    vision_heads: int
    text_eps: float = 1e-5
    vision_eps: float = 1e-6
    pad_id: int = PAD


SMALL = Vlm(head_dim=64, vision_heads=12)
PUBLISHED = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": SMALL,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": SMALL,
    "HuggingFaceTB/SmolVLM-500M-Instruct": SMALL,
    "HuggingFaceTB/SmolVLM-256M-Instruct": SMALL,
}


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
    fields = read_fields(directory)
    cfg = read_config(directory, fields)
    if preset is not None:
        _check_preset(preset, cfg)
    modes = lerobot_modes(directory)
    statistics = read_lerobot(directory, statistics_key)
    for feature, dim in (("state", cfg.state_dim), ("action", cfg.action_dim)):
        _check_statistics(statistics, feature, modes[feature], dim)
    return Checkpoint(
        cfg=cfg,
        weights=open_weights(directory, cfg),
        statistics=statistics.features,
        statistics_key=statistics.key,
        tokenizer=find_tokenizer(directory, fields, tokenizer),
        cameras=cfg.cameras,
        directory=directory,
        extra={"modes": modes, "epsilon": lerobot_epsilon(directory)},
    )


def read_fields(directory: Path) -> Fields:
    """config.json. CheckpointError where it is not there, or of another policy."""
    path = directory / CONFIG
    config = read_json(path, "a policy's config", error=CheckpointError)
    if not isinstance(config, dict) or config.get("type") != TYPE:
        got = config.get("type") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path}: expected 'type' {TYPE!r}, got {got!r}")
    return Fields(path, config)


def find_tokenizer(directory: Path, fields: Fields, chosen: Path | None) -> Path | None:
    """The tokenizer that the user chose, else the one beside the weights or the model's; None where
    there is none.
    """
    if chosen is not None:
        return chosen if chosen.is_file() else None
    folders = [directory, *_folders(directory, fields.config.get("vlm_model_name"))]
    return next((f / TOKENIZER for f in folders if (f / TOKENIZER).is_file()), None)


def _folders(directory: Path, name: object) -> list[Path]:
    """Where a name may stand for a folder: in this one, or a path of its own."""
    return [directory / name, Path(name)] if isinstance(name, str) and name else []


def _check_statistics(statistics: Statistics, feature: str, mode: Any, dim: int) -> None:  # noqa: ANN401
    for name in LISTS[mode]:
        got = len(statistics.array(feature, name))
        if got != dim:
            raise CheckpointError(
                f"{statistics.where}: expected {dim} numbers, the dimension in {CONFIG}, for "
                f"'{name}' of "
                f"'{feature}', got {got}"
            )


def _check_preset(preset: str, cfg: SmolVlaConfig) -> None:
    """ConfigError where the preset is none of this family, or has other sizes than the weights."""
    if preset not in PRESETS:
        raise ConfigError(f"expected --preset as one of {sorted(PRESETS)}, got {preset!r}")
    for name in ("vision", "shuffle", "text", "expert"):
        got = getattr(cfg, name)
        if getattr(PRESETS[preset], name) != got:
            raise ConfigError(
                f"expected a checkpoint of the sizes of --preset {preset}, got {got} for '{name}'"
            )


# --- sizes ---


def read_config(directory: Path, fields: Fields) -> SmolVlaConfig:
    """The policy's config, by config.json, the weights' shapes and the language model's config.

    Raises:
        CheckpointError: a file, field or weight is missing, or asks for what is not done here.
    """
    for name, allowed in FIXED.items():
        fields.check(name, allowed)
    if fields.table("normalization_mapping").get("VISUAL", "IDENTITY") != "IDENTITY":
        raise CheckpointError(
            f"{fields.path}: expected IDENTITY for VISUAL in 'normalization_mapping': images are "
            f"not "
            "standardised by a data set here"
        )
    files = SafetensorsFiles(directory)
    vlm = read_vlm(directory, fields)
    inputs = fields.features("input_features")
    padded_state = fields.count("max_state_dim", 32)
    padded_action = fields.count("max_action_dim", 32)
    try:
        text = _text(files, vlm, fields)
        return SmolVlaConfig(
            name=TYPE,
            cameras=_cameras(inputs, fields),
            image_size=_side(fields),
            vision=_vision(files, vlm),
            shuffle=_shuffle(files),
            text=text,
            expert=_expert(files, fields),
            flow=FlowConfig(
                steps=fields.count("num_steps", 10),
                min_period=fields.number("min_period", 4e-3),
                max_period=fields.number("max_period", 4.0),
            ),
            prompt=SmolVlaPromptConfig(
                pad_id=vlm.pad_id if 0 <= vlm.pad_id < text.vocab else PAD,
                buckets=buckets_up_to(fields.count("tokenizer_max_length", 48)),
            ),
            horizon=fields.count("chunk_size", 50),
            action_dim=fields.dim("output_features", ACTION),
            padded_action_dim=padded_action,
            state_dim=fields.dim("input_features", STATE),
            padded_state_dim=padded_state,
            patch_positions=fields.config.get("patch_positions", "identity"),
        )
    except ConfigError as error:
        raise CheckpointError(f"{fields.path}: {error}") from None


def read_vlm(directory: Path, fields: Fields) -> Vlm:
    """Of the model that `vlm_model_name` names."""
    name = fields.config.get("vlm_model_name")
    folder = next((f for f in _folders(directory, name) if (f / CONFIG).is_file()), None)
    if folder is not None:
        return _vlm_of(folder / CONFIG)
    if isinstance(name, str) and name in PUBLISHED:
        return PUBLISHED[name]
    raise CheckpointError(
        f"{fields.path}: expected 'vlm_model_name' as one of {sorted(PUBLISHED)}, or a folder "
        f"with that model's "
        f"{CONFIG}, got {name!r}: it has the numbers of attention heads, which no weight shows"
    )


def _vlm_of(path: Path) -> Vlm:
    config = read_json(path, "a vision-language model's config", error=CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a table, got {type(config).__name__}")
    whole = Fields(path, config)
    text = Fields(path, whole.table("text_config"))
    vision = Fields(path, whole.table("vision_config"))
    text.check("hidden_act", ("silu",))
    vision.check("hidden_act", ("gelu_pytorch_tanh",))
    heads = text.count("num_attention_heads")
    head_dim = text.config.get("head_dim") or text.count("hidden_size") // heads
    pad = config.get("pad_token_id", text.config.get("pad_token_id"))
    return Vlm(
        head_dim=int(head_dim),
        vision_heads=vision.count("num_attention_heads"),
        text_eps=text.number("rms_norm_eps", 1e-5),
        vision_eps=vision.number("layer_norm_eps", 1e-6),
        pad_id=pad if isinstance(pad, int) else PAD,
    )


def _cameras(inputs: Mapping[str, Mapping[str, Any]], fields: Fields) -> tuple[str, ...]:
    """Cameras of the robot, in the order in which the policy looks through them; empty slots cost
    nothing.
    """
    names = [name for name, feature in inputs.items() if feature.get("type") == "VISUAL"]
    cameras = tuple(camera_name(name) for name in names if not EMPTY.search(name))
    if not cameras:
        raise CheckpointError(
            f"{fields.path}: expected a camera in 'input_features', got {list(inputs)}"
        )
    return cameras


def camera_name(feature: str) -> str:
    """`observation.images.base` -> `base`; `observation.image` -> `image`."""
    return feature.removeprefix(IMAGES).removeprefix("observation.")


def _side(fields: Fields) -> int:
    sides = fields.config.get("resize_imgs_with_padding")
    if not isinstance(sides, list) or len(sides) != 2 or sides[0] != sides[1]:
        words = (
            "two equal sides (LeRobot reads other ones as width and height, or the other way, "
            "by its version)"
        )
        raise CheckpointError(
            f"{fields.path}: expected {words} for 'resize_imgs_with_padding', got {sides!r}"
        )
    side = sides[0]
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise CheckpointError(
            f"{fields.path}: expected pixels for 'resize_imgs_with_padding', got {side!r}"
        )
    return side


def _text(files: SafetensorsFiles, vlm: Vlm, fields: Fields) -> TextConfig:
    vocab, width = _shape(files, f"{TEXT}embed_tokens.weight")
    layers = _depth(TEXT_LAYER, files)
    asked = fields.config.get("num_vlm_layers", layers)
    if isinstance(asked, int) and 0 < asked != layers:
        raise CheckpointError(
            f"{files.place}: expected the {asked} decoder layers of 'num_vlm_layers', got {layers}"
        )
    expert_layers = fields.config.get("num_expert_layers", 0)
    if isinstance(expert_layers, int) and 0 < expert_layers != layers:
        raise CheckpointError(
            f"{fields.path}: expected as many expert layers as decoder layers, {layers}, for "
            f"'num_expert_layers', got {expert_layers}"
        )
    first = f"{TEXT}layers.0."
    rows = {part: _shape(files, f"{first}self_attn.{part}_proj.weight")[0] for part in "qk"}
    for part, count in rows.items():
        if count % vlm.head_dim:
            raise CheckpointError(
                f"{files.place}: expected a multiple of {vlm.head_dim}, the head's width in the "
                f"language model's "
                f"config, got {count} rows for '{first}self_attn.{part}_proj.weight': weights of "
                f"another model?"
            )
    return TextConfig(
        width=width,
        layers=layers,
        heads=rows["q"] // vlm.head_dim,
        kv_heads=rows["k"] // vlm.head_dim,
        head_dim=vlm.head_dim,
        mlp_hidden=_shape(files, f"{first}mlp.gate_proj.weight")[0],
        vocab=vocab,
        norm_eps=vlm.text_eps,
    )


def _vision(files: SafetensorsFiles, vlm: Vlm) -> VitConfig:
    width, _, patch, _ = _shape(files, f"{VISION}embeddings.patch_embedding.weight", 4)
    places = _shape(files, f"{VISION}embeddings.position_embedding.weight")[0]
    return siglip(
        image_size=math.isqrt(places) * patch,
        patch_size=patch,
        width=width,
        depth=_depth(VISION_LAYER, files),
        heads=vlm.vision_heads,
        mlp=_shape(files, f"{VISION}encoder.layers.0.mlp.fc1.weight")[0],
        eps=vlm.vision_eps,
    )


def _shuffle(files: SafetensorsFiles) -> int:
    width = _shape(files, f"{VISION}embeddings.patch_embedding.weight", 4)[0]
    return math.isqrt(_shape(files, f"{CONNECTOR}weight")[1] // width)


def _expert(files: SafetensorsFiles, fields: Fields) -> ExpertConfig:
    every = fields.config.get("self_attn_every_n_layers", 2)
    if not isinstance(every, int) or isinstance(every, bool):
        raise CheckpointError(
            f"{fields.path}: expected a number for 'self_attn_every_n_layers', got {every!r}"
        )
    if fields.config.get("attention_mode") == "self_attn":
        every = 1
    return ExpertConfig(
        width=_shape(files, "model.action_in_proj.weight")[0],
        mlp_hidden=_shape(files, f"{EXPERT}layers.0.mlp.gate_proj.weight")[0],
        self_attention_every=max(0, every),
    )


def _shape(files: SafetensorsFiles, name: str, axes: int = 2) -> tuple[int, ...]:
    if name not in files:
        raise CheckpointError(f"{files.place}: 1 missing weight(s): '{name}'")
    shape = files.shape(name)
    if len(shape) != axes:
        raise CheckpointError(
            f"{files.place}: expected {axes} axes, got {list(shape)} for '{name}'"
        )
    return shape


def _depth(pattern: re.Pattern[str], files: SafetensorsFiles) -> int:
    """Layers with such a norm."""
    found = [int(match[1]) for name in files if (match := pattern.fullmatch(name))]
    if not found:
        raise CheckpointError(f"{files.place}: 1 missing weight(s): '{pattern.pattern}'")
    return max(found) + 1


@dataclass(frozen=True)
class Fields:
    """A config, with errors that name file and field."""

    path: Path
    config: Mapping[str, Any]

    def check(self, name: str, allowed: tuple[Any, ...]) -> None:
        """CheckpointError where the field is there and is something else."""
        if self.config.get(name, allowed[0]) not in allowed:
            words = repr(allowed[0]) if len(allowed) == 1 else f"one of {list(allowed)}"
            raise CheckpointError(
                f"{self.path}: expected {words} for '{name}', got {self.config[name]!r}"
            )

    def table(self, name: str) -> Mapping[str, Any]:
        """A table; empty where it is not there."""
        value = self.config.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{self.path}: expected a table for '{name}', got {type(value).__name__}"
            )
        return value

    def features(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Features by name."""
        table = self.table(name)
        if not all(isinstance(feature, dict) for feature in table.values()):
            raise CheckpointError(f"{self.path}: expected tables of type and shape in '{name}'")
        return table

    def dim(self, name: str, feature: str) -> int:
        """Numbers of a feature that is a vector."""
        found = self.features(name)
        shape = found.get(feature, {}).get("shape")
        if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
            raise CheckpointError(
                f"{self.path}: expected '{feature}' with a shape of one number in '{name}', got "
                f"{shape if feature in found else sorted(found)}"
            )
        return shape[0]

    def count(self, name: str, default: int | None = None) -> int:
        """A number from 1 on."""
        value = self.config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{self.path}: expected a number from 1 on for '{name}', got {value!r}"
            )
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.config.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(
                f"{self.path}: expected a number above 0 for '{name}', got {value!r}"
            )
        return float(value)
