"""An ACT checkpoint that a user has, opened: config, weights and statistics from LeRobot's files.

Pixels are standardised by numbers that become part of the config; the robot's and the environment's
state become one vector. Finds the files and checks them against each other; reads no weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trimvla.policies.act.checkpoint import open_weights
from trimvla.policies.act.config import DEEP, PRESETS, ActConfig, Rgb
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.lerobot_fields import Fields
from trimvla.policies.statistics import (
    Statistics,
    lerobot_epsilon,
    lerobot_mode,
    read_lerobot,
)
from trimvla.runtime.bundle.inputs_and_output import Statistics as Mode
from trimvla.runtime.bundle.scale import LISTS
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

CONFIG = "config.json"
TYPE = "act"
STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
ACTION = "action"


def open_checkpoint(
    directory: Path,
    *,
    preset: str | None = None,
    statistics_key: str | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """See `Family.open_checkpoint`.

    Raises:
        ConfigError: a preset that is not this policy, statistics that need a key, or a tokenizer:
            the policy reads no instruction.
        CheckpointError: config.json, weights or statistics that are missing or do not fit each
            other.
    """
    if tokenizer is not None:
        raise ConfigError(f"expected no --tokenizer: ACT reads no instruction, got {tokenizer}")
    statistics = _statistics(directory, statistics_key)
    cfg = config_of(directory, statistics)
    if preset is not None:
        _check_preset(preset, cfg)
    epsilon = lerobot_epsilon(directory)
    state, mode = _state(directory, cfg, statistics)
    action = lerobot_mode(directory, "ACTION")
    _check_length(statistics, ACTION, action, cfg.action_dim)
    features = {ACTION: statistics.features.get(ACTION, {}), **({"state": state} if state else {})}
    return Checkpoint(
        cfg=cfg,
        weights=open_weights(directory, cfg),
        statistics=features,
        statistics_key=statistics.key,
        statistics_file=statistics.where,
        tokenizer=None,
        cameras=cfg.cameras,
        directory=directory,
        extra={"modes": {"state": mode, "action": action}, "epsilon": epsilon},
    )


def read_fields(directory: Path) -> Fields:
    """config.json. CheckpointError where it is not there, or of another policy."""
    path = directory / CONFIG
    config = read_json(path, "a policy's config", error=CheckpointError)
    if not isinstance(config, dict) or config.get("type") != TYPE:
        got = config.get("type") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path}: expected 'type' {TYPE!r}, got {got!r}")
    return Fields(path, config)


def _statistics(directory: Path, key: str | None) -> Statistics:
    """Of the actions, both states and every camera's images; a camera's under its feature's
    name.
    """
    cameras = camera_features(read_fields(directory)).values()
    return read_lerobot(directory, key, {ENVIRONMENT: "environment", **{n: n for n in cameras}})


def config_of(directory: Path, statistics: Statistics | None = None) -> ActConfig:
    """The policy's config, by config.json and the statistics of images; reads no weight.

    Raises:
        CheckpointError: a field or statistic is missing, or asks for what is not done here.
    """
    fields = read_fields(directory)
    fields.check("n_obs_steps", (1,))
    fields.check("vision_backbone", tuple(DEEP))
    fields.check("feedforward_activation", ("relu", "gelu"))
    cameras = camera_features(fields)
    height, width = _image_size(fields, cameras)
    found = _statistics(directory, None) if statistics is None else statistics
    mean, std = _pixels(directory, found, tuple(cameras.values()))
    inputs = fields.features("input_features")
    given = fields.config
    try:
        return ActConfig(
            name=TYPE,
            cameras=tuple(cameras),
            image_height=height,
            image_width=width,
            mean=mean,
            std=std,
            backbone=given.get("vision_backbone", "resnet18"),
            dilated=bool(given.get("replace_final_stride_with_dilation", False)),
            width=fields.count("dim_model", 512),
            heads=fields.count("n_heads", 8),
            mlp_hidden=fields.count("dim_feedforward", 3200),
            activation=given.get("feedforward_activation", "relu"),
            pre_norm=bool(given.get("pre_norm", False)),
            encoder_layers=fields.count("n_encoder_layers", 4),
            decoder_layers=fields.count("n_decoder_layers", 1),
            horizon=fields.count("chunk_size", 100),
            action_dim=fields.dim("output_features", ACTION),
            state_dim=fields.dim("input_features", STATE) if STATE in inputs else 0,
            environment_dim=(
                fields.dim("input_features", ENVIRONMENT) if ENVIRONMENT in inputs else 0
            ),
            latent_dim=fields.count("latent_dim", 32),
            vae_layers=(
                fields.count("n_vae_encoder_layers", 4) if given.get("use_vae", True) else 0
            ),
        )
    except ConfigError as error:
        raise CheckpointError(f"{fields.path}: {error}") from None


def camera_features(fields: Fields) -> dict[str, str]:
    """Our name of each camera -> its feature's, in the order of the file.

    CheckpointError where there is none: a policy of the environment's state alone is not done here.
    """
    inputs = fields.features("input_features")
    names = [name for name, feature in inputs.items() if feature.get("type") == "VISUAL"]
    if not names:
        raise CheckpointError(
            f"{fields.path}: expected a camera in 'input_features', got {list(inputs)}"
        )
    prefixes = ("observation.images.", "observation.")
    return {name.removeprefix(prefixes[0]).removeprefix(prefixes[1]): name for name in names}


def _image_size(fields: Fields, cameras: dict[str, str]) -> tuple[int, int]:
    """Height and width, the same for all cameras."""
    inputs = fields.features("input_features")
    sizes: dict[str, tuple[int, int]] = {}
    for camera, name in cameras.items():
        shape = inputs[name].get("shape")
        found = _height_and_width(shape)
        if found is None:
            raise CheckpointError(
                f"{fields.path}: expected a shape [3, height, width] for '{name}', got {shape!r}"
            )
        sizes[camera] = found
    first = next(iter(sizes))
    for camera, size in sizes.items():
        if size != sizes[first]:
            words = f"images of one size, {list(sizes[first])} as camera '{first}' has them"
            raise CheckpointError(
                f"{fields.path}: expected {words}, got {list(size)} for camera '{camera}'"
            )
    return sizes[first]


def _height_and_width(shape: object) -> tuple[int, int] | None:
    """Of a feature's shape; None where it is no image's."""
    if not isinstance(shape, list) or len(shape) != 3 or shape[0] != 3:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        return None
    return shape[1], shape[2]


def _pixels(
    directory: Path, statistics: Statistics, features: tuple[str, ...]
) -> tuple[tuple[Rgb, ...], tuple[Rgb, ...]]:
    """What is subtracted from pixels from 0 to 1, and what they are divided by, for each camera."""
    mode = lerobot_mode(directory, "VISUAL")
    if mode == "none":
        return ((0.0, 0.0, 0.0),) * len(features), ((1.0, 1.0, 1.0),) * len(features)
    low_name, high_name = LISTS[mode]
    epsilon = lerobot_epsilon(directory)
    means: list[Rgb] = []
    stds: list[Rgb] = []
    for name in features:
        _check_length(statistics, name, mode, 3)
        low = statistics.array(name, low_name)
        high = statistics.array(name, high_name)
        is_std = mode == "mean_std"
        means.append(_rgb(low if is_std else (low + high) / 2))
        stds.append(_rgb((high if is_std else (high - low) / 2) + epsilon))
    return tuple(means), tuple(stds)


def _rgb(values: np.ndarray) -> Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _state(
    directory: Path, cfg: ActConfig, statistics: Statistics
) -> tuple[dict[str, np.ndarray], Mode]:
    """Statistics of the robot's numbers with the environment's behind them, and their mode.

    Where one of the two is left as it is, its numbers are masked. CheckpointError where the two are
    scaled in two ways.
    """
    parts: list[tuple[str, int, Mode]] = [
        (feature, dim, lerobot_mode(directory, kind))
        for feature, dim, kind in (
            ("state", cfg.state_dim, "STATE"),
            ("environment", cfg.environment_dim, "ENV"),
        )
        if dim
    ]
    modes: list[Mode] = sorted({mode for _, _, mode in parts if mode != "none"})
    if len(modes) > 1:
        got = {feature: mode for feature, _, mode in parts}
        raise CheckpointError(f"{directory}: expected one normalisation of both states, got {got}")
    if not modes:
        return {}, "none"
    mode = modes[0]
    found: dict[str, np.ndarray] = {}
    for place, name in enumerate(LISTS[mode]):
        columns = []
        for feature, dim, own in parts:
            _check_length(statistics, feature, own, dim)
            unscaled = np.full(dim, float(place))
            columns.append(unscaled if own == "none" else statistics.array(feature, name))
        found[name] = np.concatenate(columns)
    mask = np.concatenate([np.full(dim, own != "none") for _, dim, own in parts])
    return found if mask.all() else {**found, "mask": mask}, mode


def _check_length(statistics: Statistics, feature: str, mode: Mode, dim: int) -> None:
    for name in LISTS[mode]:
        got = len(statistics.array(feature, name))
        if got != dim:
            raise CheckpointError(
                f"{statistics.where}: expected {dim} numbers, the dimension in {CONFIG}, for "
                f"'{name}' of '{feature}', got {got}"
            )


def _check_preset(preset: str, cfg: ActConfig) -> None:
    """ConfigError where the preset is none of this family, or has other sizes than the weights."""
    if preset not in PRESETS:
        raise ConfigError(f"expected --preset as one of {sorted(PRESETS)}, got {preset!r}")
    for name in ("backbone", "width", "mlp_hidden", "encoder_layers", "decoder_layers"):
        got = getattr(cfg, name)
        if getattr(PRESETS[preset], name) != got:
            raise ConfigError(
                f"expected a checkpoint of the sizes of --preset {preset}, got {got} for '{name}'"
            )
