"""A DB-CogACT checkpoint, opened: config, weights one at a time, statistics, tokenizer; and built.

Statistics are Dexbotic's norm_stats.json: {"default": {"min": [...], "max": [...]}}. The public
code takes -1 and 1 in silence where the file is missing; here that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.dbcogact.config import PAD_RGB, PRESETS, DbCogActConfig
from trimvla.policies.dbcogact.folder import TOKENIZER, read_config
from trimvla.policies.dbcogact.layout import (
    build_meta,
    check_layout,
    dead_weights,
    live_weights,
    put,
)
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.statistics import Statistics, read_openvla
from trimvla.runtime.bundle.inputs_and_output import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    InputsAndOutput,
    PromptSpec,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import CheckpointError, ConfigError

STATISTICS = "norm_stats.json"
CAMERAS = ("front",)
CONTROL_HZ = 5.0  # of SimplerEnv's WidowX, which the published checkpoint was made for
SIX_DELTAS_AND_GRIPPER: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)


class StoredWeights(Mapping[str, Tensor]):
    """Our weights by name; each is read from its file when it is asked for."""

    def __init__(self, files: SafetensorsFiles, cfg: DbCogActConfig) -> None:
        """Of files whose layout was checked."""
        self.files = files
        """Everything that is stored, dead weights too."""
        self._names = {ours: theirs for theirs, ours in live_weights(cfg).items()}
        state = build_meta(cfg).state_dict()
        self._shapes = {name: tuple(meta.shape) for name, meta in state.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.files[self._names[name]].reshape(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(
    directory: Path,
    *,
    preset: str | None = None,
    statistics_key: str | None = None,
    tokenizer: Path | None = None,
    cameras: tuple[str, ...] = CAMERAS,
) -> Checkpoint:
    """See `Family.open_checkpoint`; `cameras` names the images, of which the files have nothing.

    Raises:
        ConfigError: a preset of other sizes, or statistics that need a key.
        CheckpointError: a file that is missing, or files that do not fit each other.
    """
    chosen = tokenizer or directory / TOKENIZER
    if not chosen.is_file():
        raise CheckpointError(
            f"expected the policy's tokenizer at {chosen}, got no file: it is part of Dexbotic's "
            "checkpoints, beside config.json; for `trimvla export` it may lie under --tokenizer"
        )
    cfg = read_config(directory, chosen, cameras)
    if preset is not None:
        _check_preset(preset, cfg)
    statistics = read_statistics(directory, statistics_key, cfg.head.action_dim)
    files = SafetensorsFiles(directory)
    check_layout(files, cfg)
    return Checkpoint(
        cfg=cfg,
        weights=StoredWeights(files, cfg),
        statistics=statistics.features,
        statistics_key=statistics.key,
        tokenizer=chosen,
        cameras=cfg.cameras,
        directory=directory,
    )


def _check_preset(preset: str, cfg: DbCogActConfig) -> None:
    if preset not in PRESETS:
        raise ConfigError(f"expected --preset as one of {sorted(PRESETS)}, got {preset!r}")
    wanted = PRESETS[preset]
    for name in ("vision", "language", "head"):
        if getattr(wanted, name) != getattr(cfg, name):
            raise ConfigError(
                f"expected a checkpoint of the sizes of --preset {preset}, got another '{name}'"
            )


def read_statistics(directory: Path, key: str | None, dim: int) -> Statistics:
    """The minimum and maximum of every action dimension; one number may stand for all of them.

    Raises:
        CheckpointError: no file, or not as many numbers as an action has.
    """
    path = directory / STATISTICS
    if not path.is_file():
        raise CheckpointError(
            f"expected action statistics at {path}, got no file: the public code then takes -1 and "
            "1 in silence; take the file of the data set that the policy was trained on"
        )
    found = read_openvla(path, key)
    lists = {name: found.array("action", name) for name in ("min", "max")}
    made: dict[str, np.ndarray] = {}
    for name, values in lists.items():
        if values.size not in (1, dim):
            raise CheckpointError(f"{path}: expected {dim} numbers for '{name}', got {values.size}")
        made[name] = np.broadcast_to(values, (dim,)).copy()
    return Statistics(found.key, {"action": made}, found.where)


def build(cfg: DbCogActConfig, weights: Mapping[str, Tensor]) -> DbCogAct:
    """The policy in float32, weights put in place one at a time, the first text folded in."""
    policy = build_meta(cfg)
    for name in list(policy.state_dict()):
        put(policy, name, weights[name])
    policy.fold()
    return policy.eval()


def layout(cfg: DbCogActConfig) -> tuple[dict[str, str], frozenset[str]]:
    """See `Family.layout`."""
    return live_weights(cfg), dead_weights(cfg)


def describe(checkpoint: Checkpoint, plan: Plan) -> InputsAndOutput:
    """See `Family.describe`; seven dimensions are SIMPLER's, others are absolute positions."""
    cfg: DbCogActConfig = checkpoint.cfg
    dim = cfg.head.action_dim
    kinds: tuple[ActionKind, ...] = ("absolute",) * dim
    if dim == len(SIX_DELTAS_AND_GRIPPER):
        kinds = SIX_DELTAS_AND_GRIPPER
    return InputsAndOutput(
        images=images_spec(cfg),
        prompt=prompt_spec(cfg),
        action=ActionSpec(
            horizon=cfg.head.horizon,
            dim=dim,
            control_hz=CONTROL_HZ,
            kinds=kinds,
            statistics_key=checkpoint.statistics_key,
            normalization="min_max",
            clip=True,
            binary_gripper=False,
        ),
    )


def images_spec(cfg: DbCogActConfig) -> ImagesSpec:
    """Padded to a square in CLIP's mean colour, then Pillow's bicubic filter."""
    red, green, blue = PAD_RGB
    return ImagesSpec(
        cameras=tuple(CameraSpec(name) for name in cfg.cameras),
        size=cfg.image_size,
        resize="bicubic-antialias",
        aspect="square-centre",
        pad_value=(float(red), float(green), float(blue)),
    )


def prompt_spec(cfg: DbCogActConfig) -> PromptSpec:
    """The half of the prompt behind the image; the other is folded into the language stage."""
    return PromptSpec(
        template=cfg.prompt.after,
        bos_id=None,
        suffix_ids=(),
        pad_id=cfg.prompt.pad_id,
        buckets=cfg.prompt.buckets,
        lowercase=False,
        trim_end=False,
        vocabulary=cfg.language.vocab,
    )
