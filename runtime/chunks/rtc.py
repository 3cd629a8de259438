"""Real-time chunking: the rows of the next chunk that are fixed before the policy computes it.

Pure: chunks and times.

While the policy computes, the robot executes the chunk that it has. The rows of the new chunk that
belong to that time are frozen to the old one's; the rows after them are guided towards it,
ever less (Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies";
for the differences see docs/concepts/chunks.md). The sampler itself is `policies.diffusion`'s; here
is which rows, and how much. Both travel with the chunk, so that a replay can do the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import ActionChunk, Guidance
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.errors import ConfigError

Schedule = Literal["exponential", "linear"]


@dataclass(frozen=True)
class RtcConfig:
    """Whether and how chunks are guided by the one before."""

    enabled: bool = False
    """Needs a bundle with the stage `action_guided`: `trimvla export --guided`."""
    schedule: Schedule = "exponential"
    """How the weight falls after the frozen rows: as in the paper, or straight."""
    strength: float = 0.1
    """Of the weights after the frozen rows; 1 nearly repeats the old chunk
    (docs/concepts/chunks.md), 0 leaves them free."""
    overlap: int = 0
    """Rows that are frozen or guided at most; 0: as far as the old chunk reaches."""
    margin_s: float = 0.05
    """Added to the time that thinking is expected to take: transport, and control's
    `actuation_s`.
    """

    def __post_init__(self) -> None:
        if self.schedule not in ("exponential", "linear"):
            raise ConfigError(
                f"expected exponential or linear, got {self.schedule!r} for 'schedule'"
            )
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"expected a number from 0 to 1 for 'strength', got {self.strength}")
        if self.overlap < 0 or not 0 <= self.margin_s < math.inf:
            numbers = f"{self.overlap} and {self.margin_s}"
            raise ConfigError(f"expected at least 0 for 'overlap' and 'margin_s', got {numbers}")


def weights(
    horizon: int,
    frozen: int,
    overlap: int,
    schedule: Schedule = "exponential",
    strength: float = 1.0,
) -> NDArray[np.float32]:
    """float32[H]: 1 for the frozen rows, falling from there, 0 from row `overlap` on.

    With c = (overlap - row) / (overlap - frozen + 1) the weight is `strength` times c, or c (e^c -
    1) / (e - 1).
    """
    rows = np.arange(horizon)
    share = np.clip((overlap - rows) / max(overlap - frozen + 1, 1), 0.0, 1.0)
    falling = share if schedule == "linear" else share * np.expm1(share) / np.expm1(1.0)
    return np.where(rows < frozen, 1.0, strength * falling).astype(np.float32)


def guide(
    config: RtcConfig, old: ActionChunk | None, episode: int, time_ns: int, ready_ns: int
) -> Guidance | None:
    """How a new chunk is guided by the old one; None where nothing is known of it.

    Args:
        config: how.
        old: the chunk that is being executed.
        episode: of the new chunk.
        time_ns: of the image that it will be made from.
        ready_ns: when it is expected to be there.
    """
    if not config.enabled or old is None or old.episode != episode or time_ns < old.time_ns:
        return None
    rate = old.control_hz / NS_PER_S
    horizon = len(old.actions)
    shift = round((time_ns - old.time_ns) * rate)
    left = horizon - shift
    passing = math.floor((ready_ns + to_ns(config.margin_s) - time_ns) * rate) + 1
    frozen = min(passing, old.valid_rows - shift)
    if frozen < 1:  # the old chunk will have run out
        return None
    overlap = min(left, max(config.overlap, frozen) if config.overlap else left)
    row_weights = weights(horizon, frozen, overlap, config.schedule, config.strength)
    return Guidance(
        chunk=old.sequence, shift=shift, frozen=frozen, weights=tuple(row_weights.tolist())
    )


def known_rows(
    old: ActionChunk, guidance: Guidance
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The old chunk's actions for the new one's rows, float64[H, D] in the robot's units, and the
    weights float32[H].

    Rows that it does not reach repeat its last one; their weight is 0.
    """
    actions = np.array(old.actions, np.float64)
    rows = np.minimum(np.arange(len(actions)) + guidance.shift, len(actions) - 1)
    return actions[rows], np.array(guidance.weights, np.float32)
