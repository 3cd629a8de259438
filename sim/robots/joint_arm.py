"""A desk-top arm with five joints and a gripper, in MuJoCo: the shape of an SO-101, of primitives.

Its numbers are LeRobot's: degrees, and 0 (closed) to 100 (open) for the gripper. On the table lies
a red cube. Knows physics and rendering; no socket, no policy and nothing of LeRobot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import mujoco
import numpy as np
from numpy.typing import NDArray

KEYS = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)
UPPER = 0.12  # m, shoulder to elbow
FORE = 0.12  # m, elbow to wrist
HAND = 0.08  # m, wrist to the tip
SHOULDER = 0.10  # m above the table
OPEN_M = 0.03  # of each finger, at 100
STEP_S = 0.004
CUBE = 0.012  # m, half a side
RED = 60  # by how much a pixel of the cube is redder than any other
REST = {"shoulder_pan.pos": 0.0, "shoulder_lift.pos": 60.0, "elbow_flex.pos": 90.0}
XML = f"""
<mujoco>
  <option timestep="{STEP_S}" integrator="implicitfast"/>
  <visual><global offwidth="320" offheight="240"/></visual>
  <default>
    <joint damping="1.0" armature="0.02"/>
    <position kp="25" kv="2"/>
    <geom contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <light pos="0.2 0 1" dir="0 0 -1" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
    <camera name="top" pos="0.18 0 0.62" xyaxes="0 -1 0 1 0 0" fovy="50"/>
    <camera name="side" pos="0.2 -0.55 0.3" xyaxes="1 0 0 0 0.4 0.9" fovy="45"/>
    <geom type="plane" size="0.6 0.6 0.1" rgba="0.75 0.75 0.72 1"/>
    <body name="cube" mocap="true" pos="0.2 0 {CUBE}">
      <geom type="box" size="{CUBE} {CUBE} {CUBE}" rgba="0.85 0.1 0.1 1"/>
    </body>
    <body name="turret" pos="0 0 0">
      <joint name="shoulder_pan" axis="0 0 1" range="-110 110"/>
      <geom type="cylinder" fromto="0 0 0 0 0 {SHOULDER}" size="0.03" rgba="0.2 0.3 0.5 1"/>
      <body name="upper" pos="0 0 {SHOULDER}">
        <joint name="shoulder_lift" axis="0 -1 0" range="-100 100"/>
        <geom type="capsule" fromto="0 0 0 {UPPER} 0 0" size="0.014" rgba="0.9 0.8 0.2 1"/>
        <body name="fore" pos="{UPPER} 0 0">
          <joint name="elbow_flex" axis="0 1 0" range="-20 160"/>
          <geom type="capsule" fromto="0 0 0 {FORE} 0 0" size="0.012" rgba="0.9 0.8 0.2 1"/>
          <body name="hand" pos="{FORE} 0 0">
            <joint name="wrist_flex" axis="0 1 0" range="-100 100"/>
            <geom type="capsule" fromto="0 0 0 {HAND / 2} 0 0" size="0.01" rgba="0.2 0.3 0.5 1"/>
            <body name="fingers" pos="{HAND / 2} 0 0">
              <joint name="wrist_roll" axis="1 0 0" range="-160 160"/>
              <site name="tip" pos="{HAND / 2} 0 0"/>
              <body name="left">
                <joint name="gripper" type="slide" axis="0 1 0" range="0 {OPEN_M}"/>
                <geom type="box" pos="{HAND / 4} 0.004 0" size="{HAND / 4} 0.003 0.006"/>
              </body>
              <geom type="box" pos="{HAND / 4} -0.004 0" size="{HAND / 4} 0.003 0.006"/>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position joint="shoulder_pan"/><position joint="shoulder_lift"/>
    <position joint="elbow_flex"/><position joint="wrist_flex"/><position joint="wrist_roll"/>
    <position joint="gripper" kp="60"/>
  </actuator>
