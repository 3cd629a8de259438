"""Coarse or fine: whether the motion that a chunk plans needs the best policy.

Pure: chunks and times.

Fine is what lies near an event of the gripper, that has been or is planned, and what is slow: that
is where a robot aims. Knows what dimensions mean; the first three are its translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.errors import ConfigError

TRANSLATION = 3  # dimensions


@dataclass(frozen=True)
class PhaseConfig:
    """What is fine."""

    near_s: float = 1.0
    """Before and after the gripper opens or closes."""
    slow: float = 0.02
    """Slower motion is fine, in the robot's units per row (m)."""
    rows: int = 3
    """Of a chunk, whose mean speed counts."""

    def __post_init__(self) -> None:
        if not (self.near_s > 0 and self.slow >= 0 and self.rows >= 1):
            numbers = f"{self.near_s}, {self.slow} and {self.rows}"
            raise ConfigError(f"expected 'near_s' > 0, 'slow' >= 0 and 'rows' >= 1, got {numbers}")


class Phase:
    """Remembers the last chunk."""

    def __init__(self, config: PhaseConfig, kinds: Sequence[ActionKind]) -> None:
        self._config = config
        self._kinds = tuple(kinds)
        self.reset()

    def reset(self) -> None:
        """Nothing is known: fine."""
        self._events_ns: list[int] = []
        self._slow = True
        self._gripper: NDArray[np.bool_] | None = None

    def receive(self, chunk: ActionChunk) -> None:
        """A chunk that the robot is to execute."""
        rows = np.array(chunk.actions[: chunk.valid_rows])
        period = NS_PER_S / chunk.control_hz
        past = [event for event in self._events_ns if event < chunk.time_ns]
        self._events_ns = past[-1:] + [
            chunk.time_ns + round(row * period) for row in self._events(rows)
        ]
        self._slow = (
            mean_step(rows[: self._config.rows + 1], self._kinds, chunk.control_hz)
            <= self._config.slow
        )

    def _events(self, rows: NDArray[np.float64]) -> list[int]:
        """Rows in which the gripper becomes another than it was; remembers how the first one has
        it.
        """
        columns = [index for index, kind in enumerate(self._kinds) if kind == "gripper"]
        opened = rows[:, columns] >= 0.5
        before = opened[:1] if self._gripper is None else self._gripper[None]
        changed = np.any(opened != np.concatenate([before, opened[:-1]]), axis=1)
        self._gripper = opened[0]
        return np.flatnonzero(changed).tolist()

    def fine(self, now_ns: int) -> bool:
        """Whether the motion is a fine one at this moment."""
        near = to_ns(self._config.near_s)
        return self._slow or any(abs(now_ns - event) <= near for event in self._events_ns)


def mean_step(rows: NDArray[np.float64], kinds: Sequence[ActionKind], hz: float) -> float:
    """How far the tool is moved from one row to the next, on average; 0 where that is not known."""
    steps = []
    for column, kind in enumerate(kinds[:TRANSLATION]):
        values = rows[:, column]
        if kind == "absolute":
            values = np.diff(values, append=values[-1:])
        steps.append(values / hz if kind == "velocity" else values)
    return float(np.linalg.norm(steps, axis=0).mean()) if steps else 0.0
