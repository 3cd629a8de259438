"""LeRobot's robots as drivers: the mapping here; the loop in LeRobot's own environment.

`TRIMVLA_LEROBOT_PYTHON` is the Python of an environment with LeRobot 0.4.4, MuJoCo and what our
base install needs. Without it the loop is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimvla.runtime.drivers.lerobot import LeRobotDriver
from trimvla.runtime.drivers.lerobot_keys import Keys, LeRobotConfig, clipped
from trimvla.runtime.errors import ConfigError, DriverError

ARM: tuple[str, ...] = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)
ACTIONS: dict[str, Any] = dict.fromkeys(ARM, float)
OBSERVATIONS: dict[str, Any] = {**ACTIONS, "front": (480, 640, 3), "wrist": (480, 640, 3)}
SEEN: dict[str, Any] = dict(zip(ARM, (1.0, 2.0, 3.0, 4.0, 5.0, 50.0), strict=True))


def test_the_keys_of_an_so101() -> None:
    config = LeRobotConfig(
        limits={"shoulder_pan.pos": (-110.0, 110.0)}, rest={"shoulder_pan.pos": 0.0}, speed=20.0
    )
    keys = Keys(ACTIONS, OBSERVATIONS, config)
    robot = keys.description()
    assert robot.names == robot.state_names == ARM
    assert robot.units == ("deg",) * 5 + ("percent",)
    assert robot.kinds == ("absolute",) * 6
    assert (robot.hz, robot.commands[0].low, robot.commands[0].speed) == (30.0, -110.0, 20.0)
    assert keys.cameras == ("front", "wrist")
    images = {name: np.zeros((4, 4, 3), np.uint8) for name in keys.cameras}
    assert keys.reading({**SEEN, **images}) == ((1.0, 2.0, 3.0, 4.0, 5.0, 50.0), 0.5)
    assert keys.action((1, 2, 3, 4, 5, 50)) == SEEN
    pose = keys.safe_pose()
    assert pose is not None and pose[0] == 0.0 and all(math.isnan(value) for value in pose[1:])
    assert keys.stop(tuple(SEEN.values())) is None, "servos keep their target"


def test_a_base_with_wheels_is_stopped() -> None:
    features = {"lift.pos": float, "x.vel": float}
    keys = Keys(features, features, LeRobotConfig())
    assert keys.description().kinds == ("absolute", "velocity")
    assert keys.stop((7.0, 0.3)) == {"lift.pos": 7.0, "x.vel": 0.0}
    assert keys.reading({"lift.pos": 7.0, "x.vel": 0.3})[1] == 1.0


def test_numbers_that_are_not_degrees_are_named() -> None:
    units = Keys(ACTIONS, OBSERVATIONS, LeRobotConfig()).description("percent").units
    assert units == ("percent",) * 6


@pytest.mark.parametrize(
    ("actions", "observations", "settings", "words"),
    [
        (ACTIONS, {"gripper.pos": float}, {}, "got none for ['shoulder_pan.pos'"),
        ({}, {}, {}, "expected a measured number"),
        (ACTIONS, OBSERVATIONS, {"rest": {"elbow.pos": 0.0}}, "for 'rest'"),
        (ACTIONS, OBSERVATIONS, {"limits": {"elbow.pos": (0.0, 1.0)}}, "for 'limits'"),
    ],
)
def test_keys_that_do_not_fit(actions, observations, settings, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(actions, observations, LeRobotConfig(**settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"hz": 0.0}, {"speed": math.inf}, {"gripper_open": 0.0, "gripper_closed": 0.0}]
)
def test_settings_that_cannot_be(settings: dict) -> None:
    with pytest.raises(ConfigError):
        LeRobotConfig(**settings)


def test_an_observation_that_lacks_something() -> None:
    keys = Keys(ACTIONS, OBSERVATIONS, LeRobotConfig())
    with pytest.raises(DriverError, match="'front', 'wrist'"):
        keys.reading(SEEN)
    with pytest.raises(DriverError, match="float64"):
        keys.image({"front": np.zeros((4, 4, 3))}, "front")


def test_what_lerobot_changes_is_noticed() -> None:
    assert clipped({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.5}) == ["b"]


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is here")
def test_without_lerobot_the_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`python` names another one"):
        LeRobotDriver(LeRobotConfig()).connect(tmp_path)


# LeRobot's own environment

PYTHON = os.environ.get("TRIMVLA_LEROBOT_PYTHON", "")
needs_lerobot = pytest.mark.skipif(
    not PYTHON, reason="no LeRobot: TRIMVLA_LEROBOT_PYTHON names the Python of its environment"
)
PLUGIN = Path(__file__).parent / "lerobot_robot_joint_arm"
METADATA = "Metadata-Version: 2.1\nName: lerobot_robot_joint_arm\nVersion: 0.1\n"
SYSTEM = """
[arm]
process = "driver"
kind = "lerobot"
python = "{python}"
type = "joint_arm"
hz = 15.0
state_hz = 15.0
watchdog_s = 0.5
stale_s = 0.5
speed = 60.0
options = {{ seed = 3, log = "{log}", calibration_dir = "{folder}"{options} }}

