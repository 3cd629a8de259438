"""An official CogACT checkpoint, opened for the table of families: weights, statistics, tokenizer,
and its inputs.

The files do not hold their own sizes: a preset does. Knows files; weights' names and shapes are in
`layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.cogact.checkpoint import open_official
from trimvla.policies.cogact.layout import build_meta, dead_weights, live_weights
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.statistics import read_openvla
from trimvla.runtime.bundle.inputs_and_output import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    InputsAndOutput,
    PromptSpec,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

STATISTICS = ("statistics.json", "dataset_statistics.json")  # ours, and the official layout's
TOKENIZER = "tokenizer.json"
CAMERA = "image"  # the only one, whatever its name on the robot
CONTROL_HZ = 5.0  # of WidowX data
SIX_DELTAS_AND_GRIPPER: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)


def open_checkpoint(
    directory: Path,
    *,
    preset: str | None = None,
    checkpoint: str | None = None,
    statistics_key: str | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """See `Family.open_checkpoint`; `checkpoint` names the .pt file where there are several.

    Raises:
        ConfigError: no known preset, no statistics or no such key.
        CheckpointError: weights that are missing, unknown or of another shape.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"{directory}: an official checkpoint of CogACT does not hold its sizes: expected"
            f" --preset as one of {sorted(PRESETS)}, got {preset!r}"
        )
    cfg = PRESETS[preset]
    statistics = read_openvla(statistics_file(directory), statistics_key)
    found = tokenizer or directory / TOKENIZER
    return Checkpoint(
        cfg=cfg,
        weights=open_official(directory, cfg, checkpoint),
        statistics=statistics.features,
        statistics_key=statistics.key,
        statistics_file=statistics.where,
        tokenizer=found if found.is_file() else None,
        cameras=(CAMERA,),
        directory=directory,
    )


def statistics_file(directory: Path) -> Path:
    """The file of action statistics by data set. Raises ConfigError where there is none."""
    for name in STATISTICS:
        if (directory / name).exists():
            return directory / name
    raise ConfigError(f"{directory}: expected {' or '.join(STATISTICS)}, got neither")


def build(cfg: PolicyConfig, weights: Mapping[str, Tensor]) -> CogAct:
    """See `Family.build`."""
    policy = build_meta(cfg)
    shapes = {name: meta.shape for name, meta in policy.state_dict().items()}
    state = {name: weights[name].reshape(shape).to(torch.float32) for name, shape in shapes.items()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()


def layout(cfg: PolicyConfig) -> tuple[dict[str, str], frozenset[str]]:
    """See `Family.layout`."""
    live = {name: weight.target for name, weight in live_weights(cfg).items()}
    return live, frozenset(dead_weights(cfg))


def describe(checkpoint: Checkpoint, plan: Plan) -> InputsAndOutput:
    """See `Family.describe`."""
    return inputs_and_output(checkpoint.cfg, checkpoint.statistics_key)


def inputs_and_output(cfg: PolicyConfig, statistics_key: str) -> InputsAndOutput:
    """The inputs and output of a policy of these sizes."""
    prompt = cfg.prompt
    dim = cfg.head.action_dim
    kinds = SIX_DELTAS_AND_GRIPPER if dim == len(SIX_DELTAS_AND_GRIPPER) else ("delta",) * dim
    return InputsAndOutput(
        images=ImagesSpec(cameras=(CameraSpec(CAMERA),), size=cfg.image_size, tensor="image"),
        prompt=PromptSpec(
            template=prompt.template,
            bos_id=prompt.bos_id,
            suffix_ids=(prompt.empty_id, prompt.eos_id),
            pad_id=prompt.pad_id,
            buckets=prompt.buckets,
            vocabulary=cfg.language.vocab,
        ),
        action=ActionSpec(cfg.head.horizon, dim, CONTROL_HZ, kinds, statistics_key),
    )
