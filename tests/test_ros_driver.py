"""The ROS 2 driver over the real bus: real CDR bytes in and out. rclpy itself is not run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bundle.description import unlike_bundle
from trimvla.runtime.bundle.inputs_and_output import ActionKind
from trimvla.runtime.bus.messages import Deadman, EStop, Frame, Task
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns
from trimvla.runtime.drivers.contract import check_driver
from trimvla.runtime.errors import ConfigError, DriverError
from trimvla.runtime.ros.config import ControllerConfig, Ros2Config, RosCameraConfig
from trimvla.runtime.ros.driver import Ros2Driver

pytest.importorskip("rosbags", reason="needs rosbags, of the extra `ros`")

from tests import ros_robot, tiny_bundle
from tests.ros_robot import LocalDriver

ARM = ControllerConfig("/arm/joint_trajectory", ("lift", "pan"))  # not the bundle's order
GRIPPER = ControllerConfig("/gripper/commands", ("finger",), "positions")


def settings(**changes) -> Ros2Config:
    fields = {
        "joints": ("pan", "lift", "finger"),
        "controllers": (ARM, GRIPPER),
        "cameras": (RosCameraConfig("front", "/camera/image_raw"),),
        "limits": {"pan": (-1.0, 1.0), "lift": (-1.0, 1.0), "finger": (0.0, 0.08)},
        "gripper": "finger",
        "gripper_open": 0.08,
        "speed": 2.0,
        "hz": 50.0,
        "watchdog_s": 0.2,
        "estop": "/estop",
        "deadman": "/deadman",
        "instruction": "/instruction",
    }
    return Ros2Config(**{**fields, **changes})


def test_it_keeps_a_drivers_contract(tmp_path: Path) -> None:
    """With joints listed in another order at every message, and a controller in a third one."""
    config = settings(rest={"pan": 0.3, "lift": -0.3})
    driver = LocalDriver(config)
    assert len(check_driver(driver, config, tmp_path)) >= 6
    joints = driver.robot.joints
    assert (joints["pan"], joints["lift"]) == pytest.approx((0.3, -0.3))
    assert joints["finger"] == pytest.approx(0.04), "what is not named stays"
    assert joints["wheel"] == 9.0
    assert {names for _, values in driver.robot.received for names in values} == {
        "pan",
        "lift",
        "finger",
    }


@contextmanager
def connected(tmp_path: Path, *names: str, **changes) -> Iterator[tuple[LocalDriver, Subscriber]]:
    driver = LocalDriver(settings(**changes))
    topics = [topic(name) for name in names]
    try:
        driver.connect(tmp_path)
        with Subscriber(tmp_path, topics) as inputs:
            yield driver, inputs
    finally:
        driver.disconnect()


def until(condition: Callable[[], bool], act: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        act()
        time.sleep(0.005)


def test_images_and_states_keep_the_time_of_their_capture(tmp_path: Path) -> None:
    """80 ms late, all of it: that old it is here, not as young as its arrival."""
    with connected(tmp_path, "front/color") as (driver, inputs):
        ages: dict[int, int] = {}  # of the images, when each was first seen

        def look() -> None:
            inputs.update(0.05)
            message = inputs["front/color"].message
            if isinstance(message, Frame):
                ages.setdefault(message.sequence, monotonic_ns() - message.time_ns)

        until(lambda: bool(ages), look)
        driver.robot.late_ns = 80 * NS_PER_MS
        before = len(ages)
        until(lambda: len(ages) >= before + 5, look)
        assert min(ages.values()) >= 0 and list(ages.values())[-1] >= 80 * NS_PER_MS
        late = inputs["front/color"].message
        assert isinstance(late, Frame)
        assert late.age_known and (late.image == driver.robot.pixels).all()
        until(lambda: driver.read() is not None)
        position, gripper = driver.read() or ((), 0.0)
        taken_ns = driver.taken_ns()
        assert position == (0.1, -0.2, 0.04) and gripper == pytest.approx(0.5)
        assert taken_ns is not None and monotonic_ns() - taken_ns >= 80 * NS_PER_MS


def test_states_that_cease_are_no_states(tmp_path: Path) -> None:
    with connected(tmp_path, state_timeout_s=0.2) as (driver, _):
        until(lambda: driver.read() is not None)
        driver.robot.silent = True
        until(lambda: driver.read() is None)
        driver.robot.silent = False
        until(lambda: driver.read() is not None)


def test_a_state_without_a_stamp_is_never_now(tmp_path: Path) -> None:
    with connected(tmp_path, state_timeout_s=0.2) as (driver, _):
        until(lambda: driver.read() is not None)
        driver.robot.silent = True
        node = driver.node
        assert node is not None
        raw = ros_robot.joint_state(["pan", "lift", "finger"], [0.9, 0.9, 0.0], 0)
        until(lambda: driver.read() is None, lambda: node.receive("/joint_states", raw))
        node.receive("/joint_states", raw[:40])
        assert driver.figures()["refused"] >= 2


def test_switches_are_as_alive_as_their_senders(tmp_path: Path) -> None:
    with connected(tmp_path, "estop", "deadman") as (driver, inputs):
        node = driver.node
        assert node is not None

        def send() -> None:
            node.receive("/estop", ros_robot.boolean(True))
            node.receive("/deadman", ros_robot.boolean(True))
            inputs.update(0.02)

        until(lambda: all(inputs[name].message is not None for name in ("estop", "deadman")), send)
        pressed = inputs["estop"].message
        held = inputs["deadman"].message
        assert isinstance(pressed, EStop) and pressed.pressed and "/estop" in pressed.source
        assert isinstance(held, Deadman) and held.held
        until(lambda: not inputs["estop"].alive, lambda: inputs.update(0.02))


def test_an_instruction_is_a_task_until_it_is_empty(tmp_path: Path) -> None:
    with connected(tmp_path, "task") as (driver, inputs):
        node = driver.node
        assert node is not None
        seen: list[Task] = []

        def turn() -> None:
            driver.read()
            inputs.update(0.05)
            message = inputs["task"].message
            if isinstance(message, Task):
                seen.append(message)

        def wait(instruction: str, active: bool) -> Task:
            node.receive("/instruction", ros_robot.text(instruction))
            until(lambda: bool(seen) and seen[-1].active is active, turn)
            return seen[-1]

        first = wait("pick up the red cube", True)
        again = wait("pick up the red cube", True)
        assert (again.episode, again.started_ns) == (first.episode, first.started_ns)
        assert again.instruction == "pick up the red cube"
        ended = wait("", False)
        assert ended.episode == first.episode
        later = wait("push it left", True)
        assert later.episode == first.episode + 1 and later.started_ns > first.started_ns


@pytest.mark.parametrize(
    ("names", "late_s", "words"),
    [
        (["pan", "lift"], 0, r"got: expected each of .*\['finger'\] missing"),
        (["pan", "lift", "finger"], 3600, "3600.* s behind.*hosts' clocks must agree"),
        (["pan", "lift", "finger"], -3600, "-3600"),
    ],
)
def test_a_robot_that_is_not_as_configured(
    tmp_path: Path, names: list[str], late_s: int, words: str
) -> None:
    driver = LocalDriver(settings(start_timeout_s=1.0))
    driver.robot.late_ns = late_s * 1_000_000_000
    driver.robot.joints = dict.fromkeys(names, 0.0)
    with pytest.raises(DriverError, match=words):
        try:
            driver.connect(tmp_path)
        finally:
            driver.disconnect()
    assert driver.robot.received == []


def test_bytes_that_are_no_message_stop_nothing(tmp_path: Path) -> None:
    with connected(tmp_path, state_timeout_s=0.2) as (driver, _):
        node = driver.node
        assert node is not None
        driver.robot.silent = True
        until(lambda: driver.read() is None)  # one thread at a time
        now = time.time_ns()
        whole = {
            "/joint_states": ros_robot.joint_state(["pan", "lift", "finger"], [0.1, 0, 0], now),
            "/camera/image_raw": ros_robot.image(driver.robot.pixels, now),
            "/estop": ros_robot.boolean(False),
            "/instruction": ros_robot.text("push"),
        }
        rng = np.random.default_rng(0)
        for turn in range(400):
            name = list(whole)[turn % len(whole)]
            raw = bytearray(whole[name])
            raw[rng.integers(min(len(raw), 80))] = rng.integers(256)
            node.receive(name, bytes(raw[: rng.integers(len(raw))] if turn % 3 == 0 else raw))
        assert driver.figures()["refused"] > 100
        driver.robot.silent = False
        until(lambda: driver.read() is not None)


def test_velocities_are_stopped_by_a_hold(tmp_path: Path) -> None:
    wheels = ControllerConfig("/gripper/commands", ("finger",), "velocities")
    with connected(tmp_path, controllers=(ARM, wheels)) as (driver, _):
        driver.hold()
        assert driver.robot.received == [], "what was never moved is not commanded"
        driver.write((0.2, 0.1, 0.5))
        driver.hold()
    moves = driver.robot.received
    assert moves[:2] == [
        ("/arm/joint_trajectory", {"lift": 0.1, "pan": 0.2}),
        ("/gripper/commands", {"finger": 0.5}),
    ]
    assert moves[2:] == [
        ("/arm/joint_trajectory", {"lift": 0.1, "pan": 0.2}),
        ("/gripper/commands", {"finger": 0.0}),
    ]


def test_a_bundle_is_compared_before_anything_starts() -> None:
    robot = LocalDriver.describe(settings())
    assert robot is not None and robot.names == ("pan", "lift", "finger")
    units = ("rad", "rad", "rad")
    absolute: tuple[ActionKind, ...] = ("absolute",) * 3
    delta: tuple[ActionKind, ...] = ("delta",) * 3
    ours = ActionMeaning(absolute, 50.0, ("pan", "lift", "finger"), units)
    assert unlike_bundle(robot, ours) == ""
    for names, kinds, unit in (
        (("lift", "pan", "finger"), absolute, units),
        (("pan", "lift", "finger"), delta, units),
        (("pan", "lift", "finger"), absolute, ("deg",) * 3),
        (("pan", "lift"), absolute[:2], units[:2]),
    ):
        assert unlike_bundle(robot, ActionMeaning(kinds, 50.0, names, unit))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joints": ()}, "'joints'"),
        ({"controllers": (ARM,)}, "once in 'controllers'"),
        ({"controllers": (ARM, GRIPPER, GRIPPER)}, "once in 'controllers'"),
        ({"limits": {"elbow": (0.0, 1.0)}}, "'limits'"),
        ({"gripper": "claw"}, "'gripper'"),
        ({"estop": "/deadman"}, r"named once, got \['/deadman'\]"),
        ({"hz": 0.0}, "'hz'"),
        ({"gripper_open": 0.0}, "gripper_open"),
    ],
)
def test_settings_that_cannot_be(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(**changes)


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="ROS 2 is here")
def test_without_ros_the_error_has_the_way(tmp_path: Path) -> None:
    driver = Ros2Driver(settings())
    with pytest.raises(ConfigError, match=r"source /opt/ros/DISTRO/setup.bash.*Humble 3\.10"):
        try:
            driver.connect(tmp_path)
        finally:
            driver.disconnect()


SYSTEM = """
[arm]
process = "driver"
kind = "tests.ros_robot:SocketDriver"
joints = ["pan", "lift", "finger"]
cameras = [{{ name = "front", topic = "/camera/image_raw" }}]
controllers = [
    {{ topic = "/arm/joint_trajectory", joints = ["lift", "pan"] }},
    {{ topic = "/gripper/commands", joints = ["finger"], form = "positions" }},
]
estop = "/estop"
instruction = "/instruction"
hz = 10.0
gripper = "finger"
stale_s = 2.0
watchdog_s = 2.0

