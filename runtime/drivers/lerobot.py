"""Any robot of LeRobot as a driver: SO-101, Koch and every `lerobot_robot_*` package.

Runs in LeRobot's own environment, where our base install lies beside it. Cameras and state go out
on our topics; gated commands come in. Knows LeRobot's `Robot`; imports it when it connects. Tested
with LeRobot 0.4.4.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading
from trimvla.runtime.drivers.lerobot_keys import Keys, LeRobotConfig, clipped
from trimvla.runtime.errors import ConfigError, DriverError
from trimvla.runtime.own_objects import blame

log = logging.getLogger(__name__)
CAMERA_PACKAGES = ("opencv", "realsense", "zmq", "reachy2_camera")
OPTIONS_CAMERAS = ("so100_follower", "so101_follower", "koch_follower")


class LeRobotDriver(Driver):
    """One robot of LeRobot."""

    def __init__(self, config: LeRobotConfig) -> None:
        self._config = config
        self._robot: Any = None
        self._keys: Keys | None = None
        self._cameras: dict[str, Publisher] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._read_ns = 0
        """When the robot was read before: a new image is younger."""
        self._position: Sequence[float] = ()
        self._clipped = 0

    @property
    def _known(self) -> Keys:
        if self._keys is None:
            raise DriverError("expected a robot that is connected, got none")
        return self._keys

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        """See `Driver`: of the robots that are known to have those of their options and no other;
        a plug-in, or a robot with two arms, may rename them or have more.
        """
        if not isinstance(config, LeRobotConfig) or config.type not in OPTIONS_CAMERAS:
            return None
        cameras = config.options.get("cameras", {})
        return tuple(cameras) if isinstance(cameras, Mapping) else None

    def description(self, config: DriverConfig) -> Description | None:
        """See `Driver`: from the features of the connected robot."""
        del config
        settings = getattr(self._robot, "config", None)
        normalised = getattr(settings, "use_degrees", True) is False
        return self._known.description("percent" if normalised else "")

    def connect(self, run_dir: Path) -> None:
        """See `Driver`. Never calibrates: that asks a person to move the arm.

        Raises:
            ConfigError: LeRobot is not installed, or knows no such robot or option.
            DriverError: the robot cannot be reached, or is not calibrated.
        """
        self._robot = make_robot(self._config.type, self._config.options)
        try:
            self._robot.connect(calibrate=False)
        except Exception as error:  # whatever a plug-in raises
            words = f"robot '{self._config.type}' does not connect: {blame(error)}"
            raise DriverError(words) from error
        if not self._robot.is_calibrated:
            words = f"lerobot-calibrate --robot.type={self._config.type} with its port and id"
            raise DriverError(f"expected a robot that is calibrated, got none: run {words}")
        features = self._robot.action_features
        self._keys = Keys(features, self._robot.observation_features, self._config)
        self._read_ns = monotonic_ns()
        for camera in self._keys.cameras:
            self._cameras[camera] = Publisher(run_dir, topic(color(camera), self._config.state_hz))

    def read(self) -> Reading | None:
        """See `Driver`; publishes the cameras' new images."""
        before_ns = self._read_ns
        self._read_ns = monotonic_ns()
        observation = self._call(self._robot.get_observation)
        for camera in self._cameras:
            self._publish(camera, self._known.image(observation, camera), before_ns)
        reading = self._known.reading(observation)
        self._position = reading[0]
        return reading

    def write(self, action: Sequence[float]) -> None:
        """See `Driver`."""
        self._send(self._known.action(action))

    def hold(self) -> None:
        """See `Driver`: its servos keep their last target; velocities become 0."""
        if self._position and (stop := self._known.stop(self._position)) is not None:
            self._send(stop)

    def safe_pose(self) -> Sequence[float] | None:
        """See `Driver`: `rest`."""
        return self._known.safe_pose()

    def figures(self) -> Mapping[str, float]:
        """How many commands LeRobot changed, such as by its `max_relative_target`."""
        return {"clipped_by_lerobot": float(self._clipped)}

    def disconnect(self) -> None:
        """See `Driver`. Most robots let go of their joints then: the arm sinks."""
        for camera in self._cameras.values():
            camera.close()
        if self._robot is not None:
            with suppress(Exception):  # it may be gone, or never have been there
                self._robot.disconnect()

    def _publish(self, camera: str, image: NDArray[np.uint8], before_ns: int) -> None:
        """An image that is not the one of before. LeRobot gives no time of capture: it was not
        there at the reading before, so that it is as old as that at most. A copy of the same image
        cannot be distinguished from a scene that rests: the policy notices it (`budget.frozen_s`).
        """
        if self._images.get(camera) is image:
            return
        self._images[camera] = image
        frame = Frame(camera=camera, time_ns=before_ns, image=image, timestamp_source="read")
        self._cameras[camera].send(frame)

    def _send(self, action: dict[str, float]) -> None:
        really = self._call(self._robot.send_action, action)
        if isinstance(really, Mapping) and clipped(action, really):
            self._clipped += 1

    def _call(self, function: Any, *values: object) -> Any:  # noqa: ANN401 - LeRobot's own
        try:
            return function(*values)
        except Exception as error:  # whatever a plug-in raises
            words = f"robot '{self._config.type}' does not answer: {blame(error)}"
            raise DriverError(words) from error


def make_robot(kind: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - LeRobot's own
    """A robot of LeRobot by its type and options, not yet connected.

    Raises ConfigError: LeRobot is not installed, or knows no such type or option.
    """
    try:
        draccus = importlib.import_module("draccus")
        robots = importlib.import_module("lerobot.robots")
        plugins = importlib.import_module("lerobot.utils.import_utils")
    except Exception as error:  # a damaged environment raises other errors than ImportError
        words = "expected LeRobot in this process's environment (`python` names another one)"
        raise ConfigError(f"{words}, got: {blame(error)}") from error
    plugins.register_third_party_plugins()
    _register(robots, kind)
    known = robots.RobotConfig.get_known_choices()
    if kind not in known:
        raise ConfigError(f"expected 'type' as one of {', '.join(sorted(known))}, got {kind!r}")
    try:
        settings = draccus.decode(robots.RobotConfig, {"type": kind, **options})
    except Exception as error:  # draccus and a config's own checks raise what they like
        raise ConfigError(f"options of '{kind}': {blame(error)}") from error
    try:
        return robots.make_robot_from_config(settings)
    except Exception as error:
        raise ConfigError(f"robot '{kind}' cannot be made: {blame(error)}") from error


def _register(robots: Any, kind: str) -> None:  # noqa: ANN401 - LeRobot's package
    """Import what registers LeRobot's own robots, until this one is known, and its cameras."""
    for name in CAMERA_PACKAGES:
        with suppress(Exception):  # one that lacks its own library is not wanted
            importlib.import_module(f"lerobot.cameras.{name}")
    for module in pkgutil.iter_modules(robots.__path__):
        if kind in robots.RobotConfig.get_known_choices():
            return
        if module.ispkg:
            with suppress(Exception):
                importlib.import_module(f"lerobot.robots.{module.name}")
