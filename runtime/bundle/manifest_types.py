"""The types of a bundle's manifest: what stands in it, field by field.

Knows no file and checks nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import BundleError
from trimvla.runtime.specs import ArraySpec

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
STATISTICS = "statistics.json"
STAGES = ("vision", "language", "action")
GUIDED = "action_guided"
GUIDED_STAGES = ("vision", "language", GUIDED)  # one call, where known rows guide it
OPTIONAL_STAGES = (GUIDED,)

ActionKind = Literal["delta", "absolute", "velocity", "gripper"]
"""What one action dimension means to the robot; it decides what a hold is (`fallback.py`)."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a stage; a symbolic axis is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def array(self) -> ArraySpec:
        """The check for arrays that come in or go out under this name."""
        return ArraySpec(self.name, self.dtype, self.shape)


class StageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One exported graph: its file and what crosses its border, in the graph's order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def tensor(self, name: str) -> TensorSpec:
        """The input or output called `name`; BundleError if there is none."""
        for spec in (*self.inputs, *self.outputs):
            if spec.name == name:
                return spec
        raise BundleError(
            f"stage '{self.file}': expected a tensor '{name}', got {[s.name for s in self.inputs]}"
        )


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the vision stage's input: resized straight to `size` x `size`, no
    crop.
    """

    size: int
    resize: Literal["bicubic-antialias"] = "bicubic-antialias"


class PromptSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an instruction becomes token ids: BOS, template, suffix, padding up to the next bucket
    length.
    """

    template: str
    bos_id: int
    suffix_ids: tuple[int, ...]
    pad_id: int
    buckets: tuple[int, ...]
    lowercase: bool = True


class ActionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The action chunk: `horizon` rows of `dim` numbers at `control_hz`, un-normalised with one
    key's statistics.
    """

    horizon: int
    dim: int
    control_hz: float
    kinds: tuple[ActionKind, ...]
    statistics_key: str


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's content."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that a runtime must know to run a bundle.

    `files` covers every file but the manifest itself.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    created_utc: str
    trimvla_version: str
    policy: dict[str, Any]
    plan: Plan = Plan()
    precision: str = "float32"
    image: ImageSpec
    prompt: PromptSpec
    action: ActionSpec
    stages: dict[str, StageSpec]
    parity: dict[str, Any] = {}
    files: dict[str, FileSpec] = {}
