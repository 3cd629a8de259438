"""A recording -> a LeRobot data set: what was commanded, and what the robot showed at that moment.

One row a command, at the control loop's rate: the action as it was sent (holds included), the
newest image of each camera and the newest state from before it, and the instruction of the task.
One episode a task of the recording. Knows recordings and data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimvla.launch.datasets.results import DataSetResult
from trimvla.launch.datasets.writer import DataSetWriter, Image, Shape
from trimvla.launch.motion.recorded import recorded_control
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk, Command, Frame, JointState, Task
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recording import Recording

MOST_CAMERAS = 16


@dataclass
class Seen:
    """The newest of everything, as the recording goes on."""

    images: dict[str, Image] = field(default_factory=dict)
    state: JointState | None = None
    task: Task | None = None


@dataclass(frozen=True)
class Row:
    """One command, and what was seen before it."""

    command: Command
    state: JointState
    images: dict[str, Image]
    task: str


def write_data_set(recording: Recording, out: Path) -> DataSetResult:
    """Write the data set.

    Raises:
        RecordingError: no recording, or a damaged one.
        ConfigError: there is no command to which images, a state and a task belong, or something
            lies at `out`.
    """
    shape = shape_of(recording)
    with DataSetWriter(out, shape) as writer:
        episode: int | None = None
        for row in rows(recording, tuple(shape.cameras)):
            if episode not in (None, row.command.episode):
                writer.end_episode()
            episode = row.command.episode
            state = (*row.state.position, row.state.gripper)
            writer.add(row.command.action, state, row.images, row.task)
        writer.end_episode()
        return DataSetResult(
            ok=True,
            folder=out,
            episodes=writer.episodes,
            frames=writer.frames,
            fps=shape.fps,
            cameras=tuple(shape.cameras),
        )


def shape_of(recording: Recording) -> Shape:
    """What every row has, from the first whole one. Raises ConfigError where there is none."""
    control = recorded_control(recording)
    cameras = all_cameras(recording)
    kinds: tuple[ActionKind, ...] = ()
    hz = control.hz
    for entry in recording.entries(lambda name: name == "chunk"):
        if isinstance(entry.message, ActionChunk):
            kinds = kinds or entry.message.kinds
            hz = hz or entry.message.control_hz
            break
    first = next(rows(recording, cameras), None)
    if first is None or not hz:
        what = f"commands with images of {list(cameras)}, a state and a task before them"
        raise ConfigError(f"{recording.path}: expected {what}, got none")
    return Shape(
        fps=hz,
        actions=action_names(len(first.command.action), first.state, kinds),
        states=state_names(first.state),
        cameras={name: first.images[name].shape[:2] for name in cameras},
        robot_type="trimvla",
    )


def all_cameras(recording: Recording) -> tuple[str, ...]:
    """The cameras whose images were recorded. Raises ConfigError where there are none."""
    names: dict[str, None] = {}
    for entry in recording.entries(lambda name: name.endswith("/color")):
        if isinstance(entry.message, Frame):
            names[entry.message.camera] = None
    if not 0 < len(names) <= MOST_CAMERAS:
        raise ConfigError(
            f"{recording.path}: expected images of 1 to {MOST_CAMERAS} cameras, got {len(names)}"
        )
    return tuple(sorted(names))


def rows(recording: Recording, cameras: tuple[str, ...]) -> Iterator[Row]:
    """Every command for which everything is known."""
    seen = Seen()
    for entry in recording.entries(wanted):
        message = entry.message
        if isinstance(message, Frame):
            seen.images[message.camera] = message.image
        elif isinstance(message, JointState):
            seen.state = message
        elif isinstance(message, Task):
            seen.task = message if message.active else None
        elif isinstance(message, Command) and seen.state is not None and seen.task is not None:
            whole = all(camera in seen.images for camera in cameras)
            if whole and message.episode == seen.task.episode:
                yield Row(message, seen.state, dict(seen.images), seen.task.instruction)


def wanted(name: str) -> bool:
    """The topics of a row."""
    return name in ("command", "robot/state", "task") or name.endswith("/color")


def state_names(state: JointState) -> tuple[str, ...]:
    """Of the positions and the gripper."""
    names = state.names or tuple(f"joint_{place}" for place in range(len(state.position)))
    return (*names, "gripper")


def action_names(dim: int, state: JointState, kinds: tuple[ActionKind, ...]) -> tuple[str, ...]:
    """The state's names where an action is as long and absolute, else each number's kind."""
    same = len(kinds) == dim == len(state_names(state)) and "absolute" in kinds
    if same and state.names:
        return state_names(state)
    if len(kinds) != dim:
        return tuple(f"action_{place}" for place in range(dim))
    return tuple(
        "gripper" if kind == "gripper" and kinds.count("gripper") == 1 else f"{kind}_{place}"
        for place, kind in enumerate(kinds)
    )
