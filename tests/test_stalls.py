"""Processes that are stopped and go on: no command comes of what became old meanwhile.

Real processes, real signals.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from trimvla.runtime.bus.messages import ActionChunk, Command, JointState, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.chunks.chunk_queue import QueueConfig
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, monotonic_ns
from trimvla.runtime.control.controller import ControlConfig, Decision
from trimvla.runtime.control.process import SUBSCRIBES, ControlLoop
from trimvla.runtime.control.safety import Limits

HZ = 10.0
MAX_AGE_S = 0.8
LIMIT_MS = (MAX_AGE_S + 1 / HZ) * 1e3  # a tick may be one period late
CONFIG = ControlConfig(
    Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,)),
    hz=HZ,
    queue=QueueConfig(max_age_s=MAX_AGE_S),
)
CONTROL = f"""
import sys, threading
from pathlib import Path
from trimvla.runtime.control import process as control
from trimvla.runtime.chunks.chunk_queue import QueueConfig
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.control.safety import Limits
limits = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
config = ControlConfig(limits, hz={HZ}, queue=QueueConfig(max_age_s={MAX_AGE_S}))
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
control.run(config, Path(sys.argv[1]), stop)
"""


@contextmanager
def controlling(run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process `control`; it goes on and ends, whatever was done to it."""
    process = subprocess.Popen([sys.executable, "-c", CONTROL, str(run_dir)], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=20)
    assert process.returncode == 0


class World:
    """Everything around control: a robot, a task, a policy; and a witness of what is sent."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        self._sends = {
            n: stack.enter_context(Publisher(run_dir, topic(n)))
            for n in ("task", "robot/state", "chunk")
        }
        deep = replace(topic("command"), depth=4096, high_water=4096)
        self._receives = stack.enter_context(Subscriber(run_dir, [deep, topic("control/report")]))
        self._began_ns = monotonic_ns()
        self._seen_ns = 0
        self.thinks = True
        """Whether the policy makes chunks."""
        self.commands: list[Command] = []
        self.ages_ms: list[float] = []
        """Of the images behind the actions, when they were sent."""

    def live(self, seconds: float) -> None:
        """Publish all that control needs, 50 times a second, and take in what it sends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = monotonic_ns()
            self._sends["task"].send(
                Task(time_ns=now, episode=1, instruction="go", started_ns=self._began_ns)
            )
            self._sends["robot/state"].send(
                JointState(time_ns=now, position=(0.0,) * 6, gripper=1.0)
            )
            if self.thinks and now - self._seen_ns > 0.1 * NS_PER_S:
                self._seen_ns = now
                self._sends["chunk"].send(_chunk(now))
            self._receives.update(0.02)
            fresh = [
                message
                for message in self._receives["command"].fresh
                if isinstance(message, Command)
            ]
            self.commands += fresh
            self.ages_ms += [
                (c.time_ns - c.captured_ns) / NS_PER_MS for c in fresh if c.captured_ns is not None
            ]

    def live_until_moving(self) -> None:
        """Live until actions come."""
        end = time.monotonic() + 60
        before = len(self.ages_ms)
        while len(self.ages_ms) < before + 2:
            assert time.monotonic() < end, f"no action came; control: {self.report()}"
            self.live(0.1)

    def report(self) -> Report | None:
        """Control's newest report."""
        message = self._receives["control/report"].message
        return message if isinstance(message, Report) else None


def _chunk(now: int) -> ActionChunk:
    """Many rows: only the age of its image ends it."""
    return ActionChunk(
        time_ns=now,
        episode=1,
        actions=((0.001,) * 6 + (1.0,),) * 100,
        control_hz=HZ,
        kinds=CONFIG.kinds,
        valid_rows=100,
        produced_ns=now,
        frame_sequence=0,
        seed=(0,),
        instruction="go",
    )


