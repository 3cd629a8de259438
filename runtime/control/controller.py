"""What to command at a moment: an action, a hold or nothing, and why.

Pure: no socket, no clock, no inference.

`states` lists the states; here each tick's inputs become events, and a state becomes a
command:

running       the action that is due, as the gate let it through
hold, fault   the fallback for the action's kinds, once an action was sent in this episode
idle, armed   nothing; a velocity is first brought to zero
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.action_meaning import ActionMeaning, disagreement
from trimvla.runtime.bundle.description import Description, unlike_bundle, unlike_control
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    EStop,
    Health,
    JointState,
    Operator,
    Refusal,
    Task,
)
from trimvla.runtime.chunks.chunk_queue import ChunkQueue, Due, QueueConfig
from trimvla.runtime.chunks.transition import TransitionLimiter
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, to_ns
from trimvla.runtime.control.dead_reckoning import FollowConfig, Reckoner
from trimvla.runtime.control.fallback import as_command, hold, moves
from trimvla.runtime.control.interlock import Interlock, InterlockConfig
from trimvla.runtime.control.realtime import RealtimeConfig
from trimvla.runtime.control.safety import Limits, Motion, check, place, speed
from trimvla.runtime.control.states import State
from trimvla.runtime.errors import ConfigError

LOST = "robot/state has no position of the robot"


@dataclass(frozen=True)
class ControlConfig:
    """How the robot is commanded."""

    limits: Limits
    """Of the robot."""
    kinds: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
    """What each dimension of an action means. Chunks and bundles of other kinds are refused."""
    hz: float = 5.0
    """Commands per second. Chunks and bundles with deltas at another rate are refused."""
    state_s: float = 0.5
    """How old the robot's word on where it is may be."""
    queue: QueueConfig = field(default_factory=QueueConfig)
    interlock: InterlockConfig = field(default_factory=InterlockConfig)
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)
    follow: FollowConfig = field(default_factory=FollowConfig)
    """How far the robot may be from where its commands must have brought it."""

    def __post_init__(self) -> None:
        if not (self.hz > 0 and self.state_s > 0):
            raise ConfigError(
                f"expected numbers above 0, got {self.hz!r} for 'hz' and {self.state_s!r} for"
                " 'state_s'"
            )
        if self.queue.max_jump and len(self.queue.max_jump) != len(self.kinds):
            raise ConfigError(
                f"expected {len(self.kinds)} numbers for 'max_jump', got {len(self.queue.max_jump)}"
            )
        if self.follow.bound is not None and len(self.follow.bound) != len(self.kinds):
            raise ConfigError(
                f"expected {len(self.kinds)} numbers for 'follow.bound', got"
                f" {len(self.follow.bound)}"
            )
        if len(self.kinds) != len(self.limits.low):
            raise ConfigError(
                f"expected limits for {len(self.kinds)} dimensions, got {len(self.limits.low)}"
            )
        still = hold(self.kinds, self.limits.low)
        if np.any(still < self.limits.low) or np.any(still > self.limits.high):
            raise ConfigError(
                "expected limits of deltas and velocities that include 0, which is their hold"
            )

    @property
    def meaning(self) -> ActionMeaning:
        """What the numbers of a command mean."""
        return ActionMeaning(self.kinds, self.hz)


@dataclass(frozen=True)
class Inputs:
    """What is known at a tick; None for what has not come, or whose sender has fallen silent."""

    task: Task | None = None
    robot: JointState | None = None
    chunk: ActionChunk | None = None
    """The newest, whether it was there at the last tick or not."""
    refusal: Refusal | None = None
    """The newest, likewise."""
    estop: EStop | None = None
    """The newest, or one since the last tick that was pressed."""
    deadman: Deadman | None = None
    health: Health | None = None
    """The newest, however old: what is missing stays so until it is reported back."""
    requests: tuple[Operator, ...] = ()
    """All since the last tick."""


@dataclass(frozen=True)
class Decision:
    """The outcome of a tick.

    `command` is None when nothing is to be sent; `gated` if the gate changed the action.
    """

    state: State
    reason: str
    command: Command | None = None
    gated: bool = False
    first_of_chunk: bool = False
    """Whether this is the first action that this chunk caused."""
    eased: bool = False
    """Whether the action was brought nearer to the command before, as a chunk had followed
    another.
    """


