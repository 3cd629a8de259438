"""The safety monitor: an independent observer that judges every command on the wire.

It shares nothing with the gate, the queue or the control loop but the topics: its arithmetic is its
own. Every violation of the promise is kept with the time of its command, from the first command to
the last, so that nothing between two faults is forgotten. Knows limits, ages, kinds and messages;
starts nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from trimvla.launch.system.client import SystemClient, wait_until
from trimvla.runtime.bus.messages import ActionChunk, Command, Report, Task
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, to_ns

TURN_S = 0.01  # one wait for messages
DEPTH = 4096  # commands that wait while nobody looks
KEPT_CHUNKS = 256
ARM = "arm"  # the process whose report has where the arm truly is,
POSITION = "position."  # under values that begin like this
SLACK = 1e-9  # of rounding
BURST = 3  # commands above the rate within a second: late ticks and the skipped ones around them


@dataclass(frozen=True)
class Promise:
    """What every command must keep; per dimension where it is a tuple."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_change: tuple[float, ...]
    """From one command to the next."""
    hz: float
    """Commands per second."""
    max_age_s: float
    """Of the image behind an action."""
    kinds: tuple[str, ...] = ()
    """`delta`, `absolute`, `velocity` or `gripper`; empty: not judged."""
    workspace: float = math.inf
    """How far the arm may get from its start, in each dimension [m or rad]."""


@dataclass(frozen=True)
class Violation:
    """One command that must not have been sent, and when it was."""

    time_ns: int
    words: str


