"""The simulated robot: the tabletop behind the sockets that a real robot has.

It steps once per command and holds by its own watchdog when none comes; it publishes its joints,
the whole state for cameras, and how the episode stands. A task with a new episode number sets the
table anew. Knows physics through `TabletopEnv` and time through the clock; knows no image and no
policy.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bus.messages import Command, Episode, JointState, SimState, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError
from trimvla.sim.tabletop.env import TabletopEnv

# stay; the gripper value is replaced by the last one
NULL_DELTA = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
GRIPPER = 6
NO_EPISODE = -1
# topics, in the order of `TabletopRobot.messages`
PUBLISHES = ("robot/state", "sim/state", "episode")

POSITIONS = 4  # of its state: the tool's x, y, z and its yaw


@dataclass(frozen=True)
class RobotConfig:
    """How the simulated robot behaves."""

    variant: str = "default"
    """What the table looks like, where the task does not define it."""
    state_hz: float = 20.0
    """How often it publishes its position, at least [Hz]."""
    watchdog_s: float = 1.0
    """Silent for longer, its commander counts as gone, and the robot holds."""
    stale_s: float = 0.5
    """A command that was sent longer ago is not obeyed."""

    def __post_init__(self) -> None:
        if not min(self.state_hz, self.watchdog_s, self.stale_s) > 0:
            numbers = f"{self.state_hz}, {self.watchdog_s} and {self.stale_s}"
            raise ConfigError(
                f"expected 'state_hz', 'watchdog_s' and 'stale_s' above 0, got {numbers}"
            )


class TabletopRobot:
    """Episodes on the tabletop, driven by tasks and commands.

    Pure: what happens when is the caller's.
    """

    def __init__(self, config: RobotConfig | None = None) -> None:
        self._config = config or RobotConfig()
        self.env = TabletopEnv(variant=self._config.variant, observe=False)
        self.episode = NO_EPISODE
        self._gripper = 1.0
        self._step = 0
        self._last_ns = 0
        self._success = self._done = False
        self.holds = 0
        """Steps that the watchdog made."""

    @property
    def ready(self) -> bool:
        """Whether a table has been set."""
        return self.episode != NO_EPISODE

    def follow(self, task: Task, now: int) -> bool:
        """Set the table if the task is of another episode; True if it was."""
        if task.episode == self.episode:
            return False
        variant = str(task.options.get("variant", self._config.variant))
        self.env.reset(seed=task.seed, options={"variant": variant})
        self.episode = task.episode
        self._step = 0
        self._last_ns = now
        self._gripper = 1.0
        self._success = False
        self._done = False
        return True

    def obey(self, command: Command, now: int) -> bool:
        """Step with a command of this episode; False if it is of another, too old, or the episode
        is over.
        """
        old = now - command.time_ns > to_ns(self._config.stale_s)
        if not self.ready or command.episode != self.episode or self._done or old:
            return False
        self._advance(np.asarray(command.action, np.float32), now)
        return True

    def watch(self, now: int) -> None:
        """Hold for one step if no command has come for too long while an episode is under way."""
        started = self._step > 0 and not self._done
        if started and now - self._last_ns > to_ns(self._config.watchdog_s):
            self.holds += 1
            hold = NULL_DELTA.copy()
            hold[GRIPPER] = self._gripper
            self._advance(hold, now)

    def _advance(self, action: np.ndarray, now: int) -> None:
        _, _, terminated, truncated, info = self.env.step(action)
        self._gripper = float(action[GRIPPER])
        self._step += 1
        self._last_ns = now
        self._success = bool(info["success"])
        self._done = terminated or truncated

    def messages(self, now: int) -> tuple[JointState, SimState, Episode]:
        """What the robot publishes at this moment; see `PUBLISHES` for the topics."""
        scene = self.env.scene()
        state = self.env.state()
        return (
            JointState(time_ns=now, position=(*state.tool, state.yaw), gripper=state.opening),
            SimState(
                time_ns=now,
                episode=self.episode,
                step=self._step,
                scene=scene.to_dict(),
                qpos=tuple(map(float, self.env.qpos())),
            ),
            Episode(
                time_ns=now,
                episode=self.episode,
                instruction=scene.instruction(),
                step=self._step,
                done=self._done,
                success=self._success,
                reason=self._reason(),
            ),
        )

    def _reason(self) -> str:
        if not self._done:
            return ""
        return "the goal is reached" if self._success else f"not reached within {self._step} steps"

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def description(config: RobotConfig) -> Description | None:
    """What the robot takes and gives, as a driver describes it."""
    del config
    deltas = (Dimension(kind="delta"),) * GRIPPER
    return Description((*deltas, Dimension(kind="gripper")), (Quantity(),) * POSITIONS)


def run(config: RobotConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `robot`: receive, step, publish, until `stop`. A command is executed when it
    comes.
    """
    robot = TabletopRobot(config)
    reporter = Reporter(run_dir, Telemetry("robot"))
    publishers = [Publisher(run_dir, topic(name)) for name in PUBLISHES]
    inputs = Subscriber(run_dir, [topic("task"), topic("command")])
    reporter.inputs = inputs
    try:
        while not stop.is_set():
            inputs.update(1 / config.state_hz)
            act(robot, inputs, reporter.telemetry)
            publish(robot, publishers)
            reporter.beat()
    finally:
        for closing in (inputs, reporter, *publishers, robot):
            closing.close()


def act(robot: TabletopRobot, inputs: Subscriber, telemetry: Telemetry) -> None:
    """Follow the newest task, obey the commands that came, hold if there are none."""
    now = monotonic_ns()
    task = inputs["task"].message
    if inputs["task"].updated and isinstance(task, Task):
        telemetry.count("episodes", robot.follow(task, now))
    for command in inputs["command"].fresh:
        obeyed = isinstance(command, Command) and robot.obey(command, monotonic_ns())
        telemetry.count("commands_obeyed" if obeyed else "commands_refused")
    robot.watch(monotonic_ns())
    telemetry.counters["watchdog_holds"] = robot.holds
    telemetry.state = "ready" if robot.ready else "waiting"


def publish(robot: TabletopRobot, publishers: list[Publisher]) -> None:
    """Publish where everything is, once there is a table."""
    if robot.ready:
        for publisher, message in zip(publishers, robot.messages(monotonic_ns()), strict=True):
            publisher.send(message)
