"""`trimvla operator`: a person's request to the control process, repeated until its report shows
that it counted."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.launch.result import VerbResult
from trimvla.launch.system.client import SystemClient, wait_until
from trimvla.runtime.bus.messages import EStop, Operator, Report
from trimvla.runtime.bus.topics import report
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.control.process import PRESSES, WORD_ID
from trimvla.runtime.errors import ConfigError

Word = Literal["arm", "disarm", "reset", "estop"]
CONTROL = "control"
PERIOD_S = 0.05
IDS = 2**52  # a report's numbers are floats
EXPECTED: dict[Word, tuple[str, ...]] = {
    "arm": ("armed", "running", "hold"),
    "disarm": ("idle", "fault"),
    "reset": ("idle", "armed", "running", "hold"),
    "estop": ("fault",),
}
"""The states in which a request has had its effect."""


@dataclass(frozen=True)
class Args(Options):
    """Arm, disarm or reset the robot, or press the emergency stop. Ends well only once control has
    acted on it.

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


class OperatorResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: control acted on the request."""

    word: str
    """The request to control."""
    state: str
    """The state that control is in since."""
    reason: str
    """Why it is."""


@dataclass(frozen=True)
class Attempt:
    """How to send a request, and how to see in a report that it counted."""

    send: Callable[[], None]
    counted: Callable[[Report], bool]


def run(args: Args) -> OperatorResult:
    """Send the request until it counted. Raises ConfigError where it never does."""
    deadline_ns = monotonic_ns() + to_ns(args.timeout)
    with SystemClient(args.run_dir, processes=[CONTROL]) as client:
        before = first_report(client, deadline_ns, Attempt(lambda: None, lambda _: True))
        if before is None:
            missing = f"a report of control in {args.run_dir} within {args.timeout:g} s"
            raise ConfigError(f"expected {missing}, got none")
        attempt = press(client, before) if args.word == "estop" else send_request(client, args.word)
        after = first_report(client, deadline_ns, attempt)
    if after is None:
        raise ConfigError(
            f"expected control to act on '{args.word}' within {args.timeout:g} s, it did not"
        )
    ok = after.state in EXPECTED[args.word]
    args.console().print(f"control is {after.state}: {after.reason}")
    return OperatorResult(
        ok=ok,
        error=None
        if ok
        else f"control received '{args.word}' and is {after.state}: {after.reason}",
        word=args.word,
        state=after.state,
        reason=after.reason,
    )


def send_request(client: SystemClient, word: Literal["arm", "disarm", "reset"]) -> Attempt:
    """An operator's request, under a number that control reports once it has acted on it."""
    client.open("operator")
    number = secrets.randbelow(IDS) + 1

    def send() -> None:
        client.send("operator", Operator(time_ns=monotonic_ns(), request=word, id=number))

    return Attempt(send, lambda report: report.values.get(WORD_ID) == number)


def press(client: SystemClient, before: Report) -> Attempt:
    """The emergency stop, pressed; control counts presses."""
    client.open("estop")
    source = f"trimvla operator ({os.getpid()})"
    pressed = before.counters.get(PRESSES, 0)

    def send() -> None:
        client.send("estop", EStop(time_ns=monotonic_ns(), pressed=True, source=source))

    return Attempt(send, lambda report: report.counters.get(PRESSES, 0) > pressed)


def first_report(client: SystemClient, deadline_ns: int, attempt: Attempt) -> Report | None:
    """The first new report of control that shows it, sending meanwhile; None by the deadline."""
    found: list[Report] = []

    def turn() -> None:
        attempt.send()
        client.receive(PERIOD_S)
        fresh = (one for one in client[report(CONTROL)].fresh if isinstance(one, Report))
        found.extend(one for one in fresh if attempt.counted(one))

    wait_until(lambda: bool(found), (deadline_ns - monotonic_ns()) / NS_PER_S, turn)
    return found[0] if found else None
