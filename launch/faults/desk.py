"""The desk of a system under fault injection: task, emergency stop, dead-man switch and operator,
over real sockets.

Where nobody else gives the task, the desk does. A thread repeats what must be repeated, so that
whoever breaks something may take his time. Knows messages and how often they are due; judges
nothing.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from trimvla.runtime.bus.messages import Deadman, EStop, Message, Operator, Task
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns, to_ns

TASK_PERIOD_S = 0.2
SWITCH_PERIOD_S = 0.05
TURN_S = 0.02


class Desk:
    """Everything that people say to a robot. Its methods may be called from any thread."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.instruction = ""
        """What the robot is to do; empty: no task is published."""
        self.held: bool | None = None
        """Whether the dead-man switch is held; None: it is not published."""
        self.pressed: bool | None = None
        """Whether the emergency stop is pressed; None: it is not published."""
        self._episode = 0
        self._started_ns = 0
        self._task_ns = 0
        self._switch_ns = 0
        self._sending = threading.Lock()  # a socket is one thread's at a time
        self._closing = threading.Event()

    def __enter__(self) -> Desk:
        self._stack = ExitStack()
        self._publishers: dict[str, Publisher] = {}
        for name in ("estop", "deadman", "operator"):
            self._open(name)
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
        self._stack.close()

    def begin(self, instruction: str) -> None:
        """A new episode with this instruction, from now on repeated."""
        if "task" not in self._publishers:
            self._open("task")
        self._episode += 1
        self._started_ns = monotonic_ns()
        self.instruct(instruction)

    def instruct(self, instruction: str) -> None:
        """Another instruction under the same episode number."""
        self.instruction = instruction
        self._task_ns = 0

    def request(self, request: Literal["arm", "disarm", "reset"]) -> None:
        """The operator's word, once."""
        self._send("operator", Operator(time_ns=monotonic_ns(), request=request))

    def press(self, pressed: bool, source: str = "the desk") -> None:
        """One message of the emergency stop."""
        self._send("estop", EStop(time_ns=monotonic_ns(), pressed=pressed, source=source))

    def hold(self, held: bool) -> None:
        """One message of the dead-man switch."""
        self._send("deadman", Deadman(time_ns=monotonic_ns(), held=held))

    def _open(self, name: str) -> None:
        publisher = Publisher(self.run_dir, topic(name))
        self._publishers[name] = self._stack.enter_context(publisher)

    def _send(self, name: str, message: Message) -> None:
        with self._sending:
            self._publishers[name].send(message)

    def _repeat(self) -> None:
        while not self._closing.wait(TURN_S):
            self._beat(monotonic_ns())

    def _beat(self, now_ns: int) -> None:
        """Publish what is due."""
        if self.instruction and now_ns - self._task_ns >= to_ns(TASK_PERIOD_S):
            self._task_ns = now_ns
            self._send("task", self._task(now_ns))
        if now_ns - self._switch_ns >= to_ns(SWITCH_PERIOD_S):
            self._switch_ns = now_ns
            if self.held is not None:
                self.hold(self.held)
            if self.pressed is not None:
                self.press(self.pressed)

    def _task(self, now_ns: int) -> Task:
        return Task(
            time_ns=now_ns,
            episode=self._episode,
            instruction=self.instruction,
            started_ns=self._started_ns,
            seed=0,
        )
