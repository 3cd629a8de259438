"""A SmolVLA checkpoint that a user has, opened: config, weights, statistics and tokenizer from
LeRobot's files.

Finds the files and checks them against each other; sizes are read elsewhere. Reads no weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.lerobot_fields import Fields
from trimvla.policies.smolvla.checkpoint import open_weights
from trimvla.policies.smolvla.config import PRESETS, SmolVlaConfig
from trimvla.policies.smolvla.lerobot.sizes import CONFIG, TYPE, folders_of, read_config
from trimvla.policies.statistics import Statistics, lerobot_epsilon, lerobot_modes, read_lerobot
from trimvla.runtime.bundle.scale import LISTS
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import read_json

TOKENIZER = "tokenizer.json"


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
    folders = [directory, *folders_of(directory, fields.config.get("vlm_model_name"))]
    return next((f / TOKENIZER for f in folders if (f / TOKENIZER).is_file()), None)


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
