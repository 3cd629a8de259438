"""What `trimvla recover` answers. Knows types alone."""

from __future__ import annotations

from pathlib import Path

from trimvla.launch.result import VerbResult
from trimvla.runtime.bundle.manifest_types import Recovery


class RecoverResult(VerbResult, frozen=True, kw_only=True):
    """A patch that was made."""

    patch: Path
    """Its file."""
    sha256: str
    """Of the file."""
    bytes: int
    """Of the file [bytes]."""
    recovery: Recovery
    """What the patch records of itself."""
    resumed_at: int
    """The step that this call began with; 0 where it did all of them."""
    steps_from: str
    """What decided how many steps there are: `--steps`, or `--minutes` and the pace of this machine
    when the run began; with that number as `--steps` the run can be made again."""
