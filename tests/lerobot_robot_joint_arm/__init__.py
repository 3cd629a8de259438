"""A third party's robot for LeRobot, as `lerobot_robot_*` packages are: a MuJoCo arm behind it.

Runs in LeRobot's environment. It advances by the wall clock, and writes a log of what was asked of
it, for the test.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from lerobot.robots import Robot, RobotConfig  # pyright: ignore[reportMissingImports]

from trimvla.sim.robots.joint_arm import KEYS
from trimvla.sim.robots.joint_arm import JointArm as Model

SIZE = (72, 96, 3)
REACHED = 0.02  # m from the cube's centre to the tip


@RobotConfig.register_subclass("joint_arm")
@dataclass(kw_only=True)
class JointArmConfig(RobotConfig):
    """Where the cube lies, and where the log goes."""

    seed: int = 0
    log: Path = Path("arm.json")
    calibrated: bool = True
    fails_at: Path | None = None
    """While this file is there, the bus does not answer."""


class JointArm(Robot):
    """The arm as LeRobot sees it."""

    config_class = JointArmConfig
    name = "joint_arm"

    def __init__(self, config: JointArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self._arm: Model | None = None
        self._last = 0.0
        self._nearest = float("inf")
        self._sent: list[dict[str, float]] = []
        self._times: list[float] = []

    @property
    def action_features(self) -> dict:
        return dict.fromkeys(KEYS, float)

    @property
    def observation_features(self) -> dict:
        return {**self.action_features, "top": SIZE}

    @property
    def is_connected(self) -> bool:
        return self._arm is not None

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "nobody is there to move the arm"
        self._arm = Model(self.config.seed)
        self._last = time.perf_counter()

    @property
    def is_calibrated(self) -> bool:
        return self.config.calibrated

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def _advance(self) -> Model:
        if self._arm is None or (self.config.fails_at and self.config.fails_at.exists()):
            raise ConnectionError("no status packet")
        now = time.perf_counter()
        self._arm.advance(min(0.2, now - self._last))
        self._last = now
        self._nearest = min(self._nearest, self._arm.distance())
        if self._nearest < REACHED:
            self.config.log.with_suffix(".reached").touch()
        return self._arm

    def get_observation(self) -> dict:
        arm = self._advance()
        return {**arm.joints(), "top": arm.image("top")}

    def send_action(self, action: dict) -> dict:
        arm = self._advance()
        self._sent.append(action)
        self._times.append(time.perf_counter())
        arm.command(action)
        return action

    def disconnect(self) -> None:
        if self._arm is None:
            return
        log = {
            "nearest": self._nearest,
            "sent": self._sent,
            "times": self._times,
            "joints": self._arm.joints(),
        }
        self.config.log.write_text(json.dumps(log))
        self._arm.close()
        self._arm = None
