"""Frozen cameras that are not frozen byte for byte, and living ones that look it: what is refused,
and when.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle

from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bus.messages import Frame, JointState, Refusal, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.cameras.process import CameraConfig, SyntheticSource
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, monotonic_ns
from trimvla.runtime.errors import FrozenError
from trimvla.runtime.inference.frozen_frames import (
    BELIEVED_AFTER,
    FrozenFrameDetector,
    Still,
    Streak,
)
from trimvla.runtime.inference.observation import AgeBudget, join
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_loop import PolicyLoop
from trimvla.sim.robots.faults import Frozen, FrozenImages

START = 10 * NS_PER_S
PERIOD = 50  # of the camera [ms]
TASK = Task(time_ns=START, episode=1, instruction="pick up the red cube", started_ns=START)
MEANING = ActionMeaning(("delta",) * 6 + ("gripper",), 5.0)
Path1D = Callable[[int], float]  # of a step, the position of a robot [m]


@dataclass
class Scene:
    """A table with things on it, and a gripper over it whose place is the robot's.

    `noise`: of the sensor [levels].
    """

    height: int = 120
    width: int = 160
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        coarse = self._rng.integers(60, 200, (12, 16, 3))
        self._table = coarse.repeat(self.height // 12, axis=0).repeat(self.width // 16, axis=1)

    def image(self, position: float) -> np.ndarray:
        """uint8[height, width, 3]: a metre is one and a half widths."""
        image = self._table.astype(np.float64)
        side = self.width // 10
        left = int(self.width * (0.1 + 1.5 * position))
        image[self.height // 3 : self.height // 2, left : left + side] = 20.0
        if self.noise:
            image += self._rng.normal(0.0, self.noise, image.shape)
        return np.clip(image.round(), 0, 255).astype(np.uint8)


class Robot:
    """Looks through a camera while it moves: images and states in time, and what would be
    refused.
    """

    def __init__(self, budget: AgeBudget | None = None) -> None:
        self.budget = budget or AgeBudget()
        self.watch = FrozenFrameDetector(self.budget.frozen_alike)
        self.position = 0.0
        self._count = 0

    def look(self, image: np.ndarray, position: float) -> str:
        """Why this image is refused; empty if it is not."""
        self.position = position
        self._count = self._count + 1
        now = START + self._count * PERIOD * NS_PER_MS
        frame = Frame("front", now, image, sequence=self._count)
        stills = {
            "front": self.watch.look(
                frame, JointState(time_ns=now, position=(position, 0.0), gripper=1.0)
            )
        }
        try:
            join(now, {"front": frame}, TASK, None, self.budget, stills=stills)
        except FrozenError as error:
            return str(error)
        return ""


def refused_after(kind: Frozen, amount: float, scene: Scene, order: str = "in turn") -> list[float]:
    """Motion [m] since the camera froze, at every refusal of 90 images while the robot moves by 0.3
    m.
    """
    robot = Robot()
    living = []
    rng = np.random.default_rng(1)
    for step in range(30):
        living.append(scene.image(0.002 * step))
        assert not robot.look(living[-1], 0.002 * step), "it lives"
    frozen = FrozenImages(kind, living, amount)
    start = robot.position
    images = [frozen.next() for _ in range(90)]
    if order == "random":
        rng.shuffle(images)
    moves = [0.3 * (step + 1) / 90 for step in range(90)]
    return [
        moved
        for moved, image in zip(moves, images, strict=True)
        if robot.look(image, start + moved)
    ]


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "amount", "within"),
    [
        ("freeze", 0, 0.03),
        *(("buffers", count, 0.03) for count in (2, 3, 5, 7, 10)),
        ("pixel", 0, 0.03),
        ("reencode", 0, 0.11),
    ],
)
def test_every_image_of_a_frozen_camera_is_refused_from_a_stated_motion_on(
    kind, amount, within, noise
):
    refused = refused_after(kind, amount, Scene(noise=noise))
    assert refused[0] < within and len(refused) >= round(90 * (1 - within / 0.3)) - 1


def test_buffers_in_random_order_are_noticed_too():
    for count in (2, 5, 10):
        refused = refused_after("buffers", count, Scene(), "random")
        assert refused[0] < 0.04 and len(refused) > 75, count


def test_a_clock_on_a_frozen_image_of_a_sensor_is_noticed():
    refused = refused_after("overlay", 0.1, Scene(noise=2.0))
    assert refused[0] < 0.11 and len(refused) >= 59


def test_a_measurement_beyond_its_limit_needs_several_images_to_end():
    streak = Streak(0.1)
    streak.interrupt(1)
    for moved in (0.05, 0.08):
        streak.go_on(moved)
    assert not streak.doubted and streak.interrupt(2) == Still(2), "one image ends it"
    for moved in (0.05, 0.2):
        streak.go_on(moved)
    for _ in range(BELIEVED_AFTER):  # never so many in a row
        assert [streak.interrupt(3).moved for _ in range(BELIEVED_AFTER - 1)] == [0.2] * 2
        assert streak.go_on(0.0).moved == 0.2
    kept = [streak.interrupt(time_ns) for time_ns in (4, 5, 6)]
    assert [still.since_ns for still in kept] == [2, 2, 6] and not streak.doubted


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_one_image_that_looks_new_does_not_let_a_frozen_camera_through_again(noise):
    scene = Scene(noise=noise)
    robot = Robot()
    living = [scene.image(0.002 * step) for step in range(30)]
    for step, image in enumerate(living):
        robot.look(image, 0.002 * step)
    frozen = FrozenImages("reencode", living, 0)
    refused = []
    for step in range(90):
        elsewhere = scene.image(0.15 + 0.005 * step)
        image = elsewhere if step % 10 == 9 else frozen.next()
        refused.append(bool(robot.look(image, 0.06 + 0.004 * (step + 1))))
    assert all(refused[40:]), "refused from 0.1 m on, and not believed for one image"


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_camera_that_lives_again_is_believed_while_its_robot_stands(noise):
    scene = Scene(noise=noise)
    robot = Robot()
    living = [scene.image(0.002 * step) for step in range(30)]
    for step, image in enumerate(living):
        robot.look(image, 0.002 * step)
    frozen = FrozenImages("reencode", living, 0)
    last = [robot.look(frozen.next(), 0.06 + 0.004 * (step + 1)) for step in range(60)][-1]
    assert last, "refused"
    again = [robot.look(scene.image(0.3), 0.3) for _ in range(20)]
    assert not any(again[BELIEVED_AFTER - 1 :]), again


@pytest.mark.parametrize("change", ["lamp", "exposure", "noise", "noise of a simulator"])
def test_what_else_changes_on_a_frozen_image_does_not_hide_it(change):
    scene = Scene(noise=0.0 if "simulator" in change else 2.0)
    robot = Robot()
    rng = np.random.default_rng(2)
    living = [scene.image(0.002 * step) for step in range(30)]
    assert not [
        why for step, image in enumerate(living) if (why := robot.look(image, 0.002 * step))
    ]
    refused = 0
    for step in range(90):
        image = living[-1].astype(np.float64)
        if change == "lamp":
            image[20:24, 20:24] = 255 * (step % 3 == 0)
        elif change == "exposure":
            image *= 1 + 0.15 * np.sin(step / 15)
        else:
            image += rng.normal(0.0, 3.0, image.shape)
        refused += bool(
            robot.look(np.clip(image, 0, 255).astype(np.uint8), 0.06 + 0.3 * (step + 1) / 90)
        )
    assert refused >= 58, "from 0.1 m on"


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize(
    "move",
    [
        lambda step: 0.0,
        lambda step: 0.0002 * step,
        lambda step: 0.15 + 0.15 * math.sin(step / 9),
        lambda step: 0.01 * min(step, 30),
        lambda step: 0.0015 * abs(step % 200 - 100),
    ],
    ids=["stands", "slow approach", "to and fro", "stops", "to and fro over the same images"],
)
def test_a_living_camera_is_not_refused(move: Path1D, noise: float):
    scene = Scene(noise=noise)
    robot = Robot(AgeBudget(frozen_s=0.5 if noise else None))
    assert not [
        why for step in range(400) if (why := robot.look(scene.image(move(step)), move(step)))
    ]


def test_exposure_that_changes_on_a_living_camera_is_not_refused():
    scene = Scene(noise=2.0)
    robot = Robot(AgeBudget(frozen_s=0.5))
    for step in range(300):
        image = np.clip(scene.image(0.001 * step) * (1 + 0.2 * math.sin(step / 20)), 0, 255).astype(
            np.uint8
        )
        assert not robot.look(image, 0.001 * step)


def test_test_images_live():
    source = SyntheticSource(CameraConfig(kind="synthetic"))
    robot = Robot(AgeBudget(frozen_s=0.2))
    assert not [why for step in range(200) if (why := robot.look(source.read(), 0.01 * step))]


def test_an_image_that_is_all_the_same_is_refused_after_a_while():
    black = np.zeros((48, 64, 3), np.uint8)
    robot = Robot(AgeBudget(frozen_s=0.5))
    refusals = [robot.look(black, 0.0) for _ in range(20)]
    assert not any(refusals[:11]) and all(refusals[11:])


def test_images_of_any_size_are_looked_at():
    watch = FrozenFrameDetector()
    for number, shape in enumerate([(1, 1, 3), (5, 700, 3), (700, 5, 3), (129, 127, 3)]):
        image = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        first = watch.look(Frame("front", number * 100 + 50, image, sequence=2 * number))
        again = watch.look(Frame("front", number * 100 + 99, image[::1], sequence=2 * number + 1))
        assert (first.same.repeats, again.same.repeats) == (0, 1)


def test_the_same_frame_looked_at_twice_is_no_repeat():
    watch = FrozenFrameDetector()
    image = Scene().image(0.0)
    frame = Frame("front", START, image, sequence=3)
    assert watch.look(frame).same == watch.look(frame).same == Still(START)


def test_only_motion_between_the_captures_counts():
    watch = FrozenFrameDetector()
    image = Scene().image(0.0)

    def look(ms: int, state_ms: int, position: float) -> Still:
        state = JointState(time_ns=START + state_ms, position=(position,), gripper=1.0)
        return watch.look(Frame("front", START + ms, image, sequence=ms), state).same

    still = [look(0, -50, 0.5), look(100, 50, 0.1), look(200, 250, 0.9)][-1]
    assert (still.repeats, still.moved) == (2, 0.0), (
        "one state lies between the captures; nothing is known to move"
    )
    assert look(300, 280, 0.2).moved == pytest.approx(0.1)


def test_a_whole_turn_is_no_motion():
    robot = Robot()
    image = Scene().image(0.0)
    assert not [why for step in range(20) if (why := robot.look(image, 2 * np.pi * (step % 2)))]


def test_looking_is_cheap():
    """The best of many looks, for the machine may be busy; a frozen image costs most."""
    scene = Scene(480, 640)
    watch = FrozenFrameDetector()
    times = []
    for step in range(150):
        image = scene.image(0.002 * min(step, 50))
        start = time.perf_counter()
        watch.look(Frame("front", step, image, sequence=step))
        times.append(time.perf_counter() - start)
    assert min(times[60:]) < 2e-3, "0.5 ms on an idle core"


def test_buffers_in_turn_are_refused_over_real_sockets(tmp_path: Path):
    """The policy process's loop, with a camera whose driver gives five old buffers in turn while
    the robot moves.
    """
    config = PolicyConfig(max_hz=50.0, budget=AgeBudget(frame_s=5.0))
    telemetry = Telemetry("policy")
    names = ["front/color", "task", "robot/state"]
    scene = Scene(noise=2.0)
    frozen = FrozenImages("buffers", [scene.image(0.01 * step) for step in range(5)], 5)
    with (
        closing(Policy.load(write_bundle(tmp_path / "bundle"))) as policy,
        Subscriber(tmp_path, [topic(name) for name in names]) as inputs,
        Subscriber(tmp_path, [topic("refusal")]) as refused,
        Publisher(tmp_path, topic("chunk")) as chunks,
        Publisher(tmp_path, topic("refusal")) as refusals,
        Publisher(tmp_path, topic("front/color")) as front,
        Publisher(tmp_path, topic("task")) as tasks,
        Publisher(tmp_path, topic("robot/state")) as states,
    ):
        loop = PolicyLoop(
            policy, inputs, chunks, telemetry, meaning=MEANING, config=config, refusals=refusals
        )
        started = monotonic_ns()
        deadline = time.monotonic() + 60
        reason = ""
        while "frozen" not in reason and time.monotonic() < deadline:
            now = monotonic_ns()
            tasks.send(Task(time_ns=now, episode=1, instruction="go", started_ns=started))
            states.send(JointState(time_ns=now, position=(0.005 * front.sent, 0.0), gripper=1.0))
            front.send(Frame("front", monotonic_ns(), frozen.next()))
            loop.step()
            refused.update(0.01)
            message = refused["refusal"].message
            reason = f"{message.kind}: {message.reason}" if isinstance(message, Refusal) else ""
    assert (
        "new pixels on 'front/color', got the same" in reason and "while the robot moved" in reason
    )