def stop_control(run_dir: Path, times: int, seed: int) -> World:
    """Stop control at random moments, for 0.45 to 3 s; in half of them its policy stands still as
    well.
    """
    rng = random.Random(seed)
    with ExitStack() as stack:
        process = stack.enter_context(controlling(run_dir))
        world = World(run_dir, stack)
        for number in range(times):
            world.thinks = True
            world.live_until_moving()
            world.live(rng.uniform(0.0, 0.2))
            world.thinks = number % 2 == 0
            process.send_signal(signal.SIGSTOP)
            world.live(rng.uniform(0.45, 3.0))
            process.send_signal(signal.SIGCONT)
            world.live(0.3)
        world.thinks = True
        world.live_until_moving()
    return world


def test_what_waited_in_the_sockets_counts_by_its_own_time(tmp_path: Path):
    """The moment after a stop, exactly: the tick is of before it, and only now the messages of then
    come in.
    """
    names = ("task", "robot/state", "chunk", "command")
    with ExitStack() as stack:
        inputs = stack.enter_context(Subscriber(tmp_path, [topic(name) for name in SUBSCRIBES]))
        tasks, states, chunks, commands = [
            stack.enter_context(Publisher(tmp_path, topic(name))) for name in names
        ]
        loop = ControlLoop(CONFIG, inputs, commands, Telemetry("control"))

        def tick(seconds_ago: float) -> Decision:
            """A tick planned, and messages sent, so long ago, that come in at this moment."""
            then = monotonic_ns() - round(seconds_ago * NS_PER_S)
            tasks.send(
                Task(time_ns=then, episode=1, instruction="go", started_ns=then - 9 * NS_PER_S)
            )
            states.send(JointState(time_ns=then, position=(0.0,) * 6, gripper=1.0))
            chunks.send(_chunk(then))
            time.sleep(0.05)
            return loop.tick(then)

        end = time.monotonic() + 20
        while (last := tick(0.0)).state != "running":
            assert time.monotonic() < end, last
        for seconds in (0.6, 0.95, 2.0, 60.0):
            decision = tick(seconds)
            assert decision.command is None or decision.command.kind == "hold", (
                f"{seconds} s: {decision}"
            )
        assert tick(0.0).state == "running"


class Stopped(Subscriber):
    """Inputs of a process that is stopped in the middle of its tick, after it has looked at the
    clock.
    """

    stops_s = 0.0

    def update(self, timeout_s: float = 0.0) -> None:
        super().update(timeout_s)
        time.sleep(self.stops_s)


def test_an_action_that_was_decided_before_the_stop_is_not_sent_after_it(tmp_path: Path):
    telemetry = Telemetry("control")
    with ExitStack() as stack:
        inputs = Stopped(tmp_path, [topic(name) for name in SUBSCRIBES])
        stack.callback(inputs.close)
        world = World(tmp_path, stack)
        commands = stack.enter_context(Publisher(tmp_path, topic("command")))
        loop = ControlLoop(CONFIG, inputs, commands, telemetry)
        end = time.monotonic() + 20
        while (moved := loop.tick(monotonic_ns())).state != "running":
            assert time.monotonic() < end
            world.live(0.05)
        inputs.stops_s = 0.15
        world.live(0.05)
        held = loop.tick(monotonic_ns())
    assert moved.command is not None and moved.command.kind == "action"
    assert held.command is not None and held.command.kind == "hold", held
    assert (
        "expected an action to be sent within 100 ms, got 1" in held.reason
        and telemetry.counters["withdrawn"] == 1
    )


@pytest.mark.parametrize(
    "times", [4, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.alone])]
)
def test_a_control_process_that_was_stopped_sends_no_action_of_an_old_image(
    tmp_path: Path, times: int
):
    world = stop_control(tmp_path, times, seed=times)
    old = [round(age) for age in world.ages_ms if age > LIMIT_MS]
    assert not old, (
        f"{len(old)} of {len(world.ages_ms)} actions of images {old} ms old, expected at most"
        f" {LIMIT_MS}"
    )
    report = world.report()
    assert report is not None and report.counters["skipped"] >= times * 4, (
        "ticks of the stops were made up for"
    )
