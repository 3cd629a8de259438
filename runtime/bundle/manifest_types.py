"""The types of a bundle's manifest: what stands in it, field by field. Knows no file and checks
nothing.

Schema 2. A manifest of schema 1 is read into the same type (`schema_1`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from trimvla.runtime.bundle.inputs_and_output import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    FlowSpec,
    ImagesSpec,
    InputsAndOutput,
    PromptSpec,
    StateSpec,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import BundleError
from trimvla.runtime.specs import ArraySpec

__all__ = [
    "ActionKind",
    "ActionSpec",
    "CameraSpec",
    "FileSpec",
    "FlowSpec",
    "HeadRecovery",
    "ImagesSpec",
    "InputsAndOutput",
    "Manifest",
    "PatchSpec",
    "PromptSpec",
    "Recovery",
    "StageSpec",
    "StateSpec",
    "TensorSpec",
]

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
STATISTICS = "statistics.json"
PLAIN = "plain"
GUIDED = "guided"
GUIDED_SUFFIX = "_guided"
"""Of the name of a stage that takes rows that are known: `action_guided` stands in for `action`."""


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
        names = [s.name for s in self.inputs]
        raise BundleError(f"stage '{self.file}': expected a tensor '{name}', got {names}")


class FileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's content."""

    sha256: str
    bytes: int


class HeadRecovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How guidance was distilled into the action head.

    Losses are the mean smooth L1 distance of the head's noise prediction, at the steps and with the
    cache of its plan, from that of the dense head with guidance; each step counts by the square of
    how far it moves the actions.
    """

    noises: int
    """Sampler trajectories of the dense policy for each instruction of an image."""
    learning_rate: float
    """Of the optimiser, at its highest."""
    loss_before: float
    """Mean loss on the held-out images with the dense head, its guidance turned off."""
    loss_after: float
    """The same with the recovered head, as it is stored."""
    p90_before: float
    """The loss that 9 of 10 held-out trajectories stay below, with the dense head."""
    p90_after: float
    """The same with the recovered head."""


class Recovery(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What weights were recovered for, and how; in the metadata of a patch.

    A plan has which slices of the dense weights are kept; weights that were trained afterwards are
    no slices, so they lie in a file of their own, the patch.
    """

    policy: str
    """Fingerprint of the config of the dense policy."""
    weights: str
    """sha256 of the dense policy's weights, by value (`patch.weights_digest`)."""
    plan: str
    """sha256 of the plan that they belong to (`plan.plan_digest`)."""
    method: str
    """How they were trained."""
    parts: tuple[str, ...]
    """What was trained: language, vision, head."""
    source: str
    """Where the frames came from: an environment's name, or the file's."""
    frames: int
    """Images that were trained on."""
    own: int
    """Of these, reached by the trimmed policy itself."""
    held_out: int
    """Further images, of other episodes where that is known, that the losses are measured on."""
    sentences: int
    """Instructions an image."""
    steps: int
    """Optimiser steps."""
    pictures: int
    """Images a step."""
    learning_rate: float
    """Of the optimiser, at its highest, for all but the head."""
    seed: int
    """Of everything that was drawn."""
    loss_before: float
    """Mean loss on the held-out images under the plan alone."""
    loss_after: float
    """The same with the recovered weights, as they are stored."""
    p90_before: float
    """The loss that 9 of 10 held-out instructions stay below, under the plan alone."""
    p90_after: float
    """The same with the recovered weights."""
    minutes: float
    """That the steps took [min]; frames and teacher are not counted."""
    created_utc: str
    """Time stamp."""
    head: HeadRecovery | None = None
    """Where the head was trained. The losses above are of the cognition feature."""


class PatchSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The patch that a bundle was exported with."""

    sha256: str
    """Of the file."""
    recovery: Recovery
    """What it records of itself."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that a runtime must know to run a bundle.

    `files` covers every file but the manifest itself.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    created_utc: str
    trimvla_version: str
    family: str = "cogact"
    """Whose table row exported it (`policies.families`); a runtime does not ask."""
    policy: dict[str, Any]
    """The family's config."""
    plan: Plan = Plan()
    patch: PatchSpec | None = None
    """The recovered weights that its graphs hold beside the plan's slices; a manifest without any
    has no such field.
    """
    precision: str = "float32"
    images: ImagesSpec
    prompt: PromptSpec | None = None
    """None where the policy reads no instruction: it has no tokenizer then."""
    state: StateSpec | None = None
    """None where the policy reads no state."""
    flow: FlowSpec | None = None
    """None where the sampler is no flow."""
    action: ActionSpec
    stages: dict[str, StageSpec]
    """In the order in which they run."""
    modes: dict[str, tuple[str, ...]]
    """Which stages one call runs: `plain`, and where the bundle has it `guided`, with rows that
    are known.
    """
    parity: dict[str, Any] = {}
    files: dict[str, FileSpec] = {}

    @property
    def described(self) -> InputsAndOutput:
        """The policy's inputs and output, in the form that an export takes."""
        return InputsAndOutput(
            images=self.images,
            prompt=self.prompt,
            state=self.state,
            flow=self.flow,
            action=self.action,
        )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths of the prompt; none for a policy that reads no instruction."""
        return () if self.prompt is None else self.prompt.buckets

    @property
    def texts(self) -> tuple[str, ...]:
        """Files beside the stages' own that the runtime reads."""
        return (STATISTICS,) if self.prompt is None else (STATISTICS, TOKENIZER)

    def mode(self, guided: bool) -> tuple[str, ...]:
        """The stages of one call. BundleError where the bundle cannot be guided."""
        name = GUIDED if guided else PLAIN
        if name not in self.modes:
            raise BundleError(
                f"bundle '{self.name}': expected the mode '{GUIDED}': export it with --guided"
            )
        return self.modes[name]

    def opened(self, guided: bool) -> tuple[str, ...]:
        """The stages that are opened for plain calls and, where asked for, guided ones; in their
        order.
        """
        wanted = {*self.mode(guided=False), *(self.mode(guided=True) if guided else ())}
        return tuple(name for name in self.stages if name in wanted)


def modes_of(stages: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Modes by the names of a policy's stages, in their order: "<name>_guided" stands in for
    "<name>".
    """
    guided = {
        name.removesuffix(GUIDED_SUFFIX): name for name in stages if name.endswith(GUIDED_SUFFIX)
    }
    plain = tuple(name for name in stages if not name.endswith(GUIDED_SUFFIX))
    if not guided:
        return {PLAIN: plain}
    return {PLAIN: plain, GUIDED: tuple(guided.get(name, name) for name in plain)}
