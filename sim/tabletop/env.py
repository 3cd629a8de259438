"""The embedded simulator: a language-conditioned tabletop as a gymnasium environment, deterministic
per seed.

Actions are SIMPLER's: float32[7] = delta xyz [m], delta axis-angle [rad], gripper (1 = open, 0 =
close), at 5 Hz. The observation is one third-person image, and where it is asked for that of the
wrist camera and where the robot is; success is judged from privileged state and reported in
`info["success"]`. Knows physics and judging; knows no policy, socket or expert decision.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from trimvla.sim.physics import mujoco
from trimvla.sim.tabletop.expert import State, is_done, limit_tool
from trimvla.sim.tabletop.model import (
    FINGER_TRAVEL,
    TabletopRenderer,
    apply_scene,
    build_model,
)
from trimvla.sim.tabletop.scene import Goal, Scene, other_goal, sample_scene

CONTROL_HZ = 5
SUBSTEPS = 50  # of 4 ms
IMAGE_SIZE = 128
MAX_STEPS = 60
ACTION_LOW = np.array([-0.05, -0.05, -0.05, -0.4, -0.4, -0.4, 0.0], np.float32)
ACTION_HIGH = np.array([0.05, 0.05, 0.05, 0.4, 0.4, 0.4, 1.0], np.float32)
STATE = ("x", "y", "z", "yaw", "gripper")
"""Names of the robot's state: its tool [m], its turn [rad], and its opening from 0 to 1."""
Reset = tuple[dict[str, np.ndarray], dict[str, Any]]
Step = tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]
# the most the wrist leans and turns [rad]
TILT = 0.5
TURN = 1.5


