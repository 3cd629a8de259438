"""An independent observer on the topic `command`: what was really sent, and whether any of it must not have been.

It shares nothing with the gate, the queue or the control loop but the topic: its arithmetic is its own. Knows limits,
ages and messages; starts nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from trimvla.runtime.bus import Subscriber
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S
from trimvla.runtime.messages import Command, Report
from trimvla.runtime.topics import report, topic

TURN_S = 0.01
DEPTH = 4096  # commands that wait while nobody looks


@dataclass(frozen=True)
class Promise:
    """What every command must keep."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_change: tuple[float, ...]
    """From one command to the next."""
    hz: float
    max_age_s: float
    """Of the picture behind an action."""


@dataclass
class Witness:
    """Hears commands and reports, and judges every command when it comes."""

    run_dir: Path
    promise: Promise
    processes: Sequence[str] = ()
    commands: list[Command] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What no command should have been, one line each."""

    def __enter__(self) -> Witness:
        deep = replace(topic("command"), depth=DEPTH, high_water=DEPTH)
        self._hears = Subscriber(self.run_dir, [deep, *(topic(report(name)) for name in self.processes)])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._hears.close()

    def look(self) -> None:
        """Take in what came."""
        self._hears.update(TURN_S)
        for message in self._hears["command"].fresh:
            if isinstance(message, Command):
                before = self.commands[-1] if self.commands else None
                self.broken += breaches(message, before, self.promise)
                self.commands.append(message)

    def until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Look until it is done; whether it was, in time."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self.look()
        return True

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

    def said(self, process: str) -> Report:
        """A process's newest report; an empty one before the first."""
        message = self._hears[report(process)].message
        return message if isinstance(message, Report) else Report(time_ns=0, process=process, state="unheard")


def breaches(command: Command, before: Command | None, promise: Promise) -> list[str]:
    """What this command should not have been; empty if all is well."""
    found: list[str] = []
    rest = tuple(0.0 for _ in promise.low[:-1]) + command.action[-1:]
    lasting = before is not None and command.time_ns - before.time_ns < 5 * NS_PER_S / promise.hz
    last = before.action if before is not None and lasting else rest
    rows = zip(command.action, promise.low, promise.high, promise.max_change, last, strict=True)
    for i, (value, low, high, change, previous) in enumerate(rows):
        if not math.isfinite(value) or not low - 1e-9 <= value <= high + 1e-9:
            found.append(f"command {command.sequence}: {value!r} is outside its limits in dimension {i}")
        elif command.kind == "action" and abs(value - previous) > change + 1e-9:
            found.append(f"command {command.sequence}: {value!r} after {previous!r} is too sudden in dimension {i}")
    return found + _stale(command, promise)


def _stale(command: Command, promise: Promise) -> list[str]:
    """An action must have a picture that is young enough; a tick may be one period late."""
    if command.kind != "action":
        return []
    if command.captured_ns is None:
        return [f"command {command.sequence}: an action without a picture"]
    age_ms = (command.time_ns - command.captured_ns) / NS_PER_MS
    limit_ms = (promise.max_age_s + 1 / promise.hz) * 1e3
    return [] if 0 <= age_ms <= limit_ms else [f"command {command.sequence}: a picture {age_ms:.0f} ms old"]
