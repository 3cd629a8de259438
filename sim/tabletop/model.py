"""The tabletop's MuJoCo model: a gantry robot with a gripper, a table, slots for things, two
cameras.

Primitives only, no downloads. One compiled model serves every scene: `apply_scene` fills the slots,
colours, light and camera; unused slots are parked out of sight. Knows geometry and rendering; knows
no task, action or success.
"""

from __future__ import annotations

import math

import numpy as np

from trimvla.sim.physics import check_can_render, mujoco
from trimvla.sim.tabletop.scene import COLORS, HALF_HEIGHT, THICKNESS, Item, Look, Scene

OBJECT_SLOTS = 4
TARGET_SLOTS = 2
FINGER_TRAVEL = 0.05  # each finger [m]; open: 0.10 between the pads
TOOL_TO_TIP = 0.010  # the tool point lies this far above the finger tips [m]
ROBOT_JOINTS = ("x", "y", "z", "yaw", "pitch", "roll", "left", "right")
CAMERA_POS = (0.0, -0.52, 0.52)
CAMERA_AIM = (0.0, 0.0, 0.045)
CAMERA_FOVY = 37.0
CAMERAS = ("front", "wrist")
"""Names of the cameras: in front of the table, and on the gripper, looking at what is between its
fingers.
"""
TABLE_MATERIALS = ("table0", "table1", "table2", "table3")

_OBJECT = """
<body name="object{i}" pos="{x} 1.5 0.2" gravcomp="1">
  <freejoint name="object{i}"/>
  <inertial pos="0 0 0" mass="0.06" diaginertia="3e-5 3e-5 3e-5"/>
  <geom name="object{i}_cube" type="box" size="0.023 0.023 0.023" class="object"/>
  <geom name="object{i}_can" type="cylinder" size="0.023 0.028" class="object"/>
</body>"""
_TARGET = """
<body name="target{i}" pos="{x} 1.5 0.1">
  <geom name="target{i}_plate" type="cylinder" size="0.062 0.003" class="target"/>
  <geom name="target{i}_mat" type="box" size="0.058 0.058 0.002" class="target"/>
</body>"""

