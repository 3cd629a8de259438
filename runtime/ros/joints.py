"""Joints of ROS 2: states in by name, commands out by name. Pure.

A position in a message means nothing, a name does: a driver that lists its joints in another order
after an update must move nothing wrongly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.errors import WireError
from trimvla.runtime.ros.cdr import ARRAY, DURATION, LAYOUT, POINT, TRAJECTORY, header, make

MOST_JOINTS = 1024  # of a message from elsewhere


def positions_of(message: Any, joints: Sequence[str]) -> tuple[float, ...]:  # noqa: ANN401 - one of rosbags' classes
    """The positions of a sensor_msgs/JointState in the order of `joints`, in its unit (rad or m).

    Joints that are not asked for are passed over.

    Raises WireError: a joint is missing or there twice, has no position, or one that is no finite
    number.
    """
    names = list(message.name[:MOST_JOINTS])
    if len(message.position) != len(message.name):
        raise WireError(
            f"expected {len(message.name)} numbers for 'position', one for each name, got"
            f" {len(message.position)}"
        )
    counts = Counter(names)
    missing = [name for name in joints if not counts[name]]
    twice = [name for name in joints if counts[name] > 1]
    if missing or twice:
        fault = f"{missing} missing" if missing else f"{twice} more than once"
        raise WireError(
            f"expected each of {list(joints)} once in 'name', got {names[:64]}: {fault}"
        )
    found = tuple(float(message.position[names.index(name)]) for name in joints)
    wrong = [name for name, value in zip(joints, found, strict=True) if not math.isfinite(value)]
    if wrong:
        raise WireError(f"expected finite numbers for 'position', got others for {wrong}")
    return found


def trajectory(joints: Sequence[str], positions: Sequence[float], reach_ns: int) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """A trajectory_msgs/JointTrajectory of one point, to be reached in `reach_ns` from its arrival
    on (a stamp of 0 means "now"), and held from then on: a controller keeps its last point.
    """
    seconds, rest = divmod(reach_ns, NS_PER_S)
    none = np.zeros(0)
    point = make(
        POINT,
        positions=np.array(positions, np.float64),
        velocities=none,
        accelerations=none,
        effort=none,
        time_from_start=make(DURATION, sec=seconds, nanosec=rest),
    )
    return make(TRAJECTORY, header=header(), joint_names=list(joints), points=[point])


def array(values: Sequence[float]) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """A std_msgs/Float64MultiArray, as a forward command controller takes it."""
    numbers = np.array(values, np.float64)
    return make(ARRAY, layout=make(LAYOUT, dim=[], data_offset=0), data=numbers)
