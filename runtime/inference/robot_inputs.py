"""A robot's messages -> what its policy sees: which of its cameras, under which names, and which
numbers of its state.

Pure: knows a manifest, a configuration and joined messages. What does not fit is found before
anything runs (`RobotInputs.of`), and what only a message shows at its first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import unlike_state
from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.bus.messages import Frame, FrameReference, JointState
from trimvla.runtime.errors import ConfigError, ObservationError
from trimvla.runtime.inference.observation import AgeBudget, JoinedObservation
from trimvla.runtime.preprocess.observation import ONLY, Observation
from trimvla.runtime.preprocess.state import check_state_names

GRIPPER = "gripper"


class Cameras(Protocol):
    """The part of the policy's configuration that names cameras."""

    @property
    def camera(self) -> str:
        """The robot's camera of a policy with one."""
        ...

    @property
    def cameras(self) -> Mapping[str, str]:
        """The policy's name -> the robot's, for a policy with several."""
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """One observation, and the fields that it gives a chunk that is made from it."""

    observation: Observation
    time_ns: int
    """Capture of the oldest image that the policy looks at."""
    frames: tuple[FrameReference, ...]
    """Empty for a policy with one camera: the chunk names its frame."""
    state: tuple[float, ...]


@dataclass(frozen=True)
class RobotInputs:
    """Which of the robot's cameras and numbers a policy sees."""

    views: Mapping[str, str] = field(default_factory=dict)
    """The policy's name of a camera -> the robot's; empty: one camera, whatever it is called."""
    state: StateSpec | None = None
    several: bool = False
    """The policy knows several cameras, though some may be left out: a chunk names its frames."""

    @classmethod
    def of(cls, manifests: Sequence[Manifest], config: Cameras) -> RobotInputs:
        """For a configuration and a bundle, or all rungs of a ladder, which have the same cameras.

        The state is read where one of the rungs reads it.

        Raises:
            ConfigError: a camera that the bundle needs and the configuration does not give it, or
                the reverse.
        """
        first = manifests[0]
        states = [manifest.state for manifest in manifests if manifest.state is not None]
        several = len(first.images.cameras) > 1
        return cls(views_of(first, config), states[0] if states else None, several)

    def check_state(self, names: Sequence[str], count: int | None = None) -> None:
        """Raise ObservationError where the policy cannot read the state of a robot that calls its
        positions so, or that has so many of them without names; 0: not known.
        """
        count = len(names) if count is None else count
        if not count:
            return
        position = (0.0,) * count
        message = JointState(time_ns=0, position=position, gripper=0.0, names=tuple(names))
        check_state_names(state_of(message, self.state)[1], self.state)

    def budget(self, budget: AgeBudget) -> AgeBudget:
        """The ages that are allowed; a state that is read is as old as an image at most, where
        nothing else is configured.
        """
        if self.state is None or budget.state_s is not None:
            return budget
        return replace(budget, state_s=budget.frame_s)

    def seen(self, joined: JoinedObservation, config: Cameras) -> Seen:
        """What the policy sees of joined messages.

        ObservationError where the state does not fit.
        """
        views = self.views or {ONLY: config.camera}
        frames = {view: joined.frames[camera] for view, camera in views.items()}
        state, names = state_of(joined.state, self.state)
        robot = None if joined.state is None else joined.state.description
        if robot is not None and (problem := unlike_state(robot, self.state)):
            raise ObservationError(problem)
        images = {view: frame.image for view, frame in frames.items()}
        return Seen(
            Observation(images, joined.task.instruction, state, names),
            min(frame.time_ns for frame in frames.values()),
            tuple(reference(view, frame) for view, frame in frames.items()) if self.several else (),
            () if state is None else tuple(state.tolist()),
        )


ONE_CAMERA = RobotInputs()
"""Of a policy with one camera and no state."""


def views_of(manifest: Manifest, config: Cameras) -> dict[str, str]:
    """The policy's name of each of its cameras -> the robot's.

    ConfigError where they do not fit.
    """
    names = manifest.images.names
    if not config.cameras:
        if len(names) == 1:
            return {names[0]: config.camera}
        example = ", ".join(f'{name} = "..."' for name in names)
        raise ConfigError(
            f"policy.cameras: bundle '{manifest.name}' looks through {list(names)}: expected the "
            f"robot's camera for each, {{{example}}}, got none"
        )
    required = [camera.name for camera in manifest.images.cameras if camera.required]
    missing = [name for name in required if name not in config.cameras]
    unknown = [name for name in config.cameras if name not in names]
    if missing or unknown:
        what = f"{missing} missing" if missing else f"{unknown} unknown"
        raise ConfigError(
            f"policy.cameras: expected the cameras {list(names)} of bundle '{manifest.name}', got "
            f"{sorted(config.cameras)}: {what}"
        )
    return dict(config.cameras)


def reference(view: str, frame: Frame) -> FrameReference:
    """How a chunk names a frame."""
    return FrameReference(
        view=view, camera=frame.camera, sequence=frame.sequence, time_ns=frame.time_ns
    )


def state_of(
    message: JointState | None, spec: StateSpec | None
) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """The numbers of a robot's state that a policy reads, and their names where the robot gives
    them.

    The positions; with the gripper behind them where the policy reads one number more.

    Raises:
        ObservationError: nothing has come, or there are not as many numbers.
    """
    if spec is None:
        return None, ()
    if message is None:
        raise ObservationError("nothing has come on 'robot/state' yet, and the policy reads it")
    count = len(message.position)
    if spec.dim == count:
        return np.array(message.position), message.names
    if spec.dim == count + 1:
        names = (*message.names, _gripper_name(spec)) if message.names else ()
        return np.array((*message.position, message.gripper)), names
    wanted = f" of {list(spec.names)}" if spec.names else ""
    raise ObservationError(
        f"expected {spec.dim} numbers{wanted} on 'robot/state', got {count}, and the gripper"
    )


def _gripper_name(spec: StateSpec) -> str:
    """A robot does not name its gripper; a policy may call it `gripper.pos`."""
    last = spec.names[-1] if spec.names else ""
    return last if GRIPPER in last.lower() else GRIPPER
