"""What travels between processes, as frozen types.

Knows fields, units and ranges; not how they become bytes.

Times are nanoseconds of one host's clock (`clock.monotonic_ns`). `time_ns` is when the content was
true: a frame's capture, a state's reading, the sending of a command, or of each repeat of a task. A
sign of life is as old as that, for messages may wait on their way. Arrays that the robot acts on
are float64 tuples; images are numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.bundle.manifest import ActionKind

SCHEMA_VERSION = 1
MAX_ROWS = 256
MAX_DIM = 64
MAX_STATE = 4096
MAX_VIEWS = 16  # cameras of one policy

TimeNs = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Action = Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_DIM)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every message but a frame carries.

    `sequence` counts up by one per topic; the publisher sets it.
    """

    schema_version: int = SCHEMA_VERSION
    sequence: Count = 0
    time_ns: TimeNs


class Task(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the robot is to do now.

    Repeated while it holds: when it falls silent, the robot goes idle.
    """

    episode: Count
    instruction: Text
    active: bool = True
    started_ns: TimeNs
    """When the task began; nothing seen earlier may serve it."""
    seed: int | None = None
    options: dict[str, Any] = {}
    """For a simulator: how to set the scene."""


class JointState(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the robot is.

    Example:
        >>> from trimvla.runtime import JointState, monotonic_ns
        >>> JointState(time_ns=monotonic_ns(), position=(0.3, 0.1), gripper=1.0).gripper
        1.0
    """

    position: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_DIM)]
    """Per joint or tool coordinate [rad or m, or as `description` names it]."""
    gripper: float
    """1 = open, 0 = closed."""
    names: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_DIM)] = ()
    """Of the positions, in order; empty where the robot does not name them."""
    description: Description | None = None
    """What the robot takes and gives. With it control compares bundle and limits before it arms."""

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.position):
            expected = len(self.position)
            raise ValueError(
                f"expected {expected} entries for 'names', or none, got {len(self.names)}"
            )


class Guidance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a chunk was guided by the one before (`guide.py`): with both chunks, all that a replay
    needs.
    """

    chunk: Count
    """Sequence of the chunk before."""
    shift: Count
    """Its row that belongs to this chunk's row 0."""
    frozen: Count
    """Rows that were taken over as they are."""
    weights: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_ROWS)]
    """Of each row, from 0 (free) to 1 (frozen)."""


class FrameReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which image of a camera a chunk was made from."""

    view: Text
    """The policy's name of the camera."""
    camera: Text
    """The robot's, as in the topic."""
    sequence: Count
    time_ns: TimeNs


class ActionChunk(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the policy wants to do next.

    `time_ns` is the capture of the oldest image that it was made from.
    """

    episode: Count
    actions: Annotated[tuple[Action, ...], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
    """float64[H, D], un-normalised; row 0 is for the moment of the observation."""
    control_hz: Annotated[float, msgspec.Meta(gt=0, le=10_000)]
    """Rows per second."""
    kinds: Annotated[tuple[ActionKind, ...], msgspec.Meta(max_length=MAX_DIM)] = ()
    """What each of the D dimensions means; empty only in recordings from before chunks named it."""
    names: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_DIM)] = ()
    """Of the D dimensions; empty where the bundle does not name them."""
    units: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_DIM)] = ()
    """Likewise."""
    statistics_key: Text = ""
    """Whose statistics the actions were un-normalised with."""
    valid_rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]
    """Only this many rows may be executed."""
    produced_ns: TimeNs
    frame_sequence: Count
    seed: Annotated[tuple[Count, ...], msgspec.Meta(max_length=8)]
    """The same observation and seed give the same actions."""
    instruction: Text = ""
    """The policy's instruction: with the images, the state and the seed, all that a replay
    needs.
    """
    frames: Annotated[tuple[FrameReference, ...], msgspec.Meta(max_length=MAX_VIEWS)] = ()
    """The images of a policy with several cameras, one for each; with one camera,
    `frame_sequence` identifies its image.
    """
    state: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_DIM + 1)] = ()
    """What the policy read of the robot's state; empty where it reads none."""
    guidance: Guidance | None = None
    """How the chunk before guided it, if it did."""
    rung: Text = ""
    """The bundle on the quality ladder that made it; empty where there is no ladder."""
    rung_reason: Text = ""
    """Why it was this one."""

    def serves(self, task: Task) -> bool:
        """Whether it was made for this task and its instruction, from an image that is no older
        than the task.
        """
        same = self.episode == task.episode and self.instruction == task.instruction
        return same and self.time_ns >= task.started_ns

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.actions}
        if len(widths) != 1 or self.valid_rows > len(self.actions):
            rows = (
                f"rows of {sorted(widths)} numbers and {self.valid_rows} valid rows of"
                f" {len(self.actions)}"
            )
            raise ValueError(
                "expected rows of one length and at most that many valid ones for 'actions', got"
                f" {rows}"
            )
        if self.kinds and widths != {len(self.kinds)}:
            raise ValueError(f"expected {widths.pop()} entries for 'kinds', got {len(self.kinds)}")


