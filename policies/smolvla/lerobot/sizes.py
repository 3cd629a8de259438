"""SmolVLA's sizes and cameras, by LeRobot's config.json, the weights' shapes and the language
model's config.

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

from trimvla.policies.lerobot_fields import Fields
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.sizes.config import VitConfig
from trimvla.policies.smolvla.checkpoint import CONNECTOR, EXPERT, TEXT, VISION
from trimvla.policies.smolvla.config import (
    ExpertConfig,
    FlowConfig,
    SmolVlaConfig,
    SmolVlaPromptConfig,
    TextConfig,
    buckets_up_to,
    siglip,
)
from trimvla.policies.weight_names import missing
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

CONFIG = "config.json"
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
    folder = next((f for f in folders_of(directory, name) if (f / CONFIG).is_file()), None)
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
        raise missing(files.place, name, files)
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
        first = pattern.pattern.replace("\\.", ".").replace(r"(\d+)", "0")
        raise missing(files.place, first, files)
    return max(found) + 1


def folders_of(directory: Path, name: object) -> list[Path]:
    """Where a name may stand for a folder: in this one, or a path of its own."""
    return [directory / name, Path(name)] if isinstance(name, str) and name else []
