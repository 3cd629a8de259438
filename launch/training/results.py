"""The result of `trimvla train`, and what a run's `recipe.json` holds. Knows types alone."""

from __future__ import annotations

from pathlib import Path

import msgspec


class RunData(msgspec.Struct, frozen=True, kw_only=True):
    """The demonstrations of a run."""

    shards: int
    """Files of demonstrations by the expert."""
    tasks: tuple[str, ...]
    """Of these tasks only; empty: of all."""
    corrections: int
    """Further files, in which the policy drove and the expert labelled."""
    episodes_per_shard: int
    """In each file."""
    first_seed: int
    """Of the first episode; the others follow."""
    frames: int
    """Images in all."""


class RunDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to train a policy again."""

    preset: str
    """What was trained."""
    policy: dict[str, object]
    """Its sizes."""
    recipe: dict[str, object]
    """Everything else that shapes the result."""
    weights: dict[str, str] | None
    """Name and sha256 of the weights that it began with; none: random ones."""
    data: RunData
    """The demonstrations."""
    steps: int
    """Optimiser steps that were done."""
    seconds: float
    """That they took [s]."""


class TrainResult(RunDescription, frozen=True, kw_only=True):
    """A trained policy."""

    ok: bool
    """Always true."""
    file: Path
    """Its weights."""
    curve: Path
    """Picture of its losses."""
