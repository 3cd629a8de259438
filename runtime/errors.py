"""The errors that users meet, as one tree; every message names the field, what was expected and
what came.

TrimvlaError
|- ConfigError          a configuration, preset or option
|- BundleError          a bundle: missing file, wrong hash, unknown schema version
|- CheckpointError      a checkpoint: missing or unexpected key, wrong shape
|- SpecError            an array: wrong dtype or shape
|- PromptError          an instruction: empty, or longer than the largest bucket
|- ObservationError     what the policy would look at
|  `- StaleError        it is older than its budget
|     |- SkewError      its images are of different moments
|     `- FrozenError    its images are new, what they show is not
|- BackendError         a backend or provider that was asked for and is not given, or a call of it
that failed
|  `- BackendUnavailableError   no later call can work either: a lost device; who owns the backend
ends
|- ImageError           an image that cannot become 8-bit RGB: floats, several frames, cut off, too
large
|- CameraError          a camera that does not start or stops
|- DriverError          a robot that cannot be reached, or no longer answers
|- WireError            bytes that are no message
|- BusyError            a client asks for more than its share, or everybody does
`- RecordingError       a recording that cannot be written, or read
"""

from __future__ import annotations


class TrimvlaError(Exception):
    """Root of all errors that trimvla raises on purpose.

    Example:
        >>> from trimvla.runtime import Policy, TrimvlaError
        >>> try:
        ...     Policy.load("no-such-bundle")
        ... except TrimvlaError as error:
        ...     type(error).__name__
        'BundleError'
    """


class ConfigError(TrimvlaError):
    """A configuration, preset or option is wrong."""


class BundleError(TrimvlaError):
    """A bundle is incomplete, damaged or of another schema."""


class CheckpointError(TrimvlaError):
    """A checkpoint does not fit the policy."""


class SpecError(TrimvlaError):
    """An array has another dtype or shape than its spec."""


class PromptError(TrimvlaError):
    """An instruction cannot become a prompt."""


class ObservationError(TrimvlaError):
    """The policy must not act on this observation."""


class StaleError(ObservationError):
    """The observation is older than its budget."""


class SkewError(StaleError):
    """The images of one observation were taken too far apart."""


class FrozenError(StaleError):
    """A camera goes on sending the same image, first captured at `since_ns`."""

    def __init__(self, words: str, since_ns: int) -> None:
        super().__init__(words)
        self.since_ns = since_ns


class BackendError(TrimvlaError):
    """A backend or provider was asked for and is not given, or a call of it failed."""


class BackendUnavailableError(BackendError):
    """No later call of this backend can work either, such as after a lost CUDA context: its process
    ends.
    """


class ImageError(TrimvlaError):
    """An image that cannot become RGB uint8[h, w, 3]."""


class CameraError(TrimvlaError):
    """A camera does not start, or stopped."""


class DriverError(TrimvlaError):
    """A robot cannot be reached, or no longer answers its driver."""


class WireError(TrimvlaError):
    """Bytes that are no message."""


class BusyError(TrimvlaError):
    """A server that has no room for this now."""


class RecordingError(TrimvlaError):
    """A recording cannot be written, or is none."""
