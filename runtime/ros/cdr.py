"""ROS 2 messages as CDR bytes and back: the types that the bridge and the bags need.

The package `rosbags` has their definitions, which are the same in every distribution since Foxy;
ROS itself is not needed. Types that a bag or a node brings along are never registered: that would
run code made of them. Knows types and bytes; not what a message means.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.errors import ConfigError, WireError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
JOINTS = "sensor_msgs/msg/JointState"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
POINT = "trajectory_msgs/msg/JointTrajectoryPoint"
ARRAY = "std_msgs/msg/Float64MultiArray"
LAYOUT = "std_msgs/msg/MultiArrayLayout"
BOOL = "std_msgs/msg/Bool"
STRING = "std_msgs/msg/String"
HEADER = "std_msgs/msg/Header"
TIME = "builtin_interfaces/msg/Time"
DURATION = "builtin_interfaces/msg/Duration"


@lru_cache(maxsize=1)
def types() -> Any:  # noqa: ANN401 - a type store of rosbags
    """The definitions of all types. Raises ConfigError where `rosbags` is not installed."""
    try:
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        words = "expected the package rosbags in this environment (pip install 'trimvla[ros]')"
        raise ConfigError(f"{words}, got: {error}") from None
    return get_typestore(Stores.ROS2_HUMBLE)


def make(kind: str, **fields: object) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """A message of a type; every field must be given."""
    return types().types[kind](**fields)


def decode(raw: bytes | memoryview, kind: str) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """The message in these bytes; its arrays are views of them. Raises WireError alone."""
    try:
        return types().deserialize_cdr(memoryview(raw), kind)
    except ConfigError:
        raise
    except Exception as error:  # bytes from elsewhere: rosbags' own error, or what it overlooked
        raise WireError(f"expected {kind}, got {len(raw)} bytes: {str(error)[:200]}") from None


def encode(message: object, kind: str) -> bytes:
    """A message as bytes, little-endian, with the encapsulation header that ROS expects."""
    return bytes(types().serialize_cdr(message, kind))


def stamp_ns(message: Any) -> int:  # noqa: ANN401 - a message with a header
    """The header's stamp [ns]; 0 means that there is none.

    Raises WireError for nanoseconds that are no part of a second.
    """
    stamp = message.header.stamp
    if not 0 <= stamp.nanosec < NS_PER_S:
        raise WireError(
            f"expected 0 to {NS_PER_S - 1} for 'header.stamp.nanosec', got {stamp.nanosec}"
        )
    return stamp.sec * NS_PER_S + stamp.nanosec


def header(time_ns: int = 0, frame_id: str = "") -> Any:  # noqa: ANN401 - one of rosbags' classes
    """A header with a stamp of ROS time [ns]; 0 is "now" to a controller, "unknown" elsewhere."""
    seconds, rest = divmod(time_ns, NS_PER_S)
    return make(HEADER, stamp=make(TIME, sec=seconds, nanosec=rest), frame_id=frame_id)