class TabletopEnv(gym.Env):
    """A gantry robot above objects and targets; one instruction states what to do.

    `reset(options=...)` takes `variant` (see `scene.VARIANTS`), `verb` (pick, put, stack) or a
    ready `scene`. An episode ends with success, or is cut after `MAX_STEPS` steps.
    """

    metadata = {  # noqa: RUF012 (gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_HZ,
    }
    control_hz = CONTROL_HZ

    def __init__(
        self,
        render_mode: str | None = None,
        variant: str = "default",
        observe: bool = True,
        *,
        wrist: bool = False,
    ) -> None:
        """`observe=False` skips the images (all zeros) for runs that need only physics.

        `wrist` adds "wrist" uint8[128, 128, 3] and "state" float32[5] to the observation (see
        `STATE`).
        """
        self.render_mode = render_mode
        self.variant = variant
        self._wrist = wrist
        picture = gym.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        numbers = gym.spaces.Box(-np.inf, np.inf, (len(STATE),), np.float32)
        more = {"wrist": picture, "state": numbers} if wrist else {}
        self.observation_space = gym.spaces.Dict({"image": picture, **more})
        self.action_space = gym.spaces.Box(ACTION_LOW, ACTION_HIGH, (7,), np.float32)
        self._model = build_model()
        self._data = mujoco.MjData(self._model)
        self._renderer: TabletopRenderer | None = None
        self._observe = observe
        self._scene: Scene | None = None
        self._steps = 0
        self._target = np.zeros(3)
        self._rotation = np.eye(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """A new table. Returns ({"image": uint8[128, 128, 3]}, info)."""
        super().reset(seed=seed)
        options = options or {}
        scene = options.get("scene") or sample_scene(
            self.np_random, options.get("variant", self.variant), options.get("verb")
        )
        self._scene = scene
        apply_scene(self._model, self._data, scene)
        if self._renderer is not None:
            self._renderer.set_scene(scene)
        self._steps = 0
        self._target = np.array(scene.tool)
        self._rotation = np.eye(3)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> Step:
        """Advance 200 ms. Actions beyond the space's bounds are clipped."""
        action = np.clip(np.asarray(action, np.float64), ACTION_LOW, ACTION_HIGH)
        if not np.isfinite(action).all():
            raise ValueError(f"expected finite float32[7], got {action} for 'action'")
        self._move(action)
        self._steps += 1
        info = self._info()
        success = bool(info["success"])
        return self._observation(), float(success), success, self._steps >= MAX_STEPS, info

    def render(self) -> np.ndarray:
        """The scene at 384 x 384, uint8 RGB."""
        return self._get_renderer().render(self._data.qpos, height=384, width=384)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def scene(self) -> Scene:
        """The table's description (`to_dict()` makes it JSON-able)."""
        if self._scene is None:
            raise RuntimeError("call reset() first")
        return self._scene

    def qpos(self) -> np.ndarray:
        """The full state of all joints, float64[nq], as `TabletopRenderer.render` takes it."""
        return self._data.qpos.copy()

    @property
    def instruction(self) -> str:
        """What is asked."""
        return self.scene().instruction()

    def swapped_instruction(self) -> str:
        """An instruction about another object of this table, fixed per scene."""
        scene = self.scene()
        place = int(abs(scene.objects[0].x) * 1e6)
        return scene.instruction(other_goal(scene, np.random.default_rng(place)))

    def state(self) -> State:
        """Privileged state for the expert and the judge; `tool` is the commanded pose."""
        scene = self.scene()
        poses = [self._data.joint(f"object{i}").qpos for i in range(len(scene.objects))]
        items = list(zip(poses, scene.objects, strict=True))
        return State(
            tool=_xyz(self._target),
            yaw=math.atan2(self._rotation[1, 0], self._rotation[0, 0]),
            opening=float(self._data.qpos[6:8].mean()) / FINGER_TRAVEL,
            held=self._held(),
            objects=tuple(_xyz(pose) for pose in poses),
            object_yaw=tuple(_square_yaw(pose[3:]) * (item.kind == "cube") for pose, item in items),
        )

    def succeeded(self, goal: Goal | None = None) -> bool:
        """Whether `goal` (default: the scene's) is reached now."""
        return is_done(self.scene(), self.state(), goal or self.scene().goal)

    def _held(self) -> int:
        """The object that both fingers touch, or -1."""
        touching: dict[int, set[str]] = {}
        for contact in self._data.contact[: self._data.ncon]:
            names = {self._model.geom(int(g)).name for g in contact.geom}
            fingers = names & {"left", "right"}
            others = names - {"left", "right"}
            if fingers and others and (name := others.pop()).startswith("object"):
                touching.setdefault(int(name[6]), set()).update(fingers)
        return next((i for i, fingers in touching.items() if len(fingers) == 2), -1)

    def _move(self, action: np.ndarray) -> None:
        start = self._target.copy()
        wrist = self._data.ctrl[3:6].copy()
        self._target = np.array(limit_tool(*(start + action[:3])))
        self._rotation, goal_wrist = _turn(self._rotation, action[3:6])
        self._data.ctrl[6:8] = FINGER_TRAVEL if action[6] >= 0.5 else 0.0
        for i in range(1, SUBSTEPS + 1):
            share = min(1.0, i / (0.6 * SUBSTEPS))  # the set point arrives early, the servo settles
            self._data.ctrl[:3] = start + share * (self._target - start)
            self._data.ctrl[3:6] = wrist + share * (goal_wrist - wrist)
            mujoco.mj_step(self._model, self._data)

    def _get_renderer(self) -> TabletopRenderer:
        if self._renderer is None:
            self._renderer = TabletopRenderer(self.scene())
        return self._renderer

    def robot_state(self) -> np.ndarray:
        """Where the robot is, float32[5], as it publishes it: see `STATE`."""
        state = self.state()
        return np.array([*state.tool, state.yaw, state.opening], np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        if not self._wrist:
            return {"image": self.picture("front")}
        return {
            "image": self.picture("front"),
            "wrist": self.picture("wrist"),
            "state": self.robot_state(),
        }

    def picture(self, camera: str) -> np.ndarray:
        """What one of `model.CAMERAS` sees now: uint8[128, 128, 3], zeros without images."""
        if not self._observe:
            return np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        return self._get_renderer().render(
            self._data.qpos, camera, height=IMAGE_SIZE, width=IMAGE_SIZE
        )

    def _info(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "success": self.succeeded(), "steps": self._steps}


def _xyz(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _turn(rotation: np.ndarray, axis_angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate by a world-frame axis-angle; back come the matrix and the wrist's (yaw, pitch, roll),
    both limited.
    """
    rotation = cv2.Rodrigues(np.asarray(axis_angle, np.float64))[0] @ rotation
    pitch = -math.asin(max(-1.0, min(1.0, rotation[2, 0])))
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    roll = math.atan2(rotation[2, 1], rotation[2, 2])
    angles = np.clip([yaw, pitch, roll], (-TURN, -TILT, -TILT), (TURN, TILT, TILT))
    yaw, pitch, roll = angles
    turned = _axis(2, yaw) @ _axis(1, pitch) @ _axis(0, roll)
    return turned, angles


def _axis(axis: int, angle: float) -> np.ndarray:
    vector = np.zeros(3)
    vector[axis] = angle
    return cv2.Rodrigues(vector)[0]


def _square_yaw(quat: np.ndarray) -> float:
    """Yaw of a cube up to its symmetry, in [-pi/4, pi/4]."""
    w, x, y, z = quat
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4
