"""What the runtime must know of an ACT checkpoint: images, state and actions, as LeRobot does them.

LeRobot looks at images of the size that the policy was trained with and resizes none; here another
size is brought to it by Pillow's bilinear filter, each side by itself. Pixels are standardised in
the graph. State and actions are scaled by LeRobot's processors; the environment's numbers, where
the policy reads some, stand behind the robot's.
"""

from __future__ import annotations

from trimvla.policies.act.config import ActConfig
from trimvla.policies.checkpoint import Checkpoint
from trimvla.runtime.bundle.inputs_and_output import (
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    InputsAndOutput,
    StateSpec,
)
from trimvla.runtime.bundle.plan import Plan

CONTROL_HZ = 30.0  # of LeRobot's SO-100 and SO-101 data


def describe(checkpoint: Checkpoint, plan: Plan) -> InputsAndOutput:
    """See `Family.describe`."""
    del plan
    cfg: ActConfig = checkpoint.cfg
    modes = checkpoint.extra["modes"]
    state = StateSpec(
        names=checkpoint.state_names,
        dim=cfg.read_dim,
        padded=cfg.read_dim,
        statistics=modes["state"],
        epsilon=float(checkpoint.extra["epsilon"]),
    )
    return InputsAndOutput(
        images=images_spec(cfg),
        state=state if cfg.read_dim else None,
        action=ActionSpec(
            horizon=cfg.horizon,
            dim=cfg.action_dim,
            control_hz=CONTROL_HZ,
            kinds=("absolute",) * cfg.action_dim,
            statistics_key=checkpoint.statistics_key,
            normalization=modes["action"],
            clip=False,
            binary_gripper=False,
            noise=False,
        ),
    )


def images_spec(cfg: ActConfig) -> ImagesSpec:
    """How images become the vision stage's input."""
    return ImagesSpec(
        cameras=tuple(CameraSpec(name) for name in cfg.cameras),
        size=cfg.image_height,
        width=cfg.image_width,
        resize="bilinear-antialias",
        aspect="stretch",
        dtype="float32",
        scale=(0.0, 1.0),
    )
