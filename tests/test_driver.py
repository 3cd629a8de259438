"""The loop of a driver: a command is obeyed once, in time, or never; silence is a hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trimvla.runtime.bus.messages import Command, JointState, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.drivers.driver import Driver, DriverConfig
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.drivers.obedience import Obedience
from trimvla.runtime.errors import ConfigError

ACTION = (0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
CONFIG = DriverConfig(state_hz=50.0, watchdog_s=0.3, stale_s=0.2)


def command(time_ns: int, action: tuple[float, ...] = ACTION) -> Command:
    return Command(time_ns=time_ns, episode=0, kind="action", action=action)


def test_a_command_is_obeyed_once_in_time_or_never() -> None:
    obedience = Obedience(CONFIG, 7)
    now = 10 * NS_PER_S
    assert not obedience.must_hold(now)
    assert obedience.judge(command(now), now) == "obeyed"
    obedience.obey(now)
    assert obedience.judge(command(now), now) == "repeated"
    assert obedience.judge(command(now - 1), now) == "repeated"
    assert obedience.judge(command(now + 1), now + NS_PER_S) == "stale"
    assert obedience.judge(command(now + 2, ACTION[:6]), now + 2) == "misfit"
    assert obedience.moving


def test_it_holds_once_when_its_commander_falls_silent() -> None:
    obedience = Obedience(CONFIG, 7)
    now = 10 * NS_PER_S
    obedience.judge(command(now), now)
    obedience.obey(now)
    late = now + int(0.31 * NS_PER_S)
    assert not obedience.must_hold(now + int(0.29 * NS_PER_S))
    obedience.judge(command(now + 1), late)
    assert obedience.must_hold(late), "a stale command is no sign of life"
    assert not obedience.must_hold(late + 1)
    assert not obedience.moving


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"state_hz": 0.0}, "'state_hz', got 0.0"),
        ({"watchdog_s": float("nan")}, "'watchdog_s', got nan"),
        ({"stale_s": float("inf")}, "'stale_s', got inf"),
        ({"kinds": ()}, "'kinds', got none"),
    ],
)
def test_what_it_cannot_be_set_to(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DriverConfig(**settings)


class Recorder(Driver):
    """A robot that notes what it is asked to do."""

    def __init__(self, fails: bool = False) -> None:
        self.position = [0.0] * 6
        self.calls: list[str] = []
        self._fails = fails

    def read(self) -> tuple[Sequence[float], float]:
        return self.position, 1.0

    def write(self, action: Sequence[float]) -> None:
        if self._fails:
            raise OSError("the bus is gone")
        self.calls.append("write")
        self.position = [old + new for old, new in zip(self.position, action[:6], strict=True)]

    def hold(self) -> None:
        self.calls.append("hold")

    def disconnect(self) -> None:
        self.calls.append("disconnect")


def until(condition: Callable[[], bool], what: str, act: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        act()
        time.sleep(0.02)


def test_over_real_sockets(tmp_path: Path) -> None:
    """States come, commands move it, silence holds it, and the end is a hold and a disconnect."""
    robot = Recorder()
    stop = threading.Event()
    thread = threading.Thread(
        target=drive, args=(robot, CONFIG, tmp_path, stop), kwargs={"name": "left-arm"}
    )
    commands = Publisher(tmp_path, topic("command"))
    topics = [topic("robot/state"), topic(report("left-arm"))]
    with commands, Subscriber(tmp_path, topics) as heard:
        thread.start()
        try:
            until(
                lambda: moved(heard) > 0, "it moves", lambda: commands.send(command(monotonic_ns()))
            )
            until(lambda: "hold" in robot.calls, "it holds when nobody commands it")
            until(lambda: state_of(heard) == "holding", "it reports that")
        finally:
            stop.set()
            thread.join()
    assert robot.calls[-2:] == ["hold", "disconnect"]


def moved(heard: Subscriber) -> float:
    heard.update(0.05)
    state = heard["robot/state"].message
    return state.position[0] if isinstance(state, JointState) else 0.0


def state_of(heard: Subscriber) -> str:
    heard.update(0.05)
    said = heard[report("left-arm")].message
    return said.state if isinstance(said, Report) else ""


def test_a_call_that_fails_ends_in_a_hold(tmp_path: Path) -> None:
    robot = Recorder(fails=True)
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            drive(robot, CONFIG, tmp_path, stop, name="arm")
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    with Publisher(tmp_path, topic("command")) as commands:
        thread.start()
        until(
            lambda: not thread.is_alive(), "it ends", lambda: commands.send(command(monotonic_ns()))
        )
    assert str(failures[0]) == "the bus is gone"
    assert robot.calls == ["hold", "disconnect"]
