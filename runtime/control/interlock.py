"""Whether the robot may move, and why not: tasks, the operator, the emergency stop and the
deadman's switch -> states.

Pure: the caller passes the time and what came. What is sent in a state is the controller's
business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trimvla.runtime.bus.messages import Deadman, EStop, Operator, Task
from trimvla.runtime.clock import to_ns
from trimvla.runtime.control.states import Event, State, advance
from trimvla.runtime.errors import ConfigError

WORDS: dict[Literal["arm", "disarm", "reset"], str] = {
    "arm": "armed by the operator",
    "disarm": "disarmed by the operator",
    "reset": "reset by the operator; to be armed, or given a new task",
}
MAY_MOVE: tuple[State, ...] = ("armed", "running", "hold")


@dataclass(frozen=True)
class InterlockConfig:
    """Who must agree before the robot moves."""

    arm: Literal["auto", "operator"] = "auto"
    """`auto`: a new task arms. `operator`: only a person does, for one task at a time: another
    instruction under the same episode is another task.
    """
    estop: bool = False
    """Whether the emergency stop must be received all the time.

    One that is pressed counts in any case.
    """
    deadman: bool = False
    """Whether somebody must hold the deadman's switch."""
    deadman_s: float = 0.3
    """How old their last word may be."""
    refused_s: float = 5.0
    """Actions that the gate has refused for this long are a fault."""

    def __post_init__(self) -> None:
        if self.arm not in ("auto", "operator"):
            raise ConfigError(f"expected auto or operator, got {self.arm!r} for 'arm'")
        if not (self.deadman_s > 0 and self.refused_s > 0):
            numbers = f"{self.deadman_s} and {self.refused_s}"
            raise ConfigError(
                f"expected times above 0 s for 'deadman_s' and 'refused_s', got {numbers}"
            )


class Interlock:
    """Drives the state machine with what happens, and remembers why it is in its state."""

    def __init__(self, config: InterlockConfig | None = None) -> None:
        self._config = config or InterlockConfig()
        self.state: State = "idle"
        self.reason = "no live task"
        self._task: tuple[int, str] | None = None
        """Episode and instruction of the task that may be armed for."""
        self._known_ns = 0
        """Since when it is known. An `arm` from before was meant for another."""
        self._stopped_ns = -1
        """When a person last reset or disarmed; a task from before arms nothing."""
        self._estop_received = False
        self._refused_ns: int | None = None

    @property
    def may_move(self) -> bool:
        """Whether an action may be sent, if there is one."""
        return self.state in MAY_MOVE

    def feed(self, event: Event, reason: str) -> None:
        """One step of the machine. A fault keeps its first reason."""
        before = self.state
        self.state = advance(self.state, event)
        if not before == self.state == "fault":
            self.reason = reason

    def receive(
        self, now_ns: int, task: Task | None, requests: Sequence[Operator], estop: EStop | None
    ) -> None:
        """Feed what came from outside since the last tick, the most serious last.

        Args:
            now_ns: this moment.
            task: the live one; None where there is none.
            requests: the operator's, in their order.
            estop: its newest message, or the one with which it was pressed since the last tick;
                None if it is silent.
        """
        for event, reason in self._events(now_ns, task, requests, estop):
            self.feed(event, reason)

    def released(self, now_ns: int, deadman: Deadman | None) -> str:
        """Why the deadman's switch does not let the robot move; empty if it does."""
        if not self._config.deadman:
            return ""
        if deadman is None or now_ns - deadman.time_ns > to_ns(self._config.deadman_s):
            return "the deadman's switch is silent"
        return "" if deadman.held else "the deadman's switch is released"

    def act(self, reason: str = "") -> None:
        """An action passed the gate; `reason` is what the gate changed."""
        self._refused_ns = None
        self.feed("act", reason)

    def no_action(self, reason: str) -> None:
        """There is no action to trust."""
        self._refused_ns = None
        self.feed("lose", reason)

    def refuse(self, now_ns: int, reason: str) -> None:
        """The gate refused the action that was due."""
        self._refused_ns = now_ns if self._refused_ns is None else self._refused_ns
        self.feed("lose", reason)
        if now_ns - self._refused_ns >= to_ns(self._config.refused_s):
            self.feed("failure", f"for {self._config.refused_s:g} s {reason}")

    def reject(self, now_ns: int, reason: str) -> None:
        """The task's actions mean something else to the policy: the robot is not armed for them, or
        holds.
        """
        if self.state in ("idle", "armed"):
            self.feed("end", reason)
        else:
            self.refuse(now_ns, reason)

    def _events(
        self, now_ns: int, task: Task | None, requests: Sequence[Operator], estop: EStop | None
    ) -> Iterator[tuple[Event, str]]:
        self._estop_received |= estop is not None
        yield from self._task_events(now_ns, task)
        for message in requests:
            if message.request != "arm":
                self._stopped_ns = now_ns
            meant = self._task is not None and message.time_ns >= self._known_ns
            if message.request != "arm" or meant:
                yield message.request, WORDS[message.request]
        if estop is not None and estop.pressed:
            yield (
                "estop",
                f"the emergency stop is pressed{f' by {estop.source}' if estop.source else ''}",
            )
        elif estop is None and self._config.estop and self._estop_received:
            yield "estop", "the emergency stop is silent"

    def _task_events(self, now_ns: int, task: Task | None) -> Iterator[tuple[Event, str]]:
        """The end of one task, and the begin of another.

        None begins before a required emergency stop was received.
        """
        if task is None or not task.active:
            self._task = None
            yield "end", "no live task" if task is None else "the task is not active"
        elif self._config.estop and not self._estop_received:
            yield "end", "the emergency stop has not been received yet"
        elif (task.episode, task.instruction) != self._task:
            same_episode = self._task is not None and task.episode == self._task[0]
            self._task = (task.episode, task.instruction)
            self._known_ns = now_ns
            self._refused_ns = None
            if self._config.arm == "operator" or not same_episode:
                yield "end", "not armed for this task"
            if self._config.arm == "auto" and task.started_ns > self._stopped_ns:
                yield "arm", "armed by the task"
