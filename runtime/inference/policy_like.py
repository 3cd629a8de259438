"""What acts on observations, as everybody sees it who does not care how: one protocol, for a
bundle's policy, torch
behind the same stages, and the dummies of tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trimvla.runtime.preprocess.observation import Observation


@dataclass(frozen=True)
class Known:
    """What guides a chunk: `actions` float64[H, A] in the robot's units, `weights` float32[H]
    from 0 to 1.
    """

    actions: np.ndarray
    weights: np.ndarray


class Chunk(Protocol):
    """The part of a policy's result that travels."""

    @property
    def actions(self) -> np.ndarray:
        """float[H, D], un-normalised."""
        ...

    @property
    def milliseconds(self) -> dict[str, float]:
        """Time by part, and `total`."""
        ...


class PolicyLike(Protocol):
    """What acts; `inference.policy.Policy` is one."""

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Chunk:
        """The next actions, guided towards `known` where there is one.

        `noise`: float32[H, A], standard normal; where there is none it is drawn from `seed`.
        """
        ...
