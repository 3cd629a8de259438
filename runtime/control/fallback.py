"""What to command when there is no action to trust: a hold that knows what each dimension means.

Pure.

A delta becomes null; a velocity goes to zero, as fast as the robot may brake; an absolute target
stays where it was, and the gripper keeps its grip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError

HOLDS_LAST: dict[ActionKind, bool] = {
    "delta": False,
    "velocity": False,
    "absolute": True,
    "gripper": True,
}


def hold(
    kinds: Sequence[ActionKind], last: ArrayLike, ramp: ArrayLike = np.inf
) -> NDArray[np.float64]:
    """The command that stops, or keeps the robot where it is.

    Args:
        kinds: what each of the D dimensions means.
        last: float[D], the last command, or `as_command` of the measured state.
        ramp: float[D] or one number, by how much a velocity may fall from one command to the next.

    Returns:
        float64[D]. Raises ConfigError if the lengths differ.
    """
    values = np.asarray(last, np.float64)
    if values.shape != (len(kinds),):
        raise ConfigError(
            f"expected {len(kinds)} numbers for 'last', got shape {list(values.shape)}"
        )
    slower = np.sign(values) * np.maximum(abs(values) - np.asarray(ramp, np.float64), 0.0)
    braked = np.where([kind == "velocity" for kind in kinds], slower, 0.0)
    return np.where([HOLDS_LAST[kind] for kind in kinds], values, braked)


def moves(kinds: Sequence[ActionKind], last: ArrayLike) -> bool:
    """Whether the robot goes on moving after this command if nothing more is sent: its velocity is
    not zero.
    """
    return any(
        kind == "velocity" and value != 0
        for kind, value in zip(kinds, np.asarray(last), strict=True)
    )


def as_command(
    kinds: Sequence[ActionKind], position: Sequence[float], gripper: float
) -> NDArray[np.float64] | None:
    """The command float64[D] for the robot's present position, to hold before the first command;
    None if that is unknown.

    `position` has one entry for each dimension but the gripper's, and matters only where one of
    them is absolute; `gripper` is 1 = open, 0 = closed.
    """
    arm = len(kinds) - kinds.count("gripper")
    if "absolute" not in kinds:
        position = (0.0,) * arm
    if len(position) != arm or not np.isfinite([*position, gripper]).all():
        return None
    entries = iter(position)
    return hold(kinds, [gripper if kind == "gripper" else next(entries) for kind in kinds])
