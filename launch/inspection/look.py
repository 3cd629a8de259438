"""What is inspected: a call of a recording, or an image with an instruction; and what makes the
call.

Opens policies; runs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.errors import ConfigError, ImageError, RecordingError
from trimvla.runtime.images import read_image
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.record.recording import Recording
from trimvla.runtime.record.replay import Call, Calls


@dataclass(frozen=True, eq=False)
class Look:
    """What is inspected: an observation, the noise's seed; the recorded call if there is one."""

    observation: Observation
    seed: tuple[int, ...]
    call: Call | None = None


def pick(recording: Recording, index: int) -> Call:
    """One call of a recording by its place; RecordingError where there is none."""
    calls = Calls(recording)
    place = index if index >= 0 else calls.count + index
    for number, call in enumerate(calls):
        if number == place:
            return call
    why = "".join(f"; {count}: {reason}" for reason, count in calls.left_out.items())
    raise RecordingError(f"{recording.path}: expected call {index}, got {calls.count} calls{why}")


def load_image(path: Path) -> NDArray[np.uint8]:
    """uint8[h, w, 3] RGB. Raises ConfigError."""
    try:
        return read_image(path)
    except ImageError as error:
        raise ConfigError(str(error)) from None