[arm.limits]
"shoulder_pan.pos" = [-110.0, 110.0]
"shoulder_lift.pos" = [-100.0, 100.0]
"elbow_flex.pos" = [-20.0, 160.0]
"wrist_flex.pos" = [-100.0, 100.0]
"wrist_roll.pos" = [-160.0, 160.0]
"gripper.pos" = [0.0, 100.0]

[arm.rest]
"shoulder_pan.pos" = 0.0
"shoulder_lift.pos" = 60.0
"elbow_flex.pos" = 90.0
"wrist_flex.pos" = 0.0

[expert]
process = "trimvla.sim.robots.joint_expert:run"

[control]
hz = 15.0
kinds = ["absolute", "absolute", "absolute", "absolute", "absolute", "absolute"]
queue.max_age_s = 2.0
state_s = 1.0
follow.lag_s = 2.0

[control.limits]
low = [-110.0, -100.0, -20.0, -100.0, -160.0, 0.0]
high = [110.0, 100.0, 160.0, 100.0, 160.0, 100.0]
max_change = [6.0, 6.0, 6.0, 6.0, 6.0, 10.0]
"""


class Run:
    """`trimvla run` with the driver in LeRobot's environment."""

    def __init__(self, folder: Path, options: str = "") -> None:
        package = folder / "site"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PLUGIN, package / PLUGIN.name, ignore=ignored)
        info = package / "lerobot_robot_joint_arm-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA)
        text = SYSTEM.format(python=PYTHON, log=folder / "arm.json", folder=folder, options=options)
        (folder / "arm.toml").write_text(text)
        words = ["run", "arm.toml", "--task", "touch the red cube", "--seconds", str(LONGEST_S)]
        path = [str(package), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.reached = folder / "arm.reached"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimvla.launch.cli", *words, "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"},
        )

    def wait_until_reached(self) -> None:
        """Until the tip is at the cube, or the run has ended by itself."""
        while not self.reached.exists() and self._process.poll() is None:
            time.sleep(0.1)

    def end(self, interrupt: bool = True) -> tuple[int, str]:
        """Stop it as Ctrl-C does; exit status and output."""
        if interrupt:
            self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=LONGEST_S)
        return self._process.returncode, output


LONGEST_S = 240


def log_of(folder: Path) -> tuple[dict, np.ndarray]:
    """The plug-in's log, and the actions float[N, 6] that LeRobot was sent."""
    log = json.loads((folder / "arm.json").read_text())
    return log, np.array([[row[key] for key in ARM] for row in log["sent"]])


REST = (0.0, 60.0, 90.0, 0.0)


@pytest.mark.slow
@needs_lerobot
def test_lerobots_arm_reaches_the_cube_and_rests(tmp_path: Path) -> None:
    """Camera, expert, control, gate, driver and LeRobot's own classes, in closed loop."""
    run = Run(tmp_path)
    run.wait_until_reached()
    _, output = run.end()
    log, sent = log_of(tmp_path)
    assert log["nearest"] < 0.02, output
    assert abs(np.diff(sent, axis=0)).max() <= 10.0 + 1e-6, "the gate's largest change"
    assert sent[-1][:4] == pytest.approx(REST, abs=1e-6), "its safe pose at the end"
    assert abs(np.diff(sent[-10:], axis=0)).max() <= 60.0 / 15.0 + 1e-6, "at its bounded speed"


@pytest.mark.slow
@needs_lerobot
def test_a_connection_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    """LeRobot's bus does not answer any more: the error names it, and nothing more is sent."""
    gone = tmp_path / "gone"
    run = Run(tmp_path, f', fails_at = "{gone}"')
    run.wait_until_reached()
    gone.touch()
    status, output = run.end(interrupt=False)
    assert status == 1
    assert "robot 'joint_arm' does not answer: ConnectionError: no status packet" in output


@pytest.mark.slow
@needs_lerobot
def test_an_arm_that_is_not_calibrated_is_not_moved(tmp_path: Path) -> None:
    status, output = Run(tmp_path, ", calibrated = false").end(interrupt=False)
    assert status == 1
    assert "lerobot-calibrate --robot.type=joint_arm" in output
    assert json.loads((tmp_path / "arm.json").read_text())["sent"] == []