class Command(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the robot does in this period. `time_ns` is when it was sent.

    Example:
        >>> from trimvla.runtime import Command, monotonic_ns
        >>> command = Command(time_ns=monotonic_ns(), episode=0, kind="hold", action=(0.0,) * 7)
        >>> command.kind, len(command.action)
        ('hold', 7)
    """

    episode: Count
    kind: Literal["action", "hold"]
    action: Action
    """float64[D]."""
    reason: Text = ""
    """Why it holds, or what the gate changed."""
    captured_ns: TimeNs | None = None
    """Capture of the image behind this action; none for a hold."""
    chunk_sequence: Count | None = None
    row: Count | None = None


class Refusal(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An observation that the policy did not act on. `time_ns` is when that was decided."""

    episode: Count
    kind: Literal["stale", "skewed", "frozen", "other"]
    reason: Text
    since_ns: TimeNs | None = None
    """Images captured after then and until `time_ns` did not show the world; None where they are
    merely too old.
    """


class EStop(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The emergency stop as software sees it, repeated all the time.

    It does not replace one that cuts the power.
    """

    pressed: bool
    source: Text = ""
    """Who or what pressed it."""


class Deadman(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a person holds the enabling switch, repeated while they do."""

    held: bool


class Operator(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's word on whether the robot may move; each message counts once."""

    request: Literal["arm", "disarm", "reset"]
    id: Count = 0
    """Repetitions of one word carry the same number, so that they count once; 0 for a word that is
    not repeated.
    """


class Health(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether all processes that the robot needs are there, as who started them sees it; it holds
    until it is not.
    """

    ok: bool
    reason: Text = ""
    """What is missing."""


class SimState(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated world, for processes that draw it."""

    episode: Count
    step: Count
    scene: dict[str, Any]
    qpos: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_STATE)]


class Episode(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an episode stands; `done` is final."""

    episode: Count
    instruction: Text
    step: Count
    done: bool
    success: bool
    reason: Text = ""


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution of durations [ms]."""

    count: Count
    p50: float
    p99: float
    max: float
    sum: float = 0.0
    """Of all since the start, like the buckets; what stands above is of a window."""
    buckets: tuple[Count, ...] = ()
    """How many fell between one of `telemetry.BUCKETS_MS` and the next; the last counts those
    beyond.
    """


class Report(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process's heartbeat: what it did since its start."""

    process: Text
    state: Text
    reason: Text = ""
    counters: dict[str, int] = {}
    values: dict[str, float] = {}
    latencies: dict[str, Summary] = {}
    problems: dict[str, Text] = {}
    """Topic -> why a message on it was last refused, of those that the process subscribes to."""


UNKNOWN_AGE = "unknown"  # as a frame's `timestamp_source`


@dataclass(frozen=True, eq=False)
class Frame:
    """An image and when it was taken. `image` is RGB uint8[h, w, 3], contiguous.

    `utc_ns` is `time_ns` on the wall clock, for people and other hosts; its publisher sets it.
    `timestamp_source` is where the time comes from: `host`, `driver`, `read`, `server`,
    `simulator`, or `unknown`, and then the time is 0 and nobody may act on the image.
    """

    camera: str
    time_ns: int
    image: NDArray[np.uint8]
    sequence: int = 0
    utc_ns: int = 0
    stream: str = "color"
    timestamp_source: str = "host"

    @property
    def age_known(self) -> bool:
        """Whether it is known when the image was taken."""
        return self.timestamp_source != UNKNOWN_AGE