class Judge:
    """Judges commands one after the other. Pure: the caller brings the messages, in their order."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise
        self._before: Command | None = None
        self._recent: deque[int] = deque()
        self._chunks: dict[int, ActionChunk] = {}
        self._tasks: deque[Task] = deque(maxlen=2)
        """The newest task, after the one before it that differs in what is to be done."""

    def learn_chunk(self, chunk: ActionChunk) -> None:
        """Remember a chunk, by which a later command is understood."""
        self._chunks[chunk.sequence] = chunk
        while len(self._chunks) > KEPT_CHUNKS:
            self._chunks.pop(next(iter(self._chunks)))

    def learn_task(self, task: Task) -> None:
        """Remember a task, if it is another one than the newest."""
        if not self._tasks or _purpose(self._tasks[-1]) != _purpose(task):
            self._tasks.append(task)

    def violations(self, command: Command) -> list[str]:
        """Everything about this command that breaks the promise; empty if all is well."""
        before = self._before
        lasting = before is not None and self._gap_s(command, before) < 5 / self._promise.hz
        found = [
            *self._limits(command, before if lasting else None),
            *self._age(command),
            *self._hold(command, before),
            *self._burst(command),
            *self._purpose(command),
        ]
        self._before = command
        return [f"command {command.sequence}: {words}" for words in found]

    @staticmethod
    def _gap_s(command: Command, before: Command) -> float:
        return (command.time_ns - before.time_ns) / NS_PER_S

    def _limits(self, command: Command, before: Command | None) -> list[str]:
        """Range of the action and its change; after a pause the robot starts from rest."""
        promise = self._promise
        rest = tuple(0.0 for _ in promise.low[:-1]) + command.action[-1:]
        last = rest if before is None else before.action
        rows = zip(command.action, promise.low, promise.high, promise.max_change, last, strict=True)
        found: list[str] = []
        for i, (value, low, high, change, previous) in enumerate(rows):
            if not math.isfinite(value) or not low - SLACK <= value <= high + SLACK:
                found.append(f"{value!r} is outside its limits in dimension {i}")
            elif command.kind == "action" and _sudden(value, previous, change):
                found.append(f"{value!r} after {previous!r} is too sudden in dimension {i}")
        return found

    def _age(self, command: Command) -> list[str]:
        """An action has an image that is young enough; a tick may be one period late."""
        if command.kind != "action":
            return []
        if command.captured_ns is None:
            return ["an action without an image"]
        age_ms = (command.time_ns - command.captured_ns) / NS_PER_MS
        limit_ms = (self._promise.max_age_s + 1 / self._promise.hz) * 1e3
        return [] if 0 <= age_ms <= limit_ms else [f"an image {age_ms:.0f} ms old"]

    def _hold(self, command: Command, before: Command | None) -> list[str]:
        """A hold does not move: deltas are null, targets and the gripper stay."""
        if command.kind != "hold" or not self._promise.kinds:
            return []
        found: list[str] = []
        for i, (kind, value) in enumerate(zip(self._promise.kinds, command.action, strict=True)):
            still = before.action[i] if before is not None else value
            expected = {"delta": 0.0, "absolute": still, "gripper": still}.get(kind, value)
            if value != expected:
                found.append(
                    f"a hold that moves: {value!r} instead of {expected!r} in dimension {i}"
                )
        return found

    def outside(self, arm: Report) -> list[str]:
        """Where the arm truly is, by its own report, beyond the workspace; one rounding apart."""
        found: list[str] = []
        for name, value in arm.values.items():
            if name.startswith(POSITION) and abs(value) > self._promise.workspace + SLACK:
                found.append(f"the arm is at {value:.3f}, out of the workspace, in {name}")
        return found

    def _burst(self, command: Command) -> list[str]:
        """No more commands in a second than the rate allows."""
        self._recent.append(command.time_ns)
        while self._recent[0] <= command.time_ns - NS_PER_S:
            self._recent.popleft()
        most = math.ceil(self._promise.hz) + BURST
        sent = len(self._recent)
        return [f"{sent} commands within a second"] if sent > most else []

    def _purpose(self, command: Command) -> list[str]:
        """An action serves the task as it was at the tick before; its chunk was made for that
        instruction.
        """
        if command.kind != "action" or command.chunk_sequence is None or not self._tasks:
            return []
        chunk = self._chunks.get(command.chunk_sequence)
        if chunk is None or chunk.time_ns != command.captured_ns:
            return []
        settled = self._tasks[-1].time_ns < command.time_ns - to_ns(2 / self._promise.hz)
        allowed = list(self._tasks)[-1:] if settled else list(self._tasks)
        if any(_purpose(task) == (chunk.episode, chunk.instruction) for task in allowed):
            return []
        return [f"made for {chunk.instruction!r} while the task is {self._tasks[-1].instruction!r}"]


def _sudden(value: float, previous: float, change: float) -> bool:
    """Whether an action differs too much from the one before; one that only brakes may, as a hold
    may.
    """
    brakes = min(0.0, previous) - SLACK <= value <= max(0.0, previous) + SLACK
    return abs(value - previous) > change + SLACK and not brakes


def _purpose(task: Task) -> tuple[int, str]:
    return task.episode, task.instruction


@dataclass
class SafetyMonitor:
    """Receives commands and reports, and judges every command when it comes."""

    run_dir: Path
    promise: Promise
    processes: Sequence[str] = ()
    commands: list[Command] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    """Of the whole run; nothing is ever taken out."""

    def __enter__(self) -> SafetyMonitor:
        self._judge = Judge(self.promise)
        command = replace(topic("command"), depth=DEPTH, high_water=DEPTH)
        chunk = replace(topic("chunk"), depth=DEPTH, high_water=DEPTH)
        received = [command, chunk, "task"]
        self._client = SystemClient(self.run_dir, receives=received, processes=self.processes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._client.close()

    def look(self) -> None:
        """Take in what came, and judge it."""
        self._client.receive(TURN_S)
        task = self._client["task"].message
        if isinstance(task, Task):
            self._judge.learn_task(task)
        for message in self._client["chunk"].fresh:
            if isinstance(message, ActionChunk):
                self._judge.learn_chunk(message)
        if ARM in self.processes and self._client[report(ARM)].updated:
            arm = self.report(ARM)
            self.violations += [Violation(arm.time_ns, words) for words in self._judge.outside(arm)]
        for message in self._client["command"].fresh:
            if isinstance(message, Command):
                found = self._judge.violations(message)
                self.violations += [Violation(message.time_ns, words) for words in found]
                self.commands.append(message)

    def until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Look until it is done; whether it was, in time."""
        return wait_until(done, timeout_s, self.look)

    def since(self, start_ns: int, kind: str = "") -> list[Command]:
        """Commands that were sent from then on, of this kind."""
        found: list[Command] = []
        for command in reversed(self.commands):
            if command.time_ns < start_ns:
                break
            if not kind or command.kind == kind:
                found.append(command)
        return found[::-1]

    def last_ns(self) -> int:
        """When the newest command was sent."""
        return self.commands[-1].time_ns if self.commands else 0

    def report(self, process: str) -> Report:
        """A process's newest report; an empty one, `starting`, before the first."""
        return self._client.report(process)
