"""No jump from the last command of one chunk to the first of the next.

Pure: numbers, and which chunk they are from.

At a change of chunks a command moves away from the one before by no more than a bound, dimension by
dimension; what is left of the way is caught up at the same pace. Knows no limits of the robot: the
gate has the last word (`safety.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class TransitionLimiter:
    """Follows which chunk commands come from."""

    def __init__(self, bound: Sequence[float] | Array) -> None:
        """`bound` float[D] above 0; infinite where a dimension may jump."""
        self._bound = np.array(bound, np.float64)
        self.reset()

    def reset(self) -> None:
        """Forget what was commanded: the next chunk follows none."""
        self._chunk: int | None = None
        self._behind = False

    def limit(self, action: Array, chunk: int, before: Array) -> Array:
        """The action float64[D] of a chunk (by any number of its own) after the command `before`
        float64[D].
        """
        follows = self._chunk is not None and self._chunk != chunk
        self._chunk = chunk
        if not (follows or self._behind):
            return action
        # for the gate to refuse: a step towards infinity would look like any other
        if not np.isfinite(action).all():
            self._behind = True
            return action
        eased = np.clip(action, before - self._bound, before + self._bound)
        self._behind = not np.array_equal(eased, action)
        return eased
