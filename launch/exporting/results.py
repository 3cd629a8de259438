"""What `trimvla export` and `trimvla trim` answer. Knows types alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.export.parity import Parity
from trimvla.launch.result import VerbResult
from trimvla.policies.sizes.cost_report import Ratios
from trimvla.runtime.bundle.manifest import Manifest


class ExportResult(VerbResult, frozen=True, kw_only=True):
    """A bundle that was made."""

    bundle: Path
    """Its directory."""
    parity: Parity
    """The proof that it computes what torch computes."""
    bytes: int
    """Of all its files [bytes]."""


class StreamedResult(ExportResult, frozen=True, kw_only=True):
    """A bundle of a policy that is larger than memory."""

    dtype: str
    """Precision of its graphs."""
    stage_bytes: dict[str, int]
    """Stage -> its weights [bytes]."""
    seconds: float
    """Of the whole export [s]."""
    peak_bytes: int
    """Most memory that the process held [bytes]; mapped files are counted."""
    peak_over_largest_stage: float
    """That over the largest stage's weights."""


class TrimResult(VerbResult, frozen=True, kw_only=True):
    """A plan that was made."""

    plan: Path
    """Its file."""
    picture: Path
    """Worth of the layers, and kept tokens."""
    kept_layers: tuple[int, ...] | None
    """Language layers that stay; none: all of them."""
    scores: list[float]
    """Worth of every language layer."""
    ratio_to_dense: Ratios
    """What is left of the dense policy."""


def parity_of(manifest: Manifest) -> Parity:
    """A bundle's proof."""
    return msgspec.convert(manifest.parity, Parity)
