"""A simulated arm without a world, and what every driver owes its robot: a command is obeyed once,
in time, or never.

It integrates deltas, publishes its position at a steady rate, and holds by itself when its
commander falls silent: nobody else can do that for it when the control loop, its machine or the
network is gone. It counts what it received by the commands' sequence numbers: lost ones, repeated
ones, and those that came too late to be obeyed. Knows no image and no policy. `sim.robot` is the
same behind a world with things on a table.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trimvla.runtime.bus.messages import Command, JointState
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError
from trimvla.sim.robots.faults import Switch

NAME = "arm"
JOINTS = 6


@dataclass(frozen=True)
class ArmConfig:
    """How the arm behaves."""

    state_hz: float = 50.0
    """How often it publishes its position [Hz]."""
    watchdog_s: float = 0.3
    """Silent for longer, its commander counts as gone, and the arm holds.

    Two or three control periods.
    """
    stale_s: float = 0.2
    """A command that was sent longer ago is not obeyed."""

    def __post_init__(self) -> None:
        if not min(self.state_hz, self.watchdog_s, self.stale_s) > 0:
            numbers = f"{self.state_hz}, {self.watchdog_s} and {self.stale_s}"
            raise ConfigError(
                f"expected 'state_hz', 'watchdog_s' and 'stale_s' above 0, got {numbers}"
            )


class Arm:
    """Where it is, what it received, and whether it moves.

    Pure: what happens when is the caller's.
    """

    def __init__(self, config: ArmConfig | None = None) -> None:
        self._config = config or ArmConfig()
        self.position = np.zeros(JOINTS)
        self.gripper = 1.0
        self.state: Literal["waiting", "moving", "holding"] = "waiting"
        self.last: Command | None = None
        """The newest command."""
        self._received_ns = 0

    def obey(self, command: Command, now_ns: int) -> str:
        """Take one command; what it was: obeyed, repeated or stale.

        One that is repeated is no sign of life.
        """
        if self.last is not None and command.time_ns <= self.last.time_ns:
            return "repeated"
        self.last = command
        if (
            now_ns - command.time_ns > to_ns(self._config.stale_s)
            or len(command.action) != JOINTS + 1
        ):
            return "stale"
        self._received_ns = now_ns
        self.state = "moving" if command.kind == "action" else "holding"
        if command.kind == "action":
            self.position = self.position + np.asarray(command.action[:JOINTS])
            self.gripper = command.action[JOINTS]
        return "obeyed"

    def watch(self, now_ns: int) -> bool:
        """Hold if nobody commands any more; True at the moment when that begins."""
        silent = self.state == "moving" and now_ns - self._received_ns > to_ns(
            self._config.watchdog_s
        )
        if silent:
            self.state = "holding"
        return silent


class FaultyState:
    """What the arm publishes of itself under the fault that is on."""

    def __init__(self, arm: Arm, switch: Switch) -> None:
        self._arm = arm
        self._switch = switch
        self._held: tuple[float, ...] | None = None

    def obeys(self) -> bool:
        """Whether the joints follow their commands."""
        fault = self._switch.fault()
        return fault is None or fault.kind != "stuck"

    def message(self, now_ns: int) -> JointState | None:
        """The state at this moment; None where nothing is published."""
        fault = self._switch.fault()
        kind = "" if fault is None else fault.kind
        position = tuple(self._arm.position.tolist())
        self._held = (self._held or position) if kind == "repeat" else None
        if kind == "mute":
            return None
        return JointState(
            time_ns=now_ns, position=self._held or position, gripper=self._arm.gripper
        )


def run(config: ArmConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `arm`, until `stop`: receive, move, publish; then it stands still."""
    arm = Arm(config)
    telemetry = Telemetry(NAME)
    state = FaultyState(arm, Switch(run_dir, NAME))
    telemetry.counters.update(obeyed=0, lost=0, repeated=0, stale=0, watchdog=0)
    reporter = Reporter(run_dir, telemetry)
    states = Publisher(run_dir, topic("robot/state", config.state_hz))
    inputs = Subscriber(run_dir, [topic("command")])
    reporter.inputs = inputs
    next_ns = 0
    try:
        while not stop.is_set():
            inputs.update(max(0.0, (next_ns - monotonic_ns()) / NS_PER_S))
            for message in inputs["command"].fresh:
                if isinstance(message, Command):
                    receive(arm, message, telemetry, follows=state.obeys())
            telemetry.count("watchdog", arm.watch(monotonic_ns()))
            if (now := monotonic_ns()) >= next_ns:
                next_ns = max(next_ns, now - NS_PER_S) + to_ns(1 / config.state_hz)
                if (published := state.message(now)) is not None:
                    states.send(published)
            telemetry.state = arm.state
            telemetry.values.update(
                {f"position.{i}": x for i, x in enumerate(arm.position.tolist())}
            )
            reporter.beat()
    finally:
        telemetry.state = "holding"
        for closing in (reporter, states, inputs):
            closing.close()


def receive(arm: Arm, command: Command, telemetry: Telemetry, *, follows: bool = True) -> None:
    """Obey one command, and count it, the gap before it and the time since the one before."""
    before = arm.last
    still = arm.position
    telemetry.count(arm.obey(command, monotonic_ns()))
    if not follows:
        arm.position = still
    if before is not None and before.sequence < command.sequence:
        telemetry.count("lost", command.sequence - before.sequence - 1)
        if command.sequence == before.sequence + 1:
            telemetry.time_ns("command_period", command.time_ns - before.time_ns)
