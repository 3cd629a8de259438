"""The simulated robot and camera: pure behaviour first, then both as processes behind real
sockets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from trimvla.runtime.bus.messages import Command, Episode, Frame, SimState, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.errors import ConfigError
from trimvla.sim.robots import camera, robot
from trimvla.sim.robots.camera import SceneRenderer, SimCameraConfig
from trimvla.sim.robots.robot import RobotConfig, TabletopRobot
from trimvla.sim.tabletop.env import MAX_STEPS, TabletopEnv

STAY = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
UP = (0.0, 0.0, 0.03, 0.0, 0.0, 0.0, 0.0)


def task(episode: int = 1, seed: int = 3, time_ns: int = 0) -> Task:
    return Task(time_ns=time_ns, episode=episode, instruction="any", started_ns=time_ns, seed=seed)


def command(action: tuple[float, ...] = STAY, episode: int = 1, time_ns: int = 0) -> Command:
    return Command(time_ns=time_ns, episode=episode, kind="action", action=action)


@pytest.fixture
def table() -> Iterator[TabletopRobot]:
    machine = TabletopRobot(RobotConfig(watchdog_s=1.0))
    yield machine
    machine.close()


def heights(machine: TabletopRobot) -> float:
    message = machine.messages(0)[0]
    return message.position[2]


def test_the_table_is_that_of_the_seed(table: TabletopRobot) -> None:
    assert table.follow(task(seed=11), 0)
    env = TabletopEnv(observe=False)
    env.reset(seed=11)
    assert table.messages(0)[2].instruction == env.instruction
    env.close()


def test_a_command_that_waited_on_its_way_is_not_obeyed(table: TabletopRobot) -> None:
    table.follow(task(), 0)
    assert table.obey(command(UP), 500_000_000)
    assert not table.obey(command(UP), 500_000_001)
    assert table.messages(0)[1].step == 1


def test_a_repeated_task_changes_nothing(table: TabletopRobot) -> None:
    table.follow(task(), 0)
    table.obey(command(UP), 0)
    assert not table.follow(task(), 0)
    assert table.messages(0)[1].step == 1


def test_it_steps_once_per_command(table: TabletopRobot) -> None:
    table.follow(task(), 0)
    before = heights(table)
    assert table.obey(command(UP), 0)
    assert heights(table) == pytest.approx(before + 0.03, abs=1e-6)


def test_commands_of_another_episode_are_refused(table: TabletopRobot) -> None:
    assert not table.obey(command(), 0)
    table.follow(task(episode=2), 0)
    assert not table.obey(command(episode=1), 0)
    assert table.messages(0)[1].step == 0


def test_the_watchdog_holds_and_keeps_the_grip(table: TabletopRobot) -> None:
    table.follow(task(), 0)
    table.watch(5 * NS_PER_S)
    assert table.holds == 0, "nothing has begun, so nothing has stopped"
    table.obey(command(UP), 0)
    height = heights(table)
    table.watch(NS_PER_S // 2)
    assert table.holds == 0
    table.watch(2 * NS_PER_S)
    assert table.holds == 1
    assert heights(table) == pytest.approx(height, abs=1e-6)
    assert table.messages(0)[0].gripper < 0.9, "the gripper was told to close, and still is"


def test_an_episode_ends_and_stays_ended(table: TabletopRobot) -> None:
    table.follow(task(), 0)
    for _ in range(MAX_STEPS):
        table.obey(command(), 0)
    ended = table.messages(0)[2]
    assert (ended.done, ended.success, ended.step) == (True, False, MAX_STEPS)
    assert "not reached" in ended.reason
    assert not table.obey(command(), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RobotConfig(state_hz=0),
        lambda: SimCameraConfig(hz=0),
        lambda: SimCameraConfig(name="a/b"),
    ],
)
def test_wrong_configurations_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_the_camera_draws_what_the_environment_sees(table: TabletopRobot) -> None:
    table.follow(task(seed=5), 0)
    env = TabletopEnv()
    expected = env.reset(seed=5)[0]["image"]
    renderer = SceneRenderer(128)
    for _ in range(2):
        np.testing.assert_array_equal(renderer.picture(table.messages(0)[1]), expected)
    renderer.close()
    env.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """Robot and camera in threads, on sockets in a directory of their own."""
    stop = threading.Event()
    jobs = [(robot.run, RobotConfig()), (camera.run, SimCameraConfig(hz=20))]
    threads = [threading.Thread(target=run, args=(config, tmp_path, stop)) for run, config in jobs]
    for thread in threads:
        thread.start()
    yield tmp_path
    stop.set()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_from_task_to_picture_and_from_command_to_step(running: Path) -> None:
    names = [topic("sim/state"), topic("episode"), topic(color("front"), 20)]
    with (
        Publisher(running, topic("task")) as tasks,
        Publisher(running, topic("command")) as commands,
        Subscriber(running, names) as hears,
    ):
        assert until(
            hears,
            lambda: isinstance(hears["front/color"].message, Frame),
            lambda: tasks.send(task()),
        )
        frame = hears["front/color"].message
        state = hears["sim/state"].message
        assert isinstance(frame, Frame)
        assert isinstance(state, SimState)
        assert frame.image.shape == (128, 128, 3)
        assert frame.time_ns <= monotonic_ns()
        assert state.step == 0
        commands.send(command(UP, time_ns=monotonic_ns()))
        assert until(
            hears, lambda: isinstance(e := hears["episode"].message, Episode) and e.step == 1
        )


def until(
    hears: Subscriber, condition: Callable[[], bool], repeat: Callable[[], None] = lambda: None
) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        repeat()
        hears.update(0.1)
        if condition():
            return True
    return False