</mujoco>
"""


class JointArm:
    """The arm and its table. For one thread."""

    def __init__(self, seed: int = 0) -> None:
        """The cube lies where the seed puts it."""
        self._model = mujoco.MjModel.from_xml_string(XML)
        self._data = mujoco.MjData(self._model)
        self._model.opt.gravity[2] = 0.0  # its servos carry its weight
        self._renderer: mujoco.Renderer | None = None
        rng = np.random.default_rng(seed)
        angle = rng.choice((-1.0, 1.0)) * rng.uniform(0.35, 0.9)  # beside the resting arm
        reach = rng.uniform(0.15, 0.21)
        self._data.mocap_pos[0] = (reach * math.cos(angle), reach * math.sin(angle), CUBE)
        self.target = dict.fromkeys(KEYS, 0.0) | REST
        numbers = to_model(self.target)
        self._data.qpos[:] = numbers
        self._data.ctrl[:] = numbers
        mujoco.mj_forward(self._model, self._data)

    def command(self, target: Mapping[str, float]) -> None:
        """Where the servos are to go; keys that are not named stay."""
        self.target.update({key: float(value) for key, value in target.items() if key in KEYS})
        self._data.ctrl[:] = to_model(self.target)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        steps = max(1, round(seconds / STEP_S))
        mujoco.mj_step(self._model, self._data, steps)

    def joints(self) -> dict[str, float]:
        """Where the joints are: degrees, and the gripper from 0 to 100."""
        degrees = np.degrees(self._data.qpos[:5])
        opening = 100.0 * self._data.qpos[5] / OPEN_M
        return dict(zip(KEYS, [*map(float, degrees), float(opening)], strict=True))

    def distance(self) -> float:
        """From the tip to the cube's centre [m]."""
        tip = self._data.site("tip").xpos
        return float(np.linalg.norm(tip - self._data.mocap_pos[0]))

    def image(self, camera: str, width: int = 96, height: int = 72) -> NDArray[np.uint8]:
        """RGB uint8[height, width, 3] of `top` or `side`."""
        renderer = self._renderer or self._open_renderer(width, height)
        mujoco.mj_forward(self._model, self._data)
        renderer.update_scene(self._data, camera)
        return renderer.render()

    def _open_renderer(self, width: int, height: int) -> mujoco.Renderer:
        renderer = mujoco.Renderer(self._model, height, width)
        shadow = mujoco.mjtRndFlag.mjRND_SHADOW
        renderer.scene.flags[shadow] = False  # most of the cost, without a GPU
        self._renderer = renderer
        return renderer

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def to_model(target: Mapping[str, float]) -> NDArray[np.float64]:
    """LeRobot's numbers as radians and metres, in the model's order."""
    numbers = np.array([target[key] for key in KEYS])
    return np.concatenate([np.radians(numbers[:5]), [numbers[5] / 100.0 * OPEN_M]])


def reach(x: float, y: float, z: float) -> dict[str, float]:
    """The joints with which the tip is at a point [m], the hand pointing down.

    Raises ValueError for a point out of reach.
    """
    pan = math.atan2(y, x)
    out = math.hypot(x, y)
    up = z + HAND - SHOULDER  # the wrist's height over the shoulder
    far = math.hypot(out, up)
    cosine = (UPPER**2 + FORE**2 - far**2) / (2 * UPPER * FORE)
    if not -1 <= cosine <= 1:
        raise ValueError(f"expected a point within {UPPER + FORE:g} m of the wrist, got {far:g} m")
    elbow = math.pi - math.acos(cosine)
    inner = math.acos((UPPER**2 + far**2 - FORE**2) / (2 * UPPER * far))
    lift = math.atan2(up, out) + inner
    wrist = math.pi / 2 + lift - elbow
    degrees = [math.degrees(value) for value in (pan, lift, elbow, wrist)]
    return dict(zip(KEYS[:4], degrees, strict=True))


def find_cube(image: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Where the red cube lies on the table [m], seen from `top`; None where it is hidden."""
    pixels = image.astype(np.int32)
    red = pixels[..., 0] - np.maximum(pixels[..., 1], pixels[..., 2]) > RED
    if red.sum() < 4:
        return None
    rows, columns = np.nonzero(red)
    height, width = red.shape
    scale = 2 * (0.62 - 2 * CUBE) * math.tan(math.radians(25)) / height  # m a pixel
    x = 0.18 - (rows.mean() + 0.5 - height / 2) * scale
    y = -(columns.mean() + 0.5 - width / 2) * scale
    return float(x), float(y)
