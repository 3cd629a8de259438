"""Which action is due now: the row of a chunk that belongs to a moment, or why there is none.

Knows chunks and time.

A chunk's row r is for the moment of its observation plus r control periods. So a chunk that took
long to make starts further down: its first rows belong to moments that have passed. Pure: the
caller passes the time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.chunks.ensemble import ALPHA, blend
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, to_ns
from trimvla.runtime.errors import ConfigError

Mode = Literal["latest", "ensemble", "blend"]
MAX_FADING = 8  # chunks that fade into each other at once; older ones weigh next to nothing


@dataclass(frozen=True)
class QueueConfig:
    """How chunks become actions."""

    mode: Mode = "latest"
    """`latest`: the newest chunk decides. `ensemble`: the newest ones vote, as CogACT's adaptive
    ensemble. `blend`: in equal steps from what is left of the old chunk to the new one. Real-time
    chunking is the policy's affair (`policy.rtc`), with `latest` here.
    """
    votes: int = 2
    """Chunks that vote in an ensemble."""
    alpha: float = ALPHA
    blend_s: float = 0.4
    """How long the old chunk still counts in a blend; the gripper follows the new one at once."""
    max_jump: tuple[float, ...] = ()
    """By how much a command may differ from the one before, per dimension, where a chunk follows
    another; what is left is caught up at the same pace. By default the gate's `max_change`.
    """
    max_age_s: float = 2.0
    """Of the image behind an action, whatever the valid rows of its chunk."""
    actuation_s: float = 0.0
    """From a command's sending to the robot's motion: an image taken in that time does not show
    the command yet.
    """

    def __post_init__(self) -> None:
        if self.mode not in ("latest", "ensemble", "blend"):
            raise ConfigError(f"expected latest, ensemble or blend, got {self.mode!r} for 'mode'")
        if not self.blend_s > 0 or not all(bound > 0 for bound in self.max_jump):
            numbers = f"{self.blend_s} and {list(self.max_jump)}"
            raise ConfigError(
                f"expected numbers above 0 for 'blend_s' and 'max_jump', got {numbers}"
            )
        if self.votes < 1 or self.actuation_s < 0:
            raise ConfigError(
                f"expected 'votes' >= 1 and 'actuation_s' >= 0, got {self.votes} and"
                f" {self.actuation_s}"
            )
        if not self.max_age_s > 0:
            raise ConfigError(f"expected a time above 0 s, got {self.max_age_s!r} for 'max_age_s'")


@dataclass(frozen=True)
class Due:
    """The action float64[D] for a moment: `row` of `chunk`, the newest that has one; `voters` is
    the number of chunks that were averaged.
    """

    action: NDArray[np.float64]
    chunk: ActionChunk
    row: int
    voters: int


def row_at(chunk: ActionChunk, now_ns: int, actuation_ns: int = 0) -> int:
    """The row that belongs to this moment; `valid_rows` or more once the chunk has expired.

    Up to one period before the observation it is row 0: a late tick may look at an image that was
    taken after the moment for which the tick was planned. Earlier than that it is negative.
    """
    row = math.floor((now_ns - chunk.time_ns + actuation_ns) * chunk.control_hz / NS_PER_S)
    return 0 if row == -1 else row


class ChunkQueue:
    """The last chunks of one episode."""

    def __init__(self, config: QueueConfig | None = None, kinds: Sequence[ActionKind] = ()) -> None:
        """`kinds` of the action's dimensions: a gripper is not blended."""
        self._config = config or QueueConfig()
        self._actuation_ns = to_ns(self._config.actuation_s)
        self._max_age_ns = to_ns(self._config.max_age_s)
        self._gripper = [index for index, kind in enumerate(kinds) if kind == "gripper"]
        kept = {"latest": 1, "ensemble": self._config.votes, "blend": MAX_FADING}[self._config.mode]
        self._chunks: deque[ActionChunk] = deque(maxlen=kept)
        self._since: dict[int, int] = {}
        """When each of them came, by the time of its image [ns]."""

    def reset(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()

    def push(self, chunk: ActionChunk, now_ns: int) -> None:
        """Take a chunk, unless it is no newer than the newest, or is from the future."""
        newest = self._chunks[-1].time_ns if self._chunks else -1
        if chunk.time_ns > newest and row_at(chunk, now_ns) >= 0:
            self._chunks.append(chunk)
            self._since = {
                kept.time_ns: self._since.get(kept.time_ns, now_ns) for kept in self._chunks
            }

    def withdraw(self, start_ns: int, end_ns: int) -> None:
        """Forget the chunks that were made from images captured after `start_ns` and until
        `end_ns`.
        """
        kept = [chunk for chunk in self._chunks if not start_ns < chunk.time_ns <= end_ns]
        self._chunks = deque(kept, self._chunks.maxlen)

    def due(self, tick_ns: int, now_ns: int | None = None) -> Due | str:
        """The action for this moment, or why there is none.

        Args:
            tick_ns: the moment that the action is for: it decides the row.
            now_ns: the moment by which images are as old as they are, where it is another, later
                one.
        """
        if not self._chunks:
            return "no chunk yet"
        now_ns = tick_ns if now_ns is None else now_ns
        young = [chunk for chunk in self._chunks if now_ns - chunk.time_ns <= self._max_age_ns]
        if not young:
            age_ms = (now_ns - self._chunks[-1].time_ns) / NS_PER_MS
            return (
                f"expected an image of at most {self._config.max_age_s * 1e3:.0f} ms, got one of"
                f" {age_ms:.0f} ms"
            )
        rows = [(chunk, row_at(chunk, tick_ns, self._actuation_ns)) for chunk in young]
        voters = [(chunk, row) for chunk, row in rows if 0 <= row < chunk.valid_rows]
        if not voters:
            chunk, row = rows[-1]
            return f"chunk {chunk.sequence} is not due: row {row} of {chunk.valid_rows} valid ones"
        chunk, row = voters[-1]
        return Due(self._merge(voters, tick_ns), chunk, row, len(voters))

    def _merge(self, voters: list[tuple[ActionChunk, int]], tick_ns: int) -> NDArray[np.float64]:
        """What is not finite stays so, for the gate to refuse."""
        predictions = np.array([chunk.actions[row] for chunk, row in voters])
        if len(voters) == 1:
            return predictions[0]
        if self._config.mode == "ensemble":
            return blend(predictions, self._config.alpha)
        return fade(
            predictions, [self._progress(chunk, tick_ns) for chunk, _ in voters], self._gripper
        )

    def _progress(self, chunk: ActionChunk, tick_ns: int) -> float:
        """Of a chunk's taking over, above 0 and up to 1: the first command after it came already
        moves its way.
        """
        waited = (tick_ns - self._since[chunk.time_ns]) * chunk.control_hz / NS_PER_S
        return min(1.0, (waited + 1.0) / (self._config.blend_s * chunk.control_hz + 1.0))


def fade(
    predictions: NDArray[np.float64], progress: Sequence[float], gripper: Sequence[int]
) -> NDArray[np.float64]:
    """One chunk after the other takes over from those before it.

    Args:
        predictions: float64[n, D] for one moment, the newest chunk's last.
        progress: of each chunk, from 0 to 1; the first one's does not matter.
        gripper: dimensions that are the newest's alone.
    """
    action = predictions[0]
    for prediction, share in zip(predictions[1:], progress[1:], strict=True):
        action = prediction if share == 1.0 else (1.0 - share) * action + share * prediction
    faded = action.copy()
    faded[list(gripper)] = predictions[-1][list(gripper)]
    return faded