[policy]
bundle = "{bundle}"
threads = 1
budget.frame_s = 10.0

[control]
hz = 10.0
kinds = ["absolute", "absolute", "absolute"]
queue.max_age_s = 10.0
state_s = 2.0
follow.lag_s = 2.0
interlock.estop = true

[control.limits]
low = [-1.0, -1.0, 0.0]
high = [1.0, 1.0, 1.0]
max_change = [0.01, 0.01, 0.1]
"""


def wait(run: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not condition() and time.monotonic() < end and run.poll() is None:
        time.sleep(0.05)


def still(moves: list[tuple[float, float]]) -> bool:
    return np.ptp(np.array(moves), axis=0).max() < 1e-9


@pytest.mark.slow
def test_a_robot_of_ros_follows_a_bundle_until_its_stop(tmp_path: Path, repo_root: Path) -> None:
    """Processes: policy, control with its gate, the driver; the robot's topics are CDR bytes."""
    bundle = tiny_bundle.write_bundle(
        tmp_path / "tiny",
        dim=3,
        kinds=("absolute",) * 3,
        names=("pan", "lift", "finger"),
        units=("rad",) * 3,
        control_hz=10.0,
    )
    (tmp_path / "arm.toml").write_text(SYSTEM.format(bundle=bundle))
    words = [sys.executable, "-m", "trimvla.launch.cli", "run", "arm.toml", "--seconds", "120"]
    path = os.pathsep.join([str(repo_root), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": path}
    with ros_robot.serving(tmp_path) as robot:
        run = subprocess.Popen(
            [*words, "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environ
        )
        try:
            wait(run, lambda: len(robot.moves) >= 30)
            robot.pressed = True
            wait(run, lambda: still(robot.moves[-10:]))
            stopped = len(robot.moves)
            wait(run, lambda: len(robot.moves) >= stopped + 10)
        finally:
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=60)
    moves = np.array(robot.moves)
    assert len(moves) >= 30, output
    assert np.ptp(moves, axis=0).min() > 0.02, "it followed, in every joint"
    assert abs(np.diff(moves, axis=0)).max(axis=0) == pytest.approx([0.01, 0.01], abs=1e-6)
    assert len(moves) >= stopped + 10 and still(robot.moves[stopped - 1 :]), "stopped, it stays"
