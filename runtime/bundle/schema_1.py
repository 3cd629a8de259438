"""Manifests of schema 1, read into the type of schema 2: one camera, no state, three stages,
CogACT's scaling.

Bundles of that schema run as before, bit for bit. Knows the old fields; nothing writes them any
more.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trimvla.runtime.bundle.inputs_and_output import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    PromptSpec,
)
from trimvla.runtime.bundle.manifest_types import FileSpec, Manifest, StageSpec, modes_of
from trimvla.runtime.bundle.plan import Plan

VERSION = 1
CAMERA = "image"
STAGES = ("vision", "language", "action")
OPTIONAL = ("action_guided",)


class OldImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`image` of schema 1."""

    size: int
    resize: Literal["bicubic-antialias"] = "bicubic-antialias"


class OldPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`prompt` of schema 1."""

    template: str
    bos_id: int
    suffix_ids: tuple[int, ...]
    pad_id: int
    buckets: tuple[int, ...]
    lowercase: bool = True


class OldAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`action` of schema 1."""

    horizon: int
    dim: int
    control_hz: float
    kinds: tuple[ActionKind, ...]
    statistics_key: str


class OldManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A manifest of schema 1."""

    schema_version: int
    name: str
    created_utc: str
    trimvla_version: str
    policy: dict[str, Any]
    plan: Plan = Plan()
    precision: str = "float32"
    image: OldImage
    prompt: OldPrompt
    action: OldAction
    stages: dict[str, StageSpec]
    parity: dict[str, Any] = {}
    files: dict[str, FileSpec] = {}


def upgrade(old: OldManifest) -> Manifest:
    """The same as schema 2 describes it."""
    prompt = old.prompt
    language = old.policy.get("language")
    vocabulary = language.get("vocab") if isinstance(language, dict) else None
    action = old.action
    order = (*STAGES, *OPTIONAL)
    stages = dict(sorted(old.stages.items(), key=lambda pair: _place(pair[0], order)))
    return Manifest(
        name=old.name,
        created_utc=old.created_utc,
        trimvla_version=old.trimvla_version,
        policy=old.policy,
        plan=old.plan,
        precision=old.precision,
        images=ImagesSpec(cameras=(CameraSpec(CAMERA),), size=old.image.size, tensor="image"),
        prompt=PromptSpec(
            template=prompt.template,
            bos_id=prompt.bos_id,
            suffix_ids=prompt.suffix_ids,
            pad_id=prompt.pad_id,
            buckets=prompt.buckets,
            lowercase=prompt.lowercase,
            vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        ),
        action=ActionSpec(
            action.horizon, action.dim, action.control_hz, action.kinds, action.statistics_key
        ),
        stages=stages,
        modes=modes_of(tuple(stages)),
        parity=old.parity,
        files=old.files,
    )


def old_problem(old: OldManifest) -> str | None:
    """What that schema forbids and the types allow."""
    if set(old.stages) - set(OPTIONAL) != set(STAGES):
        return (
            f"expected stages {list(STAGES)}, and perhaps {list(OPTIONAL)}, got {list(old.stages)}"
        )
    return None


def _place(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)
