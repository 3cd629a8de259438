"""The desk of a system under fault injection: task, emergency stop, dead-man switch and operator.

Where nobody else gives the task, the desk does. A thread repeats what must be repeated, so that
whoever breaks something may take his time. Knows messages and how often they are due; judges
nothing.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from trimvla.launch.system.client import TASK_PERIOD_S, SystemClient, new_task
from trimvla.runtime.bus.messages import Deadman, EStop, Operator
from trimvla.runtime.clock import monotonic_ns, to_ns

__all__ = ["SWITCH_PERIOD_S", "TASK_PERIOD_S", "Desk"]

SWITCH_PERIOD_S = 0.05
TURN_S = 0.02


class Desk:
    """Everything that people send to a robot. Its methods may be called from any thread."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.held: bool | None = None
        """Whether the dead-man switch is held; None: it is not published."""
        self.pressed: bool | None = None
        """Whether the emergency stop is pressed; None: it is not published."""
        self._episode = 0
        self._switch_ns = 0
        self._sending = threading.Lock()  # a socket is one thread's at a time
        self._closing = threading.Event()

    def __enter__(self) -> Desk:
        self._client = SystemClient(self.run_dir, sends=("estop", "deadman", "operator"))
        self._thread = threading.Thread(target=self._repeat, name="desk", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._client.close()

    @property
    def instruction(self) -> str:
        """What the robot is to do; empty: no task is published."""
        task = self._client.task
        return "" if task is None else task.instruction

    def begin(self, instruction: str) -> None:
        """A new episode with this instruction, from now on repeated."""
        self._episode += 1
        with self._sending:
            self._client.begin(new_task(instruction, self._episode))

    def instruct(self, instruction: str) -> None:
        """Another instruction under the same episode number."""
        with self._sending:
            task = self._client.task
            if task is not None:
                self._client.begin(msgspec.structs.replace(task, instruction=instruction))

    def withdraw(self) -> None:
        """No task is published any more."""
        with self._sending:
            self._client.begin(None)

    def request(self, request: Literal["arm", "disarm", "reset"]) -> None:
        """The operator's request, once."""
        with self._sending:
            self._client.send("operator", Operator(time_ns=monotonic_ns(), request=request))

    def press(self, pressed: bool, source: str = "the desk") -> None:
        """One message of the emergency stop."""
        message = EStop(time_ns=monotonic_ns(), pressed=pressed, source=source)
        with self._sending:
            self._client.send("estop", message)

    def hold(self, held: bool) -> None:
        """One message of the dead-man switch."""
        with self._sending:
            self._client.send("deadman", Deadman(time_ns=monotonic_ns(), held=held))

    def _repeat(self) -> None:
        while not self._closing.wait(TURN_S):
            with self._sending:
                self._client.repeat_task()
            self._repeat_switches()

    def _repeat_switches(self) -> None:
        """Publish the switches if they are due."""
        now_ns = monotonic_ns()
        if now_ns - self._switch_ns < to_ns(SWITCH_PERIOD_S):
            return
        self._switch_ns = now_ns
        if self.held is not None:
            self.hold(self.held)
        if self.pressed is not None:
            self.press(self.pressed)
