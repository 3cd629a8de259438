"""Sizes and a plan of what a person names: a preset, a bundle, a run folder or a checkpoint's
folder.

Reads configs and headers, never a weight. Torch is imported for folders alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimvla.policies.families import family_of, find_preset, parse_config
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, load_plan
from trimvla.runtime.errors import ConfigError

FIRST_PRESET = "cogact-base"


@dataclass(frozen=True)
class Named:
    """What a person names of a policy."""

    source: Path | None = None
    """A bundle (by path or by a shipped one's name), a run folder, a checkpoint's folder, or a
    plan's file.
    """
    plan: Path | None = None
    preset: str | None = None
    statistics_key: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Sized:
    """A policy's sizes, and a plan for it."""

    cfg: Any
    """The family's config."""
    plan: Plan | None
    """Checked against the config; None where none is named and none comes with the source."""
    named: bool = False
    """Whether a person has named the plan."""


def find_sizes(named: Named) -> Sized:
    """The sizes and the plan.

    Raises:
        ConfigError: two plans, a plan that does not fit, or what `open_source` raises.
    """
    source = named.source
    if source is not None and (source.is_file() or source.suffix == ".json"):
        if named.plan is not None:
            raise ConfigError(f"expected one plan, got {source} and --plan {named.plan}")
        named = Named(None, source, named.preset, named.statistics_key, named.checkpoint)
        source = None
    sized = _of_preset(named) if source is None else _of_source(source, named)
    if named.plan is None:
        return sized
    plan = load_plan(named.plan)
    family_of(sized.cfg).check_plan(plan, sized.cfg)
    return Sized(sized.cfg, plan, named=True)


def _of_preset(named: Named) -> Sized:
    _check_absent("a checkpoint's folder", named, "statistics_key", "checkpoint")
    return Sized(find_preset(named.preset or FIRST_PRESET), None)


def _of_source(source: Path, named: Named) -> Sized:
    found = source if source.is_dir() else bundles.resolve(str(source))
    if (found / bundles.MANIFEST).exists():
        _check_absent("a checkpoint's folder", named, "preset", "statistics_key", "checkpoint")
        manifest = bundles.load(found, verify_hashes=False)
        plan = None if manifest.plan.dense else manifest.plan
        return Sized(parse_config(manifest.policy), plan)
    from trimvla.launch.exporting.policy_source import WEIGHTS, is_official, open_source
    from trimvla.policies.own_file import open_own

    if is_official(found):
        opened = open_source(
            found,
            preset=named.preset,
            checkpoint=named.checkpoint,
            statistics_key=named.statistics_key,
        )
        return Sized(opened.cfg, None)
    _check_absent("a checkpoint's folder", named, "preset", "statistics_key", "checkpoint")
    return Sized(open_own(found / WEIGHTS)[0], None)


def _check_absent(place: str, named: Named, *names: str) -> None:
    """ConfigError where an option is given that this kind of source has no use for."""
    for name in names:
        value = getattr(named, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"expected {option} with {place} only, got {value!r}")
