"""What drives an episode: anything that turns a picture and a sentence into actions.

Knows no policy.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.inference.policy import Known

EXPERT = "expert"  # in an actor's place: the scripted expert of the task itself
ROWS = 16  # of a chunk, where an actor has no manifest that says them
KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)  # of our own tasks


class Chunk(Protocol):
    """The part of a policy's result that an episode needs: `actions` float[H, A], un-normalised."""

    @property
    def actions(self) -> np.ndarray:
        """float[H, A]."""
        ...


class Actor(Protocol):
    """What drives an episode; `runtime.policy.Policy` is one."""

    def infer(
        self, image: np.ndarray, instruction: str, *, noise: np.ndarray, known: Known | None = None
    ) -> Chunk:
        """uint8[h, w, 3], a sentence, float32[H, A] noise, and what guides -> the next actions."""
        ...


def noise_shape(actor: Actor, dim: int = len(KINDS)) -> tuple[int, int]:
    """Rows and dimensions of the noise that an actor takes: its bundle's, if it has one."""
    manifest = getattr(actor, "manifest", None)
    return (ROWS, dim) if manifest is None else (manifest.action.horizon, manifest.action.dim)
