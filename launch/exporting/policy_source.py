"""Where a policy comes from: a run folder, a bundle with its checkpoint beside it, or an official
checkpoint.

Knows files and presets; decides nothing about what is made of the policy.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.export.verify import checkpoint_beside
from trimvla.policies.cogact import checkpoint
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PRESETS
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError

WEIGHTS = "policy.safetensors"
TOKENIZER = "tokenizer.json"
STATISTICS = ("statistics.json", "dataset_statistics.json")  # ours, and the official layout's


def find_source(source: Path) -> Path:
    """The folder that is meant: a path, or the name of a shipped bundle."""
    return source if source.exists() else bundles.resolve(str(source))


def is_official(source: Path) -> bool:
    """Whether the source is neither a run folder nor a bundle."""
    return not (source / WEIGHTS).exists() and not (source / bundles.MANIFEST).exists()


def load_policy(source: Path, preset: str | None, name: str | None = None) -> CogAct:
    """The torch policy of the source; `name` is that of the .pt file, where an official checkpoint
    has several.

    Raises:
        ConfigError: an official checkpoint without a known preset.
        CheckpointError: weights that are missing, unknown or of another shape.
    """
    if (source / WEIGHTS).exists():
        return checkpoint.load(source / WEIGHTS)
    if not is_official(source):
        return checkpoint_beside(source)
    return checkpoint.load_official(source, PRESETS[check_preset(source, preset)], name=name)


def check_preset(source: Path, preset: str | None) -> str:
    """The preset that an official checkpoint needs; ConfigError where it is not known."""
    if preset not in PRESETS:
        raise ConfigError(
            f"{source}: no {WEIGHTS}, so an official checkpoint: expected --preset as one of "
            f"{sorted(PRESETS)}, got {preset!r}"
        )
    return preset


def find_statistics(source: Path) -> Path:
    """The file of action statistics by dataset. Raises ConfigError where the source has none."""
    for name in STATISTICS:
        if (source / name).exists():
            return source / name
    raise ConfigError(f"{source}: expected {' or '.join(STATISTICS)}, got neither")
