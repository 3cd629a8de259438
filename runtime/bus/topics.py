"""The topics: what travels on each, how often, and how old it may get. A table; knows no socket.

`high_water` is how many messages a socket holds when the other side is slow, `depth` how many wait
for a reader's next `update`: with 1, the newest wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    Episode,
    EStop,
    Frame,
    Health,
    JointState,
    Message,
    Operator,
    Refusal,
    Report,
    SimState,
    Task,
)
from trimvla.runtime.errors import ConfigError

CAMERA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Topic:
    """One line of the table."""

    name: str
    type: type[Message] | type[Frame]
    hz: float
    """Expected messages per second."""
    max_age_s: float
    """Silent for longer, its sender counts as dead."""
    high_water: int
    depth: int
    max_bytes: int
    senders: int = 1
    """How many may publish it at the same time."""
    counts: Callable[[Message | Frame], bool] | None = None
    """Which messages no flood of others may push out of a reader's queue; where none is named, the
    newest win.
    """


def _is_pressed(message: Message | Frame) -> bool:
    return isinstance(message, EStop) and message.pressed


def _is_released(message: Message | Frame) -> bool:
    return isinstance(message, Deadman) and not message.held


def _stops(message: Message | Frame) -> bool:
    return isinstance(message, Operator) and message.request != "arm"


SENDERS = 8  # of what any person or device may press
#     name, type, Hz, max age [s], high water, depth, largest message, senders, what counts
TOPICS = {
    topic.name: topic
    for topic in (
        Topic("task", Task, 5, 1.0, 16, 1, 64 * KIB),
        Topic("robot/state", JointState, 20, 0.5, 16, 1, 64 * KIB),
        Topic("sim/state", SimState, 20, 0.5, 16, 1, 256 * KIB),
        Topic("chunk", ActionChunk, 5, 2.0, 16, 1, 256 * KIB),
        Topic("refusal", Refusal, 5, 2.0, 16, 1, 64 * KIB),
        Topic("estop", EStop, 20, 0.3, 1024, 64, 64 * KIB, SENDERS, _is_pressed),
        Topic("deadman", Deadman, 20, 0.3, 1024, 64, 64 * KIB, SENDERS, _is_released),
        Topic("operator", Operator, 1, 3.0, 1024, 1024, 64 * KIB, SENDERS, _stops),
        Topic("health", Health, 5, 1.0, 16, 1, 64 * KIB),
        Topic("command", Command, 5, 0.5, 32, 32, 64 * KIB),
        Topic("episode", Episode, 5, 1.0, 32, 32, 64 * KIB),
    )
}
COLOR = Topic("<camera>/color", Frame, 15, 0.5, 1, 1, 32 * MIB)
REPORT = Topic("<process>/report", Report, 1, 3.0, 8, 8, 64 * KIB)


def topic(name: str, hz: float | None = None) -> Topic:
    """The topic called `name`: in the table, `<camera>/color` or `<process>/report`; `hz` where it
    is configured.

    Raises ConfigError for a name that there is not.

    Example:
        >>> from trimvla.runtime import topic
        >>> topic("robot/state").type.__name__, topic("front/color").type.__name__
        ('JointState', 'Frame')
    """
    found = TOPICS.get(name) or _by_owner(name)
    if found is None:
        known = ", ".join([*TOPICS, COLOR.name, REPORT.name])
        raise ConfigError(f"expected one of {known}, got {name!r} for 'topic'")
    hz = hz or found.hz
    max_age_s = max(found.max_age_s, 2 / hz)  # a slow topic is not dead between two messages
    return replace(found, name=name, hz=hz, max_age_s=max_age_s)


def color(camera: str) -> str:
    """The topic's name for a camera."""
    return f"{camera}/color"


def report(process: str) -> str:
    """The topic's name for a process's report."""
    return f"{process}/report"


def _by_owner(name: str) -> Topic | None:
    owner, _, kind = name.rpartition("/")
    table = {"color": COLOR, "report": REPORT}
    return table.get(kind) if CAMERA_NAME.fullmatch(owner) else None
