"""What the runtime must know of a pi0 or pi0.5 checkpoint: images, prompt, state, flow and action.

LeRobot resizes float images with torch's bilinear, openpi uint8 ones with Pillow's; both centre
them on black. pi0 takes the instruction and a newline, pi0.5 cleans it and adds the state in bins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.pi0.config import STATE_BINS, Pi0Config
from trimvla.policies.pi0.kept import euler_steps
from trimvla.runtime.bundle.inputs_and_output import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    FlowSpec,
    ImagesSpec,
    InputsAndOutput,
    PromptSpec,
    StateSpec,
)
from trimvla.runtime.bundle.plan import Plan

CONTROL_HZ = 50.0  # of pi0's published robots
BLACK = (0.0, 0.0, 0.0)
LEROBOT_EPSILON = 1e-8


def describe(checkpoint: Checkpoint, plan: Plan) -> InputsAndOutput:
    """See `Family.describe`."""
    cfg: Pi0Config = checkpoint.cfg
    openpi = bool(checkpoint.extra.get("openpi"))
    modes = checkpoint.extra["modes"]
    epsilon = float(checkpoint.extra["epsilon"])
    kinds: tuple[ActionKind, ...] = ("absolute",) * cfg.action_dim
    return InputsAndOutput(
        images=images_spec(cfg, openpi),
        prompt=prompt_spec(cfg, openpi),
        state=StateSpec(
            names=checkpoint.state_names,
            dim=cfg.state_dim,
            padded=cfg.padded_state_dim if cfg.has_state_token else cfg.state_dim,
            statistics=modes["state"],
            epsilon=epsilon,
            into="tensor" if cfg.has_state_token else "text",
            bins=None if cfg.has_state_token else STATE_BINS,
        ),
        flow=FlowSpec(euler_steps(plan, cfg)),
        action=ActionSpec(
            horizon=cfg.horizon,
            dim=cfg.action_dim,
            control_hz=CONTROL_HZ,
            kinds=kinds,
            statistics_key=checkpoint.statistics_key,
            padded_dim=cfg.padded_action_dim,
            normalization=modes["action"],
            clip=False,
            binary_gripper=False,
            epsilon=epsilon if openpi else 0.0,
        ),
    )


def images_spec(cfg: Pi0Config, openpi: bool) -> ImagesSpec:
    """How images become the vision stage's input."""
    return ImagesSpec(
        cameras=tuple(CameraSpec(name) for name in cfg.cameras),
        size=cfg.vision.image_size,
        resize="bilinear-antialias" if openpi else "bilinear",
        aspect="pad-centre",
        pad_value=BLACK,
        dtype=cfg.image_dtype,
        scale=(0.0, 255.0) if cfg.image_dtype == "uint8" else (0.0, 1.0),
    )


def prompt_spec(cfg: Pi0Config, openpi: bool) -> PromptSpec:
    """How an instruction, and for pi0.5 the state, become ids."""
    cleaned = openpi or not cfg.has_state_token
    return PromptSpec(
        template=cfg.prompt.template,
        bos_id=cfg.prompt.bos_id,
        suffix_ids=(),
        pad_id=cfg.prompt.pad_id,
        buckets=cfg.prompt.buckets,
        lowercase=False,
        strip=cleaned,
        underscores=cleaned,
        newline=cfg.has_state_token,
        trim_end=False,
        vocabulary=cfg.language.vocab,
    )


def placeholder(cfg: Pi0Config, key: str) -> Checkpoint:
    """See `Streaming.placeholder`."""
    return Checkpoint(
        cfg=cfg,
        weights={},
        statistics={
            name: {"mean": np.zeros(dim), "std": np.ones(dim)}
            for name, dim in (("action", cfg.action_dim), ("state", cfg.state_dim))
        },
        statistics_key=key,
        tokenizer=None,
        cameras=cfg.cameras,
        directory=Path(key),
        extra={
            "modes": {"action": "mean_std", "state": "mean_std"},
            "epsilon": LEROBOT_EPSILON,
            "openpi": False,
        },
    )
