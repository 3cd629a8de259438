"""Does this policy compute what the public code computed?

Every stored array of a reference directory, compared.

`GROUPS` says what is compared and how closely; `reference_modules`, `reference_runtime` and, for
trimmed policies, `reference_trimmed` say how each array comes about. The format of the directory is
in docs/reference/reference-format.md. Knows no sizes: they come from the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import torch

from trimvla.export.compare import Comparison, report
from trimvla.export.parity import Parity
from trimvla.export.reference import modules as module
from trimvla.export.reference import runtime, trimmed
from trimvla.export.reference.directory import Reference, Values, open_reference
from trimvla.export.reference.planned_stages import ExportedStages
from trimvla.export.reference.trimmed import left_out_when_exported
from trimvla.runtime.errors import TrimvlaError


@dataclass(frozen=True)
class Group:
    """Arrays that are compared together.

    `keys` are shell patterns: every stored array that they match must be computed by `compute` and
    lie within `tolerance` (largest absolute difference). A `required` group must match something.
    """

    name: str
    keys: tuple[str, ...]
    tolerance: float
    compute: Callable[[Reference], Values]
    required: bool = False
    # computed by the stages of a bundle, so that exported graphs can take torch's place
    staged: bool = False

    def covers(self, key: str) -> bool:
        """Whether the key belongs to this group."""
        return any(fnmatchcase(key, pattern) for pattern in self.keys)


LAYERS = ("llm/inputs_embeds", "llm/layer_outputs", "llm/final_normed")
SCHEDULE = ("diffusion/betas*", "action/*/timesteps", "action/*/alphas_cumprod*")
SIMPLER = (
    "simpler/*/world_vector",
    "simpler/*/gripper",
    "simpler/*/terminate_episode",
    "simpler/*/raw_*",
)
EVLA_SCORES = ("evla/*/probs", "evla/*/relevance", "evla/*/score01", "evla/*/diversity")

GROUPS = (
    Group("pixels", ("in/pixel_*",), 1e-6, runtime.pixels),
    Group("prompt", ("in/input_ids", "batch/input_ids"), 0.0, runtime.prompt),
    Group("vision", ("vision/*",), 5e-5, module.vision, required=True),
    Group("layers", LAYERS, 2e-4, module.layers, required=True),
    Group(
        "cognition", ("llm/cognition_feature", "dit/z_cond"), 3e-5, module.cognition, required=True
    ),
    Group("dit", ("dit/z_uncond", "dit/t*"), 3e-5, module.dit, required=True),
    Group("schedule", SCHEDULE, 1e-12, module.schedule),
    Group("ddim", ("action/*/x", "action/*/pred_xstart"), 3e-5, module.ddim, required=True),
    Group("normalized", ("action/normalized/*",), 3e-5, runtime.normalized),
    Group("unnormalized", ("action/unnormalized/*",), 1e-5, runtime.unnormalized),
    Group(
        "end_to_end", ("action/normalized/ddim10_cfg1.5",), 3e-5, runtime.end_to_end, staged=True
    ),
    Group("batch", ("batch/cognition_features", "batch/normalized"), 3e-5, runtime.batch),
    Group("batch_unnormalized", ("batch/unnormalized/*",), 1e-5, runtime.batch),
    Group("ensemble", ("ensemble/h*",), 1e-9, runtime.ensemble),
    Group("simpler", SIMPLER, 1e-9, runtime.simpler),
    Group("simpler_rotation", ("simpler/*/rot_axangle",), 1e-7, runtime.simpler),
    Group("deploy", ("deploy/resized*",), 0.0, runtime.deploy),
    Group("bi_inputs", ("bi/sample*/inputs_embeds",), 5e-5, trimmed.calibration_inputs),
    Group("bi", ("bi/scores", "bi/mean_cos_per_sample"), 1e-5, trimmed.influence),
    Group("bi_order", ("bi/order_ascending",), 0.0, trimmed.influence),
    Group(
        "layerdrop", ("layerdrop/*/cognition_feature",), 3e-5, trimmed.dropped_layers, staged=True
    ),
    Group("layerdrop_kept", ("layerdrop/*/kept_layers",), 0.0, trimmed.dropped_layers),
    Group("evla_scores", EVLA_SCORES, 2e-5, trimmed.token_scores),
    Group("evla_hidden", ("evla/hidden_after_layer2",), 2e-4, trimmed.token_scores),
    Group("evla_ranks", ("evla/*/key", "evla/*/task", "evla/*/div"), 0.0, trimmed.token_ranks),
    Group("evla_kept", ("evla/*/kept",), 0.0, trimmed.kept_tokens, staged=True),
    Group(
        "evla",
        ("evla/*/cognition_feature", "evla/*_final_sample"),
        3e-5,
        trimmed.token_features,
        staged=True,
    ),
    Group("cache", ("cache/*/x", "cache/*/normalized"), 3e-5, trimmed.cache, staged=True),
    Group("cache_steps", ("cache/*/recomputed_steps",), 0.0, trimmed.cache),
    Group("cache_unnormalized", ("cache/*/unnormalized/*",), 1e-5, trimmed.cache_units),
)


def verify_reference(
    directory: Path | str,
    groups: Sequence[Group] = GROUPS,
    through: Literal["torch", "onnx"] = "torch",
    *,
    every_plan: bool = False,
) -> Parity:
    """Compare our policy, with the directory's weights, against the stored arrays.

    Args:
        directory: a reference directory (docs/reference/reference-format.md).
        groups: what to compare.
        through: "onnx" exports the stages and runs them in ONNX Runtime, for the groups that are
            `staged`; the others look inside the modules and always run in torch.
        every_plan: export every plan that the arrays name; else those that `left_out_when_exported`
            leaves.

    Returns:
        {"ok", "compared": arrays, "failed": [{"group", "key", "reason"}], "absent": [groups without
        any array], "groups": {name: {"compared", "worst", "worst_key", "mean", "cosine",
        "tolerance", "through"}}}.

    Raises:
        ConfigError, CheckpointError: the directory cannot be opened.
    """
    reference = open_reference(directory)
    with TemporaryDirectory() as graphs:
        staged = exported(reference, Path(graphs), every_plan) if through == "onnx" else reference
        rows = {
            group.name: compare_group(group, staged if group.staged else reference)
            for group in groups
        }
    result = report(rows)
    backends = {
        group.name: (staged if group.staged else reference).stages.backend for group in groups
    }
    found = {
        name: msgspec.structs.replace(row, through=backends[name])
        for name, row in result.groups.items()
    }
    return msgspec.structs.replace(result, groups=found)


def exported(reference: Reference, directory: Path, every_plan: bool) -> Reference:
    """The same reference with its stages exported into the directory."""
    left_out = () if every_plan else left_out_when_exported(list(reference.arrays))
    return replace(
        reference, stages=ExportedStages(reference.policy, directory), left_out=frozenset(left_out)
    )


@torch.no_grad()
def compare_group(group: Group, reference: Reference) -> Comparison:
    """Compare one group; what cannot be computed is a failure, not an exception."""
    comparison = Comparison(group.name, group.tolerance)
    pending = {key for key in reference.keys if group.covers(key)}
    if not pending:
        if group.required:
            comparison.fail(None, f"expected arrays named {', '.join(group.keys)}, got none")
        return comparison
    try:
        for key, value in group.compute(reference):
            if key in pending:
                pending.discard(key)
                comparison.add(key, reference.array(key), value)
    except TrimvlaError as error:
        comparison.fail(None, str(error))
    for key in sorted(pending):
        comparison.fail(key, "expected to be compared, but nothing computes it")
    return comparison
