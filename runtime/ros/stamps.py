"""When something of ROS 2 was true, on our clock: by its header's stamp, never by its arrival.

ROS time is the host's wall clock or a simulator's. What lies between it and our clock is measured
at every message, and the smallest of the last differences counts: where the two clocks drift apart
something looks older than it is, never younger. Knows clocks; no message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from trimvla.runtime.cameras.driver_clock import PROBES, DriverClock, Stamped, find_clock
from trimvla.runtime.clock import TOGETHER_NS, TRIES, Instant, instant
from trimvla.runtime.errors import CameraError, DriverError


@dataclass(frozen=True)
class Arrival:
    """When a message came."""

    ours: Instant
    ros_ns: int
    """ROS time."""


def arrival(ros_now: Callable[[], int]) -> Arrival:
    """This moment on our clocks and in ROS time, read within 1 ms of each other also where the
    process was stopped in between; then it is the earlier one that counts as ours, so that nothing
    looks younger.
    """
    took, found = _read_both(ros_now)
    for _ in range(TRIES):
        if took < TOGETHER_NS:
            break
        again = _read_both(ros_now)
        took, found = min((took, found), again, key=lambda reading: reading[0])
    return found


def _read_both(ros_now: Callable[[], int]) -> tuple[int, Arrival]:
    """The clocks, and how long it took to read them [ns]."""
    ours = instant()
    ros_ns = ros_now()
    return instant().ours - ours.ours, Arrival(ours, ros_ns)


class StampClock:
    """The stamps of one ROS topic, converted to our clock."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._probes: list[Stamped] = []
        self._clock: DriverClock | None = None

    @property
    def found(self) -> bool:
        """Whether the stamps are known to be ROS time: after the first few messages."""
        return self._clock is not None

    def to_ours(self, stamp_ns: int, ros_now_ns: int, received: Instant) -> int | None:
        """When a message was true, on our clock [ns]; None where that cannot be known: no stamp,
        one of the future, one before the last, and over the first messages.

        Args:
            stamp_ns: the header's.
            ros_now_ns: ROS time when the message came.
            received: our clocks at the same moment.

        Raises:
            DriverError: the first messages have no stamps of ROS time.
        """
        stamped = Stamped(stamp_ns, replace(received, wall=ros_now_ns))
        if self._clock is not None:
            return self._clock.to_ours(stamped)
        self._probes.append(stamped)
        if len(self._probes) == PROBES:
            self._clock = self._find()
        return None

    def _find(self) -> DriverClock:
        try:
            return DriverClock(find_clock(self._probes, ("wall",)))
        except CameraError as error:
            raise DriverError(
                f"topic '{self._topic}': {error} (here: ROS time); the hosts' clocks must agree,"
                " and `sim_time` must be set where a simulator has its own"
            ) from None
