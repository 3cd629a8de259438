"""Whether a failed call costs one image or the process: a lost device never comes back by itself.

A library's error becomes `BackendUnavailableError` where its message is about the device, else
`BackendError`; `FailureStreak` is the backstop for whatever looks like one bad call, again and
again. Knows errors and times; no backend.
"""

from __future__ import annotations

import re

from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.errors import (
    BackendError,
    BackendUnavailableError,
    ObservationError,
    PromptError,
    TrimvlaError,
)

# messages of ONNX Runtime, TensorRT and CUDA's libraries where the device, its context or its
# driver is gone
DEVICE_WORDS = re.compile(
    r"cuda (failure|error|driver)|cuda ?error|cudnn|cublas|cufft|cusolver|curand|device["
    r" _-]?(reset|removed|lost|hung)"
    r"|illegal memory access|unspecified launch failure|context is destroyed|ecc error|hip"
    r" (failure|error)",
    re.IGNORECASE,
)
NO_MEMORY = re.compile(r"out of memory|memory allocation|failed to allocate", re.IGNORECASE)
MOST_CALLS = 50  # failed calls in a row that end the process,
LONGEST_S = 10.0  # or so long with nothing else,
FEWEST_CALLS = 3  # once there were as many


def call_failure(what: str, error: Exception) -> BackendError:
    """A library's exception during a call, as one of ours.

    A lack of memory is of one call: there may be some for the next, and if there never is, the
    streak ends the process.
    """
    text = f"{what}: {str(error).strip() or type(error).__name__}"
    gone = DEVICE_WORDS.search(text) or type(error).__name__ in ("DeviceReset", "EngineError")
    return (
        BackendUnavailableError(text) if gone and not NO_MEMORY.search(text) else BackendError(text)
    )


class FailureStreak:
    """Counts a policy's failed calls since the last one that worked."""

    def __init__(self, most: int = MOST_CALLS, longest_s: float = LONGEST_S) -> None:
        self._most = most
        self._longest_ns = to_ns(longest_s)
        self._count = 0
        self._began_ns = 0

    def end(self) -> None:
        """A call has worked, or another task begins."""
        self._count = 0

    def add(self, error: TrimvlaError, now_ns: int) -> None:
        """Note why there is no chunk.

        A refused image or instruction is no failure of the backend.

        Raises BackendUnavailableError where that was the backend's end, or one failure too many.
        """
        if isinstance(error, BackendUnavailableError):
            raise error
        if isinstance(error, (ObservationError, PromptError)):
            return
        self._began_ns = self._began_ns if self._count else now_ns
        self._count += 1
        lasted_ns = now_ns - self._began_ns
        if self._count >= self._most or (
            self._count >= FEWEST_CALLS and lasted_ns >= self._longest_ns
        ):
            calls = f"{self._count} calls in {lasted_ns / NS_PER_S:.1f} s"
            raise BackendUnavailableError(
                f"expected an action chunk, got none from {calls}; the last one: {error}"
            )
