"""A checkpoint's folder -> the policy's config: config.json, what it names by hub strings, the
tokenizer.

`mm_vision_tower` and `llm_config` name repositories on a hub: their sizes are known here, or a
folder of that name beside config.json holds their config files. Reads no weight and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trimvla.policies.dbcogact.config import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    DECODERS,
    HEADS,
    VISION_TOWERS,
    ChatPrompt,
    DbCogActConfig,
    QwenConfig,
)
from trimvla.policies.sizes.config import HeadConfig, ProjectorConfig, VitConfig
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
MODEL_TYPE = "dexbotic_cogact"
FEATURE_LAYER = -2
"""CLIP's layer whose output is the feature, where config.json has none."""
END = "<|endoftext|>"
FIXED = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
    "mm_projector_type": "mlp2x_gelu",
    "chat_template": "dexbotic",
}
"""What config.json may not contradict, where it has the field."""
DECODER_FIELDS = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "intermediate_size": "mlp_hidden",
    "vocab_size": "vocab",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
"""Field of config.json -> ours."""
CLIP_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_hidden",
}
Section = Mapping[str, Any]


def recognises(directory: Path) -> bool:
    """Whether config.json is there and names Dexbotic's CogACT."""
    path = directory / CONFIG
    if not path.is_file():
        return False
    data = read_json(path, "a policy's config", error=CheckpointError)
    return isinstance(data, dict) and data.get("model_type") == MODEL_TYPE


def read_config(directory: Path, tokenizer: Path, cameras: tuple[str, ...]) -> DbCogActConfig:
    """The config of a checkpoint.

    Args:
        directory: holds config.json.
        tokenizer: its tokenizer.json; gives the ids of the text before the image.
        cameras: names of the images of an observation; the checkpoint does not give their number.

    Raises:
        CheckpointError, ConfigError: a file or field is missing, or needs what is not done here.
    """
    path = directory / CONFIG
    data = read_json(path, "a policy's config", error=CheckpointError)
    if not isinstance(data, dict) or data.get("model_type") != MODEL_TYPE:
        got = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(f"{path}: expected 'model_type' {MODEL_TYPE!r}, got {got!r}")
    for name, value in FIXED.items():
        if data.get(name, value) != value:
            raise ConfigError(f"{path}: expected {value!r}, got {data[name]!r} for '{name}'")
    language = _decoder(data, directory)
    return _made(
        DbCogActConfig,
        path,
        name=directory.resolve().name,
        vision=_vision(data, directory),
        projector=ProjectorConfig(hidden=(language.width,)),
        language=language,
        head=_head(data, directory),
        prompt=_prompt(tokenizer),
        cameras=cameras,
    )


def _made(kind: Any, where: Path, **fields: Any) -> Any:  # noqa: ANN401
    """A config struct of checked types; ConfigError names the file."""
    try:
        values = {
            name: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
            for name, value in fields.items()
        }
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _decoder(data: Section, directory: Path) -> QwenConfig:
    """From config.json; what it leaves out comes from the model that `llm_config` names."""
    fields = {ours: data[theirs] for theirs, ours in DECODER_FIELDS.items() if theirs in data}
    missing = [theirs for theirs in DECODER_FIELDS if theirs not in data]
    if missing:
        named = _decoder_named(data.get("llm_config"), directory, missing)
        fields = {**named, **fields}
    return _made(QwenConfig, directory / CONFIG, **fields)


def _decoder_named(name: object, directory: Path, missing: list[str]) -> dict[str, Any]:
    if isinstance(name, str) and name in DECODERS:
        return msgspec.to_builtins(DECODERS[name])
    folder = _folder(name, directory)
    if folder is None:
        raise ConfigError(
            f"{directory / CONFIG}: expected {missing}, or 'llm_config' as one of"
            f" {sorted(DECODERS)} or a folder, got {name!r}"
        )
    data = read_json(folder / CONFIG, "a decoder's config", error=CheckpointError)
    section = data if isinstance(data, dict) else {}
    return {ours: section[theirs] for theirs, ours in DECODER_FIELDS.items() if theirs in section}


def _folder(name: object, directory: Path) -> Path | None:
    """The folder that a name means: beside config.json, or a path of its own; None where it is
    none.
    """
    if not isinstance(name, str) or not name:
        return None
    places = (directory / name, Path(name))
    return next((place for place in places if (place / CONFIG).is_file()), None)


