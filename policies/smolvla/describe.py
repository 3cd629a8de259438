"""What the runtime must know of a SmolVLA checkpoint: images, prompt, state, flow and action, as
LeRobot does them.

Images are resized by torch's bilinear without antialias on floats, their sides' ratio kept, and
padded left and top with black. The prompt is the instruction and a newline. State and actions are
scaled by LeRobot's processors.
"""

from __future__ import annotations

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.kept import euler_steps, image_side
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

CONTROL_HZ = 30.0  # of the SO-100 data that SmolVLA was trained on
BLACK = (0.0, 0.0, 0.0)


def describe(checkpoint: Checkpoint, plan: Plan) -> InputsAndOutput:
    """See `Family.describe`."""
    cfg: SmolVlaConfig = checkpoint.cfg
    modes = checkpoint.extra["modes"]
    kinds: tuple[ActionKind, ...] = ("absolute",) * cfg.action_dim
    return InputsAndOutput(
        images=images_spec(cfg, plan),
        prompt=prompt_spec(cfg),
        state=StateSpec(
            names=checkpoint.state_names,
            dim=cfg.state_dim,
            padded=cfg.padded_state_dim,
            statistics=modes["state"],
            epsilon=float(checkpoint.extra["epsilon"]),
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
        ),
    )


def images_spec(cfg: SmolVlaConfig, plan: Plan) -> ImagesSpec:
    """How images become the vision stage's input."""
    return ImagesSpec(
        cameras=tuple(CameraSpec(name) for name in cfg.cameras),
        size=image_side(plan, cfg),
        resize="bilinear",
        aspect="pad-left-top",
        pad_value=BLACK,
        dtype="float32",
        scale=(0.0, 1.0),
    )


def prompt_spec(cfg: SmolVlaConfig) -> PromptSpec:
    """How an instruction becomes ids."""
    return PromptSpec(
        template=cfg.prompt.template,
        bos_id=None,
        suffix_ids=(),
        pad_id=cfg.prompt.pad_id,
        buckets=cfg.prompt.buckets,
        lowercase=False,
        newline=True,
        trim_end=False,
        vocabulary=cfg.text.vocab,
    )