MJCF = """
<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="0.004" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="640" offheight="640"/>
    <quality shadowsize="512" offsamples="4"/>
    <map znear="0.05" zfar="8"/>
    <headlight ambient="0.38 0.38 0.38" diffuse="0.12 0.12 0.12" specular="0 0 0"/>
  </visual>
  <asset>
    <texture name="wood" type="2d" builtin="gradient" rgb1="0.55 0.40 0.25"
             rgb2="0.40 0.28 0.16" width="64" height="64"/>
    <texture name="checker" type="2d" builtin="checker" rgb1="0.72 0.72 0.70"
             rgb2="0.60 0.60 0.58" width="64" height="64"/>
    <material name="table0" rgba="0.74 0.72 0.68 1"/>
    <material name="table1" texture="wood" texrepeat="3 3"/>
    <material name="table2" texture="checker" texrepeat="6 6"/>
    <material name="table3" rgba="0.35 0.37 0.42 1"/>
    <material name="steel" rgba="0.30 0.32 0.35 1"/>
    <material name="pad" rgba="0.12 0.12 0.13 1"/>
  </asset>
  <default>
    <default class="object">
      <geom condim="4" friction="1.2 0.02 0.001" solref="0.01 1"/>
    </default>
    <default class="target">
      <geom condim="3" friction="1.0 0.02 0.001"/>
    </default>
    <default class="robot">
      <geom material="steel" contype="0" conaffinity="0" mass="0.2"/>
    </default>
    <default class="finger">
      <geom material="pad" condim="4" friction="2.0 0.05 0.001" contype="1" conaffinity="1"
            mass="0.05" solref="0.01 1"/>
    </default>
  </default>
  <worldbody>
    <light name="lamp" pos="0 0 1.6" dir="0 0 -1" directional="false" castshadow="true"
           diffuse="0.62 0.62 0.62" specular="0.1 0.1 0.1" cutoff="60" attenuation="1 0 0"/>
    <camera name="front" pos="0 -0.5 0.5" fovy="34"/>
    <geom name="floor" type="plane" size="3 3 0.1" pos="0 0 -0.4" rgba="0.45 0.47 0.50 1"/>
    <geom name="table" type="box" size="0.34 0.32 0.02" pos="0 0.02 -0.02" material="table0"
          friction="1 0.02 0.001"/>
    <body name="carriage" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" range="-0.25 0.25" damping="60" armature="1"/>
      <inertial pos="0 0 1" mass="0.5" diaginertia="1e-3 1e-3 1e-3"/>
      <body gravcomp="1">
      <joint name="y" type="slide" axis="0 1 0" range="-0.25 0.25" damping="60" armature="1"/>
      <inertial pos="0 0 1" mass="0.5" diaginertia="1e-3 1e-3 1e-3"/>
      <body gravcomp="1">
      <joint name="z" type="slide" axis="0 0 1" range="0 0.4" damping="60" armature="1"/>
      <geom class="robot" type="cylinder" size="0.014" fromto="0 0 0.11 0 0 0.7"/>
      <body gravcomp="1" pos="0 0 0.09">
        <joint name="yaw" type="hinge" axis="0 0 1" range="-1.6 1.6" damping="1" armature="0.02"/>
        <joint name="pitch" type="hinge" axis="0 1 0" range="-0.6 0.6" damping="1" armature="0.02"/>
        <joint name="roll" type="hinge" axis="1 0 0" range="-0.6 0.6" damping="1" armature="0.02"/>
        <geom class="robot" type="box" size="0.062 0.016 0.012" rgba="0.92 0.92 0.94 1"/>
        <camera name="wrist" pos="0 -0.08 0.02" xyaxes="1 0 0 0 0.809 0.588" fovy="70"/>
        <body name="left" gravcomp="1" pos="0 0 -0.09">
          <joint name="left" type="slide" axis="-1 0 0" range="0 0.05" damping="8" armature="0.2"/>
          <geom class="finger" name="left" type="box" size="0.005 0.016 0.039"
                pos="-0.005 0 0.029"/>
        </body>
        <body name="right" gravcomp="1" pos="0 0 -0.09">
          <joint name="right" type="slide" axis="1 0 0" range="0 0.05" damping="8" armature="0.2"/>
          <geom class="finger" name="right" type="box" size="0.005 0.016 0.039"
                pos="0.005 0 0.029"/>
        </body>
        <site name="tool" pos="0 0 -0.09" size="0.003" rgba="0 0 0 0"/>
      </body></body></body>
    </body>
    {objects}
    {targets}
  </worldbody>
  <contact><exclude body1="left" body2="right"/></contact>
  <actuator>
    <position name="x" joint="x" kp="3000" kv="120" ctrlrange="-0.25 0.25"/>
    <position name="y" joint="y" kp="3000" kv="120" ctrlrange="-0.25 0.25"/>
    <position name="z" joint="z" kp="3000" kv="120" ctrlrange="0 0.4" forcerange="-60 60"/>
    <position name="yaw" joint="yaw" kp="60" kv="2" ctrlrange="-1.6 1.6"/>
    <position name="pitch" joint="pitch" kp="60" kv="2" ctrlrange="-0.6 0.6"/>
    <position name="roll" joint="roll" kp="60" kv="2" ctrlrange="-0.6 0.6"/>
    <position name="left" joint="left" kp="600" kv="25" ctrlrange="0 0.05" forcerange="-12 12"/>
    <position name="right" joint="right" kp="600" kv="25" ctrlrange="0 0.05" forcerange="-12 12"/>
  </actuator>
</mujoco>"""


def build_model() -> mujoco.MjModel:
    """The compiled model, all slots parked."""
    objects = "".join(_OBJECT.format(i=i, x=0.3 * i) for i in range(OBJECT_SLOTS))
    targets = "".join(_TARGET.format(i=i, x=0.3 * i) for i in range(TARGET_SLOTS))
    return mujoco.MjModel.from_xml_string(MJCF.format(objects=objects, targets=targets))


def apply_scene(model: mujoco.MjModel, data: mujoco.MjData, scene: Scene) -> None:
    """Fill slots, look and the robot's start pose; leaves `data` at the scene's first instant."""
    mujoco.mj_resetData(model, data)
    _apply_look(model, scene)
    for i in range(OBJECT_SLOTS):
        _fill_object(model, data, i, scene.objects[i] if i < len(scene.objects) else None)
    for i in range(TARGET_SLOTS):
        _fill_target(model, i, scene.targets[i] if i < len(scene.targets) else None)
    data.qpos[:3] = scene.tool
    data.qpos[6:8] = FINGER_TRAVEL
    data.ctrl[:] = data.qpos[:8]
    mujoco.mj_forward(model, data)


