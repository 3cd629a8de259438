"""CogACT's adaptive action ensemble: the newest chunks vote on the action that is due.

Each kept chunk contributes its own prediction for this moment; weights grow with the likeness to
the newest one: w_i = exp(alpha cos(newest, i)), normalised. Source: microsoft/CogACT. Knows steps,
not time.
"""

from __future__ import annotations

from collections import deque

import numpy as np

ALPHA = 0.1
HORIZONS = {"google_robot": 2, "widowx_bridge": 7}  # chunks that vote, by SIMPLER policy set-up


def blend(predictions: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Weighted mean of predictions for one moment.

    Args:
        predictions: float[n, A], the newest last.
        alpha: how much likeness to the newest counts.

    Returns:
        float64[A].
    """
    predictions = np.asarray(predictions, np.float64)
    newest = predictions[-1]
    norms = np.linalg.norm(predictions, axis=1) * np.linalg.norm(newest) + 1e-7
    weights = np.exp(alpha * (predictions @ newest) / norms)
    return (weights / weights.sum()) @ predictions


class AdaptiveEnsemble:
    """One chunk in per step, one action out. Reset it between episodes."""

    def __init__(self, horizon: int, alpha: float = ALPHA) -> None:
        """`horizon` chunks vote, each at most that many steps old."""
        self._alpha = alpha
        self._chunks: deque[np.ndarray] = deque(maxlen=horizon)

    def reset(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()

    def step(self, chunk: np.ndarray) -> np.ndarray:
        """Take the chunk float[H, A] that starts at this step; the blended action float64[A] for
        this step.
        """
        self._chunks.append(np.asarray(chunk, np.float64))
        ages = range(len(self._chunks) - 1, -1, -1)
        return blend(
            np.stack([chunk[age] for chunk, age in zip(self._chunks, ages, strict=True)]),
            self._alpha,
        )