def _vision(data: Section, directory: Path) -> VitConfig:
    name = data.get("mm_vision_tower")
    layer = data.get("mm_vision_select_layer", FEATURE_LAYER)
    folder = _folder(name, directory)
    if folder is not None:
        vision = _clip(folder, layer)
    elif isinstance(name, str) and name in VISION_TOWERS:
        known = VISION_TOWERS[name]
        vision = _made(VitConfig, directory / CONFIG, **_with_feature(known, layer))
    else:
        raise ConfigError(
            f"{directory / CONFIG}: expected 'mm_vision_tower' as one of {sorted(VISION_TOWERS)},"
            f" or a folder there with CLIP's config.json and preprocessor_config.json, got {name!r}"
        )
    if data.get("mm_hidden_size", vision.width) != vision.width:
        raise ConfigError(
            f"{directory / CONFIG}: expected 'mm_hidden_size' {vision.width}, the width of"
            f" {name!r}, got {data['mm_hidden_size']!r}"
        )
    return vision


def _with_feature(known: VitConfig, layer: object) -> dict[str, Any]:
    fields = msgspec.to_builtins(known)
    depth = known.depth
    if not isinstance(layer, int) or not -depth <= layer < 0:
        raise ConfigError(
            f"expected from -{depth} to -1 for 'mm_vision_select_layer', got {layer!r}"
        )
    return {**fields, "feature_block": depth + layer}


def _clip(folder: Path, layer: object) -> VitConfig:
    """From CLIP's own config.json and preprocessor_config.json."""
    path = folder / CONFIG
    data = read_json(path, "CLIP's config", error=CheckpointError)
    section = data.get("vision_config", data) if isinstance(data, dict) else {}
    missing = [name for name in CLIP_FIELDS if name not in section]
    if missing:
        raise ConfigError(f"{path}: expected the fields {missing}, got none")
    pixels = read_json(
        folder / "preprocessor_config.json", "CLIP's preprocessing", error=CheckpointError
    )
    if not isinstance(pixels, dict) or pixels.get("resample", 3) != 3:
        raise ConfigError(f"{folder}: expected 'resample' 3 (bicubic) in preprocessor_config.json")
    sizes = {ours: section[theirs] for theirs, ours in CLIP_FIELDS.items()}
    if not isinstance(sizes["depth"], int):
        raise ConfigError(
            f"{path}: expected a number for 'num_hidden_layers', got {sizes['depth']!r}"
        )
    vision = _made(
        VitConfig,
        path,
        name="clip",
        **sizes,
        feature_block=sizes["depth"] - 1,
        mean=pixels.get("image_mean"),
        std=pixels.get("image_std"),
        class_token=True,
        norm_eps=section.get("layer_norm_eps", 1e-5),
        activation=section.get("hidden_act", "quick_gelu"),
    )
    return _made(VitConfig, path, **_with_feature(vision, layer))


def _head(data: Section, directory: Path) -> HeadConfig:
    """The table's sizes; a reference directory states others in its architecture.json."""
    name = data.get("action_model_type")
    known = HEADS.get(name) if isinstance(name, str) else None
    fields = msgspec.to_builtins(known) if known is not None else _stated_head(name, directory)
    for theirs, ours in (("chunk_size", "horizon"), ("action_dim", "action_dim")):
        if theirs not in data:
            raise ConfigError(f"{directory / CONFIG}: expected the field '{theirs}', got none")
        fields[ours] = data[theirs]
    return _made(HeadConfig, directory / CONFIG, **fields)


def _stated_head(name: object, directory: Path) -> dict[str, Any]:
    path = directory / "architecture.json"
    if path.is_file():
        data = read_json(path, "an architecture", error=CheckpointError)
        section = data.get("action_model") if isinstance(data, dict) else None
        if isinstance(section, dict) and section.get("type") == name:
            names = {
                "depth": "depth",
                "hidden_size": "width",
                "num_heads": "heads",
                "mlp_ratio": "mlp_ratio",
                "frequency_embedding_size": "frequency",
            }
            return {ours: section[theirs] for theirs, ours in names.items() if theirs in section}
    raise ConfigError(
        f"{directory / CONFIG}: expected 'action_model_type' as one of {sorted(HEADS)}, got"
        f" {name!r}"
    )


def _prompt(path: Path) -> ChatPrompt:
    tokenizer = load_tokenizer(path)
    end = tokenizer.token_to_id(END)
    if end is None:
        raise CheckpointError(
            f"{path}: expected a token '{END}', got none: is it Qwen2's tokenizer?"
        )
    return ChatPrompt(
        before=BEFORE_IMAGE,
        after=AFTER_IMAGE,
        before_ids=tuple(text_ids(tokenizer, BEFORE_IMAGE)),
        end_id=end,
        pad_id=end,
    )


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a half of the prompt, as it is."""
    return tokenizer.encode(text, add_special_tokens=False).ids
