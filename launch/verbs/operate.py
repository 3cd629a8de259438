"""`trimvla operator`: one word of a person to the control process, repeated until its report shows
that it counted.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.options import Options, Result
from trimvla.runtime.bus.messages import EStop, Operator, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.control.process import PRESSES, WORD_ID
from trimvla.runtime.errors import ConfigError

Word = Literal["arm", "disarm", "reset", "estop"]
CONTROL = report("control")
PERIOD_S = 0.05
IDS = 2**52  # a report's numbers are floats
EXPECTED: dict[Word, tuple[str, ...]] = {
    "arm": ("armed", "running", "hold"),
    "disarm": ("idle", "fault"),
    "reset": ("idle", "armed", "running", "hold"),
    "estop": ("fault",),
}
"""The states in which a word has had its effect."""


@dataclass(frozen=True)
class Args(Options):
    """Arm, disarm or reset the robot, or press the emergency stop.

    Ends well only once control has acted on it.

    `estop` presses once; the stop holds until a `reset`. It does not replace the switch that cuts
    the power.
    """

    word: Positional[Word]
    """What control is to do."""

    run_dir: Path
    """Where the system's sockets are: the `--run-dir` of `trimvla run`."""

    timeout: float = 5.0
    """Give up after this time [s]."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a time that is none."""
        if not 0 < self.timeout <= 3600:
            raise ConfigError(
                f"expected a time above 0 and up to 3600 s, got {self.timeout} for --timeout"
            )


def run(args: Args) -> Result:
    """Send the word until it counted; the state that control is in then.

    Raises ConfigError where it never does.
    """
    deadline_ns = monotonic_ns() + to_ns(args.timeout)
    with ExitStack() as stack:
        hears = stack.enter_context(Subscriber(args.run_dir, [topic(CONTROL)]))
        before = _report(hears, deadline_ns, lambda _: True, lambda: None)
        if before is None:
            raise ConfigError(
                f"expected a report of control in {args.run_dir} within {args.timeout:g} s, got"
                " none"
            )
        send, counted = _press(args, before, stack) if args.word == "estop" else _say(args, stack)
        after = _report(hears, deadline_ns, counted, send)
    if after is None:
        raise ConfigError(
            f"expected control to act on '{args.word}' within {args.timeout:g} s, it did not"
        )
    ok = after.state in EXPECTED[args.word]
    result: Result = {"ok": ok, "word": args.word, "state": after.state, "reason": after.reason}
    if not ok:
        result["error"] = f"control received '{args.word}' and is {after.state}: {after.reason}"
    args.console().print(f"control is {after.state}: {after.reason}")
    return result


def _say(args: Args, stack: ExitStack) -> tuple[Callable[[], None], Callable[[Report], bool]]:
    """How to send an operator's word, and how to see that it counted."""
    words = stack.enter_context(Publisher(args.run_dir, topic("operator")))
    request = args.word
    assert request != "estop"
    number = secrets.randbelow(IDS) + 1

    def send() -> None:
        words.send(Operator(time_ns=monotonic_ns(), request=request, id=number))

    return send, lambda said: said.values.get(WORD_ID) == number


def _press(
    args: Args, before: Report, stack: ExitStack
) -> tuple[Callable[[], None], Callable[[Report], bool]]:
    """How to press the emergency stop, and how to see that it counted."""
    stops = stack.enter_context(Publisher(args.run_dir, topic("estop")))
    source = f"trimvla operator ({os.getpid()})"

    def send() -> None:
        stops.send(EStop(time_ns=monotonic_ns(), pressed=True, source=source))

    return send, lambda said: said.counters.get(PRESSES, 0) > before.counters.get(PRESSES, 0)


def _report(
    hears: Subscriber,
    deadline_ns: int,
    enough: Callable[[Report], bool],
    meanwhile: Callable[[], None],
) -> Report | None:
    """The first new report of control that is enough; None if there is none before the deadline."""
    while (left_ns := deadline_ns - monotonic_ns()) > 0:
        meanwhile()
        hears.update(min(PERIOD_S, left_ns / NS_PER_S))
        for message in hears[CONTROL].fresh:
            if isinstance(message, Report) and enough(message):
                return message
    return None
