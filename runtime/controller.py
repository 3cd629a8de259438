"""What to command at a moment: idle, run or hold, and why. Pure: no socket, no clock, no inference.

idle     no live task, or no action in it yet: nothing is sent
running  the action that is due, as the gate let it through
hold     there was an action before and there is none to trust now: the fallback for the action's kinds
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.chunk_queue import ChunkQueue, Due, QueueConfig
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.fallback import as_command, hold
from trimvla.runtime.manifest import ActionKind
from trimvla.runtime.messages import ActionChunk, Command, JointState, Task
from trimvla.runtime.safety import Limits, check

State = Literal["idle", "running", "hold"]


@dataclass(frozen=True)
class ControlConfig:
    """How the robot is commanded."""

    limits: Limits
    """Of the robot."""
    kinds: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
    """What each dimension of an action means; as the bundle says."""
    hz: float = 5.0
    """Commands per second; as the bundle says."""
    queue: QueueConfig = field(default_factory=QueueConfig)

    def __post_init__(self) -> None:
        if not self.hz > 0:
            raise ConfigError(f"expected a rate above 0 Hz, got {self.hz!r} for 'hz'")
        if len(self.kinds) != len(self.limits.low):
            raise ConfigError(f"expected limits for {len(self.kinds)} dimensions, got {len(self.limits.low)}")
        still = hold(self.kinds, self.limits.low)
        if np.any(still < self.limits.low) or np.any(still > self.limits.high):
            raise ConfigError("expected limits of deltas and velocities that include 0, which is their hold")


@dataclass(frozen=True)
class Inputs:
    """What is known at a tick; None for what has not come, or whose sender has fallen silent."""

    task: Task | None = None
    robot: JointState | None = None
    chunk: ActionChunk | None = None
    """The newest, whether it was there at the last tick or not."""


@dataclass(frozen=True)
class Decision:
    """The outcome of a tick. `command` is None when nothing is to be sent; `gated` if the gate changed the action."""

    state: State
    reason: str
    command: Command | None = None
    gated: bool = False
    first_of_chunk: bool = False
    """Whether this is the first action that this chunk caused."""


class Controller:
    """Decides, tick by tick; remembers the episode's chunks and its last command."""

    def __init__(self, config: ControlConfig) -> None:
        self._config = config
        self._queue = ChunkQueue(config.queue)
        self._episode: int | None = None
        self._last: NDArray[np.float64] | None = None
        self._captured_ns: int | None = None

    def decide(self, now_ns: int, inputs: Inputs) -> Decision:
        """What to send for the tick that was planned for `now_ns`."""
        task = inputs.task
        if task is None or not task.active:
            self._begin(None)
            return Decision("idle", "no live task" if task is None else "the task is not active")
        if task.episode != self._episode:
            self._begin(task.episode)
        if inputs.chunk is not None and _serves(inputs.chunk, task, len(self._config.kinds)):
            self._queue.push(inputs.chunk, now_ns)
        if inputs.robot is None:
            return self.hold(now_ns, "robot/state is silent")
        due = self._queue.due(now_ns)
        return self.hold(now_ns, due) if isinstance(due, str) else self._run(now_ns, due, inputs.robot)

    def hold(self, now_ns: int, reason: str) -> Decision:
        """Stay, as the fallback says; idle if nothing was sent in this episode."""
        if self._last is None or self._episode is None:
            return Decision("idle", reason)
        self._last = hold(self._config.kinds, self._last)
        command = Command(
            time_ns=now_ns, episode=self._episode, kind="hold", action=tuple(self._last.tolist()), reason=reason
        )
        return Decision("hold", reason, command)

    def _begin(self, episode: int | None) -> None:
        """Forget the last episode."""
        self._episode, self._last, self._captured_ns = episode, None, None
        self._queue.reset()

    def _run(self, now_ns: int, due: Due, robot: JointState) -> Decision:
        """The gate has the last word."""
        before = as_command(self._config.kinds, robot.position, robot.gripper) if self._last is None else self._last
        if before is None:
            return self.hold(now_ns, "robot/state does not say where the robot is")
        verdict = check(due.action, self._config.limits, before)
        reason = "; ".join(verdict.reasons)
        if verdict.action is None:
            return self.hold(now_ns, f"refused by the gate: {reason}")
        first = due.chunk.time_ns != self._captured_ns
        self._last, self._captured_ns = verdict.action, due.chunk.time_ns
        return Decision("running", reason, _command(now_ns, due, verdict.action, reason), bool(reason), first)


def _serves(chunk: ActionChunk, task: Task, dim: int) -> bool:
    """Whether a chunk is of this task, made from a picture of it, and of the robot's number of dimensions."""
    return chunk.episode == task.episode and chunk.time_ns >= task.started_ns and len(chunk.actions[0]) == dim


def _command(now_ns: int, due: Due, action: NDArray[np.float64], reason: str) -> Command:
    return Command(
        time_ns=now_ns,
        episode=due.chunk.episode,
        kind="action",
        action=tuple(action.tolist()),
        reason=reason,
        captured_ns=due.chunk.time_ns,
        chunk_sequence=due.chunk.sequence,
        row=due.row,
    )
