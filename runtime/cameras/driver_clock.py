"""Whether a camera's time stamps can be trusted, and what they are on our clock.

Pure: the caller reads the clocks.

A driver stamps its images with some clock. Which one is found once, when a source starts, over
several images: one of this host's clocks that runs just ahead of all their stamps, or none, and
then no age can be known. From then on a stamp is only ever converted. One that cannot be (none,
from the future, before the last one) has no time, and its image is of unknown age: the present is
never put in its place. Images that are old keep their old time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, TOGETHER_NS, Instant
from trimvla.runtime.errors import CameraError

HostClock = Literal["monotonic", "boottime", "wall"]
"""CLOCK_MONOTONIC, as V4L2 stamps; CLOCK_BOOTTIME, ours; CLOCK_REALTIME."""
ALL_CLOCKS: tuple[HostClock, ...] = ("monotonic", "boottime", "wall")
PROBES = 4  # images over which the clock is found
# stamps further behind a clock are of another one; so old an image is refused anyway
MAX_PROBE_AGE_NS = 10 * NS_PER_S
# images that a driver may hold back: longer than that a step of a clock makes images look older
KEPT_OFFSETS = 8
SLACK_NS = 2 * TOGETHER_NS  # by which two readings of the clocks may disagree


@dataclass(frozen=True)
class Stamped:
    """A driver's time stamp, and the moment at which its image had been read."""

    stamp_ns: int
    read: Instant


def find_clock(probes: Sequence[Stamped], clocks: tuple[HostClock, ...] = ALL_CLOCKS) -> HostClock:
    """The clock of this host that the stamps of a source's first images are on.

    Raises CameraError where it is none: the stamps do not rise, or are not just behind any of the
    clocks.
    """
    stamps = [probe.stamp_ns for probe in probes]
    if stamps != sorted(stamps) or stamps[0] == stamps[-1]:
        raise CameraError(
            f"expected time stamps that rise from image to image, got {_milliseconds(stamps)} ms"
        )
    for clock in clocks:
        if all(
            0 <= _reading(probe.read, clock) - probe.stamp_ns <= MAX_PROBE_AGE_NS
            for probe in probes
        ):
            return clock
    last = probes[-1]
    found = ", ".join(
        f"{(_reading(last.read, name) - last.stamp_ns) / NS_PER_S:.3f} s behind {name}"
        for name in clocks
    )
    limit = f"0 to {MAX_PROBE_AGE_NS / NS_PER_S:.0f} s behind one of this host's clocks"
    raise CameraError(f"expected time stamps {limit}, got {found}")


class DriverClock:
    """Stamps of a clock of this host, converted to ours."""

    def __init__(self, clock: HostClock) -> None:
        self.clock: HostClock = clock
        self._offsets: deque[int] = deque(maxlen=KEPT_OFFSETS)
        """From the driver's clock to ours [ns], at the last images."""
        self._newest_ns = 0

    def to_ours(self, stamped: Stamped) -> int | None:
        """When the image was taken, on our clock [ns]; None where that cannot be known.

        While the offset between the clocks changes (a suspend, or a wall clock that is set) the
        smallest of the last ones counts, by which an image that the driver held back looks older
        than it is, never younger.
        """
        if stamped.stamp_ns <= 0:
            return None
        self._offsets.append(stamped.read.ours - _reading(stamped.read, self.clock))
        taken_ns = stamped.stamp_ns + min(self._offsets)
        if (
            not 0 < taken_ns <= stamped.read.ours + SLACK_NS
            or taken_ns < self._newest_ns - SLACK_NS
        ):
            return None
        self._newest_ns = max(self._newest_ns, taken_ns)
        return min(taken_ns, stamped.read.ours)


def _reading(instant: Instant, clock: HostClock) -> int:
    readings: dict[HostClock, int] = {
        "monotonic": instant.awake,
        "boottime": instant.ours,
        "wall": instant.wall,
    }
    return readings[clock]


def _milliseconds(stamps_ns: Sequence[int]) -> str:
    return ", ".join(f"{stamp / NS_PER_MS:.1f}" for stamp in stamps_ns)