class Controller:
    """Decides, tick by tick; remembers the episode's chunks and its last command."""

    def __init__(self, config: ControlConfig) -> None:
        self._config = config
        self._queue = ChunkQueue(config.queue, config.kinds)
        self._interlock = Interlock(config.interlock)
        self._transition = TransitionLimiter(
            config.queue.max_jump or config.limits.row("max_change")
        )
        self._ramp = np.minimum(
            config.limits.row("acceleration") / config.hz, config.limits.row("max_change")
        )
        self._reckoner = Reckoner(config.kinds, config.limits, config.hz, config.follow)
        self._rest = np.zeros(len(config.kinds))
        self._served: tuple[int, str, int] | None = None
        """Episode, instruction and start of the live task."""
        self._foreign = ""
        """Why the newest chunk for the task is of another meaning, or the robot is another than
        configured; empty if all is the same.
        """
        self._robot: Description | None = None
        self._robot_problem = ""
        """Why the robot that was last described is not the one that is configured here."""
        self._last: NDArray[np.float64] | None = None
        """The last command, and the episode that it was for; none before the first."""
        self._last_episode = 0
        self._velocity = self._rest
        self._captured_ns: int | None = None
        self._withdrawn = (0, -1)
        self._before = (self._last, self._velocity)
        """Last command and velocity as they were before this tick's decision."""

    def decide(self, tick_ns: int, inputs: Inputs, now_ns: int | None = None) -> Decision:
        """What to send for the tick that was planned for `tick_ns`; ages are those of `now_ns`,
        where that is later.
        """
        now_ns = tick_ns if now_ns is None else max(tick_ns, now_ns)
        self._before = (self._last, self._velocity)
        self._follow(tick_ns, inputs)
        self._reckoner.measure(now_ns, inputs.robot)
        if any(message.request == "reset" for message in inputs.requests):
            self._reckoner.reset()
        self._interlock.receive(now_ns, inputs.task, inputs.requests, inputs.estop)
        if self._foreign:
            self._interlock.reject(now_ns, self._foreign)
            return self._stay(now_ns)
        if not self._interlock.may_move:
            return self._stay(now_ns)
        if reason := self._interlock.released(now_ns, inputs.deadman) or _missing(inputs.health):
            self._interlock.feed("release", reason)
            return self._stay(now_ns)
        due = self._due(tick_ns, now_ns, inputs.robot)
        if isinstance(due, str) or inputs.robot is None:
            self._interlock.no_action(_because(now_ns, str(due), inputs.refusal))
            return self._stay(now_ns)
        return self._act(now_ns, due, inputs.robot)

    @property
    def at_rest(self) -> bool:
        """Whether the robot stays where it is if nothing more is sent."""
        return self._last is None or not moves(self._config.kinds, self._last)

    def brake(self, now_ns: int, reason: str) -> Decision:
        """Hold, at the end of control: a velocity falls as the limits allow, one tick after the
        other.
        """
        self._interlock.no_action(reason)
        return self._stay(now_ns)

    def hold(self, now_ns: int, reason: str) -> Decision:
        """The last command before nothing more is sent: stay, and do not ramp a velocity that
        nobody would ramp on.
        """
        self._interlock.no_action(reason)
        return self._stay(now_ns, np.full_like(self._ramp, np.inf))

    def withdraw(self, now_ns: int, reason: str) -> Decision:
        """Instead of an action that could not be sent in time: hold, from what was sent before
        it.
        """
        self._last, self._velocity = self._before
        self._interlock.no_action(reason)
        return self._stay(now_ns)

    def _follow(self, tick_ns: int, inputs: Inputs) -> None:
        """The task, and the chunks that serve it."""
        live = inputs.task if inputs.task is not None and inputs.task.active else None
        self._serve(live)
        self._foreign = self._check_robot(inputs.robot)
        if live is not None and inputs.chunk is not None and inputs.chunk.serves(live):
            self._take(inputs.chunk, tick_ns)
        if inputs.refusal is not None and inputs.refusal.since_ns is not None:
            self._withdrawn = (inputs.refusal.since_ns, inputs.refusal.time_ns)
        self._queue.withdraw(*self._withdrawn)

    def _take(self, chunk: ActionChunk, now_ns: int) -> None:
        """A chunk for the task: one whose numbers mean something else is never commanded."""
        got = ActionMeaning(chunk.kinds, chunk.control_hz, chunk.names, chunk.units)
        self._foreign = self._foreign or disagreement(self._config.meaning, got)
        if not self._foreign and self._robot is not None:
            self._foreign = unlike_bundle(self._robot, got)
        if not self._foreign:
            self._queue.push(chunk, now_ns)

    def _check_robot(self, state: JointState | None) -> str:
        """Why the robot is not the one that is configured here, by its driver's description."""
        described = None if state is None else state.description
        if described is not None and described != self._robot:
            limits = self._config.limits
            self._robot = described
            self._robot_problem = unlike_control(
                described, self._config.meaning, limits.low, limits.high
            )
        return self._robot_problem

    def _serve(self, task: Task | None) -> None:
        """Drop what was made for another task or instruction.

        In another episode, forget the last command too.
        """
        served = None if task is None else (task.episode, task.instruction, task.started_ns)
        if served == self._served:
            return
        another = served is None or self._served is None or served[0] != self._served[0]
        self._served = served
        self._captured_ns = None
        self._queue.reset()
        if another:
            self._begin()

    def _begin(self) -> None:
        """Forget the last episode, but not a velocity that it left."""
        self._transition.reset()
        if self._last is not None and not moves(self._config.kinds, self._last):
            self._forget()

    def _forget(self) -> None:
        self._last = None
        self._velocity = self._rest

    def _due(self, tick_ns: int, now_ns: int, robot: JointState | None) -> Due | str:
        """The action for this moment, or why there is none."""
        if robot is None:
            return "robot/state is silent"
        age_ns = now_ns - robot.time_ns
        if age_ns > to_ns(self._config.state_s):
            limit = f"at most {self._config.state_s * 1e3:.0f} ms of age for 'robot/state'"
            return f"expected {limit}, got {age_ns / NS_PER_MS:.0f} ms"
        # a late tick may know a state from after its planned time
        if age_ns < -NS_PER_S / self._config.hz:
            return (
                f"expected a past time for 'robot/state', got one {-age_ns / NS_PER_MS:.0f} ms"
                " ahead"
            )
        return self._queue.due(tick_ns, now_ns)

    def _act(self, now_ns: int, due: Due, robot: JointState) -> Decision:
        """The gate has the last word."""
        kinds = self._config.kinds
        hz = self._config.hz
        before = (
            as_command(kinds, robot.position, robot.gripper) if self._last is None else self._last
        )
        if before is None:
            self._interlock.no_action(LOST)
            return self._stay(now_ns)
        position = place(kinds, robot.position)
        motion = Motion(
            kinds, hz, self._velocity, position, self._reckoner.pending, self._reckoner.bound
        )
        wanted = self._transition.limit(due.action, due.chunk.time_ns, before)
        if lost := self._reckoner.judge(wanted, before):
            self._interlock.refuse(now_ns, lost)
            return self._stay(now_ns)
        verdict = check(wanted, self._config.limits, before, motion)
        reason = "; ".join(verdict.reasons)
        if verdict.action is None:
            self._interlock.refuse(now_ns, f"refused by the gate: {reason}")
            return self._stay(now_ns)
        self._interlock.act(reason)
        first = due.chunk.time_ns != self._captured_ns
        self._captured_ns = due.chunk.time_ns
        self._last_episode = due.chunk.episode
        self._remember(verdict.action, before)
        command = _command(now_ns, due, verdict.action, reason)
        eased = not np.array_equal(wanted, due.action)
        return Decision(self._interlock.state, reason, command, bool(reason), first, eased)

    def _stay(self, now_ns: int, ramp: NDArray[np.float64] | None = None) -> Decision:
        """Whatever the state, nothing that moves: the fallback, or nothing where none is needed."""
        state = self._interlock.state
        reason = self._interlock.reason
        kinds = self._config.kinds
        if self._last is not None and state in ("idle", "armed") and not moves(kinds, self._last):
            self._forget()
        if self._last is None:
            return Decision(state, reason)
        self._remember(hold(kinds, self._last, self._ramp if ramp is None else ramp), self._last)
        action = tuple(self._last.tolist())
        command = Command(
            time_ns=now_ns, episode=self._last_episode, kind="hold", action=action, reason=reason
        )
        return Decision(state, reason, command)

    def _remember(self, action: NDArray[np.float64], before: NDArray[np.float64]) -> None:
        self._velocity = speed(self._config.kinds, self._config.hz, action, before)
        self._reckoner.command(action)
        self._last = action


def _missing(health: Health | None) -> str:
    """Why the rest of the system does not let the robot move; empty if it does."""
    return "" if health is None or health.ok else health.reason or "the system is not well"


def _because(now_ns: int, reason: str, refusal: Refusal | None) -> str:
    """Why there is no action: with the policy's own reason, where it has just refused an image."""
    recent = refusal is not None and now_ns - refusal.time_ns < NS_PER_S
    return f"{reason}; refused: {refusal.reason}" if refusal is not None and recent else reason


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
