"""A robot behind ROS 2 topics: which joints, which controllers, which cameras. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.topics import CAMERA_NAME
from trimvla.runtime.drivers.driver import DriverConfig
from trimvla.runtime.errors import ConfigError

Form = Literal["trajectory", "positions", "velocities"]


@dataclass(frozen=True)
class ControllerConfig:
    """One controller of ros2_control, and the joints that it moves."""

    topic: str
    """Where it takes commands, such as `/arm_controller/joint_trajectory`."""
    joints: tuple[str, ...]
    """In its own order."""
    form: Form = "trajectory"
    """`trajectory`: joint_trajectory_controller; `positions`, `velocities`: a forward command
    controller, which takes numbers without names."""


@dataclass(frozen=True)
class RosCameraConfig:
    """One camera's topic."""

    name: str
    """Ours: it is published as `<name>/color`."""
    topic: str
    """Such as `/camera/image_raw`."""
    compressed: bool = False
    """A CompressedImage (JPEG or PNG) in place of an Image."""
    hz: float = 30.0
    """How often it comes."""

    def __post_init__(self) -> None:
        if not CAMERA_NAME.fullmatch(self.name):
            words = "letters, digits, '_', '.' or '-'"
            raise ConfigError(f"expected {words} for a camera's 'name', got {self.name!r}")
        if not 0 < self.hz < math.inf:
            raise ConfigError(f"expected a number above 0 for a camera's 'hz', got {self.hz}")


@dataclass(frozen=True)
class Ros2Config(DriverConfig):
    """A robot behind ROS 2 topics."""

    joints: tuple[str, ...] = ()
    """The joints' names as in JointState, in the order of a command's numbers: the bundle's."""
    controllers: tuple[ControllerConfig, ...] = ()
    """What moves them; each joint belongs to one."""
    cameras: tuple[RosCameraConfig, ...] = ()
    joint_states: str = "/joint_states"
    """The topic of sensor_msgs/JointState; every message has all of `joints`."""
    estop: str = ""
    """A topic of std_msgs/Bool, repeated: true is pressed. Empty: there is none."""
    deadman: str = ""
    """A topic of std_msgs/Bool, repeated: true is held. Empty: there is none."""
    instruction: str = ""
    """A topic of std_msgs/String: what the robot is to do; an empty text ends it. Then the system
    is started without `--task`. Empty: there is none."""
    node: str = "trimvla"
    """The node's name."""
    sim_time: bool = False
    """ROS time comes from `/clock`, as with a simulator."""
    start_timeout_s: float = 10.0
    """Without a first joint state by then, the robot counts as not there [s]."""
    state_timeout_s: float = 0.5
    """An older joint state is none [s]."""
    hz: float = 30.0
    """Commands a second: the rate of control."""
    unit: str = "rad"
    """Of every joint that `units` does not name; ROS has rad and m."""
    units: dict[str, str] = field(default_factory=dict)
    """Joint -> unit, spelled as in the bundle's `action.units`."""
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Joint -> lowest and highest value; control's limits must lie within. Not named: none."""
    speed: float = 0.5
    """The fastest that it moves by itself, to its rest [unit/s]."""
    rest: dict[str, float] = field(default_factory=dict)
    """Its safe pose: joint -> value; joints that are not named stay."""
    gripper: str = ""
    """The joint that `JointState.gripper` is made of; without one it counts as open."""
    gripper_closed: float = 0.0
    gripper_open: float = 1.0
    """Its values where the gripper is closed and open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hz", "speed", "start_timeout_s", "state_timeout_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"expected a number above 0 for '{name}', got {value}")
        if self.gripper_open == self.gripper_closed:
            raise ConfigError("expected 'gripper_open' other than 'gripper_closed'")
        self._check_joints()
        self._check_topics()

    def _check_joints(self) -> None:
        """Each joint once, and in one controller."""
        moved = [joint for controller in self.controllers for joint in controller.joints]
        if not self.joints or len(set(self.joints)) != len(self.joints):
            raise ConfigError(f"expected a name each for 'joints', got {list(self.joints)}")
        if Counter(moved) != Counter(self.joints):
            raise ConfigError(
                f"expected each of 'joints', {list(self.joints)}, once in 'controllers', got"
                f" {moved}"
            )
        for setting in ("units", "limits", "rest"):
            if unknown := [name for name in getattr(self, setting) if name not in self.joints]:
                raise ConfigError(
                    f"expected names of 'joints' for '{setting}', {list(self.joints)}, got"
                    f" {unknown}"
                )
        if self.gripper and self.gripper not in self.joints:
            raise ConfigError(
                f"expected one of 'joints', {list(self.joints)}, for 'gripper', got"
                f" {self.gripper!r}"
            )

    def _check_topics(self) -> None:
        """Each topic, and each of our cameras, once."""
        topics = [self.joint_states, self.estop, self.deadman, self.instruction]
        topics += [each.topic for each in (*self.controllers, *self.cameras)]
        twice = [name for name, count in Counter(filter(None, topics)).items() if count > 1]
        cameras = [camera.name for camera in self.cameras]
        twice += [name for name, count in Counter(cameras).items() if count > 1]
        if twice or not self.joint_states:
            raise ConfigError(f"expected topics and cameras that are named once, got {twice}")
        wrong = [each.form for each in self.controllers if each.form not in get_args(Form)]
        if wrong:
            raise ConfigError(f"expected one of {', '.join(get_args(Form))}, got {wrong[0]!r}")

    def kind_of(self, joint: str) -> ActionKind:
        """Whether it is given targets or velocities."""
        form = next(each.form for each in self.controllers if joint in each.joints)
        return "velocity" if form == "velocities" else "absolute"

    def description(self) -> Description:
        """What the robot takes and gives. Raises ConfigError for limits that are none."""
        commands = []
        for joint in self.joints:
            low, high = self.limits.get(joint, (-math.inf, math.inf))
            unit = self.units.get(joint, self.unit)
            kind = self.kind_of(joint)
            try:
                commands.append(Dimension(joint, unit, kind, low, high, self.speed))
            except ValueError as error:
                raise ConfigError(f"joint '{joint}': {error}") from None
        state = tuple(Quantity(part.name, part.unit) for part in commands)
        return Description(tuple(commands), state, self.hz)
