"""What `trimvla inspect` answers. Knows types alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.runtime.bundle.manifest import PatchSpec


class KeptOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which visual tokens were kept."""

    kept: list[int]
    """Their places in raster order."""
    of: int
    """How many there were."""


class RunOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which language layers ran."""

    run: list[int]
    """Their numbers in the dense policy."""
    of: int
    """How many the dense policy has."""


class ComputedOf(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At which sampler steps the head's blocks ran."""

    computed: list[int]
    """The steps' numbers."""
    of: int
    """How many steps there were."""
    guidance: float | Literal["distilled"] | None = None
    """The plan's guidance; left out where it has none of its own."""


class InspectResult(VerbResult, frozen=True, kw_only=True):
    """One policy call, opened up."""

    bundle: str
    """The bundle's name."""
    instruction: str
    """What the robot was to do."""
    seed: list[int]
    """Of the noise."""
    chunk: int | None
    """The recorded chunk's sequence number; none without a recording."""
    frame: int | None
    """The recorded image's sequence number; none without a recording."""
    same_as_recorded: bool | None
    """Whether the actions are those that were recorded; none without a recording."""
    tokens: KeptOf
    """Visual tokens."""
    layers: RunOf
    """Language layers."""
    steps: ComputedOf
    """Sampler steps."""
    milliseconds: dict[str, float]
    """Part of the call -> what it took [ms]."""
    runs: dict[str, dict[str, str]]
    """Stage -> what ran it."""
    picture: Path
    """The picture that was drawn."""
    rerun: Path | None = None
    """The Rerun recording, with --rerun."""
    patch: PatchSpec | None = None
    """The recovered weights that the bundle was exported with; left out where it has none."""