def _apply_look(model: mujoco.MjModel, scene: Scene) -> None:
    x, y, brightness = scene.look.light
    model.light("lamp").pos[:] = (x, y, 1.6)
    aim = -np.array([x, y, 1.6])
    model.light("lamp").dir[:] = aim / np.linalg.norm(aim)
    model.light("lamp").diffuse[:] = 0.62 * brightness
    model.geom("table").matid[:] = model.material(TABLE_MATERIALS[scene.look.texture]).id
    position = np.add(CAMERA_POS, scene.look.camera)
    model.cam("front").pos[:] = position
    model.cam("front").quat[:] = _look_at(position, np.asarray(CAMERA_AIM))
    model.cam("front").fovy[:] = CAMERA_FOVY


def project(points: np.ndarray, look: Look) -> np.ndarray:
    """World points float[n, 3] [m] -> where they are in the image, float32[n, 2] (x right, y
    down, in 0..1).
    """
    position = np.add(CAMERA_POS, look.camera)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, _look_at(position, np.asarray(CAMERA_AIM)))
    seen = (points - position) @ rotation.reshape(3, 3)
    scale = 0.5 / math.tan(math.radians(CAMERA_FOVY) / 2)
    return np.stack(
        [0.5 - scale * seen[:, 0] / seen[:, 2], 0.5 + scale * seen[:, 1] / seen[:, 2]], axis=1
    ).astype("f4")


def _look_at(position: np.ndarray, aim: np.ndarray) -> np.ndarray:
    back = (position - aim) / np.linalg.norm(position - aim)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], axis=1).ravel())
    return quat


def _show(model: mujoco.MjModel, geom: str, item: Item | None) -> None:
    """Make a slot's geom visible and solid in the item's colour, or neither."""
    on = item is not None and geom.endswith(item.kind)
    model.geom(geom).rgba[:] = (
        (*COLORS[item.color], 1.0) if item is not None and on else (0, 0, 0, 0)
    )
    model.geom(geom).contype[:] = model.geom(geom).conaffinity[:] = int(on)


def _fill_object(model: mujoco.MjModel, data: mujoco.MjData, slot: int, item: Item | None) -> None:
    for kind in HALF_HEIGHT:
        _show(model, f"object{slot}_{kind}", item)
    model.body_gravcomp[model.body(f"object{slot}").id] = 1.0 if item is None else 0.0
    if item is not None:
        half = item.yaw / 2
        pose = (item.x, item.y, HALF_HEIGHT[item.kind], math.cos(half), 0, 0, math.sin(half))
        data.joint(f"object{slot}").qpos[:] = pose


def _fill_target(model: mujoco.MjModel, slot: int, item: Item | None) -> None:
    for kind in THICKNESS:
        _show(model, f"target{slot}_{kind}", item)
    place = (0.3 * slot, 1.5, 0.1) if item is None else (item.x, item.y, THICKNESS[item.kind] / 2)
    model.body(f"target{slot}").pos[:] = place


class TabletopRenderer:
    """Renders any state of one scene from its JSON-able description; close it when done.

    Needs a headless OpenGL (EGL or OSMesa; `MUJOCO_GL` chooses). Not thread-safe: the context
    belongs to its thread.
    """

    def __init__(self, scene: Scene | dict) -> None:
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self.set_scene(scene)

    def set_scene(self, scene: Scene | dict) -> None:
        """Change to another table without a new context."""
        apply_scene(
            self.model, self.data, scene if isinstance(scene, Scene) else Scene.from_dict(scene)
        )

    def render(
        self, qpos: np.ndarray, camera: str = "front", height: int = 128, width: int = 128
    ) -> np.ndarray:
        """uint8[height, width, 3] RGB of the state `qpos` float64[nq].

        ConfigError where OpenGL cannot draw.
        """
        check_can_render()
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        renderer = self._renderer(height, width)
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def _renderer(self, height: int, width: int) -> mujoco.Renderer:
        size = (height, width)
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.model, height, width)
        return self._renderers[size]

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
