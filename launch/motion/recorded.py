"""How a robot was made to move while it was recorded: its commands, counted.

A recording comes from elsewhere: settings of its control loop that are none are left aside.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from trimvla.launch.system.setup.sections import section_of
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk, Command
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.control.hold_reasons import hold_kind
from trimvla.runtime.control.motion_quality import MotionFigures, MotionMeter, figures
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recording import Recording, fact

PAUSE = 1.5  # periods between two commands that are no neighbours any more
Row = tuple[float, ...]


class RecordedLimits(msgspec.Struct):
    """The range of commands in a recording's settings."""

    low: Row = ()
    high: Row = ()


class RecordedControl(msgspec.Struct):
    """The settings of the process `control` in a recording, as far as they matter here."""

    hz: Annotated[float, msgspec.Meta(gt=0, le=10_000)] | None = None
    limits: RecordedLimits = msgspec.field(default_factory=RecordedLimits)


def recorded_motion(recording: Recording) -> MotionFigures | None:
    """Figures of all recorded commands; None without commands, or where no chunk has what they
    mean.

    Raises RecordingError for a damaged file.
    """
    settings = recorded_control(recording)
    meter: MotionMeter | None = None
    kinds: tuple[ActionKind, ...] = ()
    hz = settings.hz
    last_ns: int | None = None
    for entry in recording.entries(lambda name: name in ("chunk", "command")):
        message = entry.message
        if isinstance(message, ActionChunk):
            kinds = kinds or message.kinds
            hz = hz or message.control_hz
        elif isinstance(message, Command) and kinds and hz:
            meter = meter or new_meter(kinds, hz, settings.limits)
            if last_ns is None or message.time_ns - last_ns > PAUSE * NS_PER_S / hz:
                meter.restart()
            last_ns = message.time_ns
            meter.add(message.action, hold_kind(message.reason) if is_hold(message) else None)
    return None if meter is None else figures(meter.counts())


def is_hold(command: Command) -> bool:
    """Whether a command keeps the robot where it is."""
    return command.kind == "hold"


def new_meter(kinds: tuple[ActionKind, ...], hz: float, limits: RecordedLimits) -> MotionMeter:
    """A meter with the recording's limits, where they are of as many dimensions."""
    if not len(limits.low) == len(limits.high) == len(kinds):
        return MotionMeter(kinds, hz)
    return MotionMeter(kinds, hz, np.array(limits.low), np.array(limits.high))


def recorded_control(recording: Recording) -> RecordedControl:
    """The settings of the recording's control loop; none where it names none that are valid."""
    sections = fact(recording, "system", dict[str, dict[str, Any]]) or {}
    try:
        return msgspec.convert(section_of("control", sections), RecordedControl)
    except (msgspec.ValidationError, ConfigError):
        return RecordedControl()
