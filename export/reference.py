"""Does this policy compute what the public code computed? Every stored array of a reference directory, compared.

`GROUPS` says what is compared and how closely; `reference_modules` and `reference_runtime` say how each array comes
about; the format of the directory is in docs/REFERENCE_FORMAT.md. Knows no sizes: they come from the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from trimvla.export import reference_modules as module
from trimvla.export import reference_runtime as runtime
from trimvla.export.compare import Comparison, report
from trimvla.export.reference_directory import Reference, Values, open_reference
from trimvla.runtime.errors import TrimvlaError


@dataclass(frozen=True)
class Group:
    """Arrays that are compared together.

    `keys` are shell patterns: every stored array that they match must be computed by `compute` and lie within
    `tolerance` (largest absolute difference). A `required` group must match something.
    """

    name: str
    keys: tuple[str, ...]
    tolerance: float
    compute: Callable[[Reference], Values]
    required: bool = False

    def covers(self, key: str) -> bool:
        """Whether the key belongs to this group."""
        return any(fnmatchcase(key, pattern) for pattern in self.keys)


LAYERS = ("llm/inputs_embeds", "llm/layer_outputs", "llm/final_normed")
SCHEDULE = ("diffusion/betas*", "action/*/timesteps", "action/*/alphas_cumprod*")
SIMPLER = ("simpler/*/world_vector", "simpler/*/gripper", "simpler/*/terminate_episode", "simpler/*/raw_*")

GROUPS = (
    Group("pixels", ("in/pixel_*",), 1e-6, runtime.pixels),
    Group("prompt", ("in/input_ids", "batch/input_ids"), 0.0, runtime.prompt),
    Group("vision", ("vision/*",), 5e-5, module.vision, required=True),
    Group("layers", LAYERS, 2e-4, module.layers, required=True),
    Group("cognition", ("llm/cognition_feature", "dit/z_cond"), 3e-5, module.cognition, required=True),
    Group("dit", ("dit/z_uncond", "dit/t*"), 3e-5, module.dit, required=True),
    Group("schedule", SCHEDULE, 1e-12, module.schedule),
    Group("ddim", ("action/*/x", "action/*/pred_xstart"), 3e-5, module.ddim, required=True),
    Group("normalized", ("action/normalized/*",), 3e-5, runtime.normalized),
    Group("unnormalized", ("action/unnormalized/*",), 1e-5, runtime.unnormalized),
    Group("end_to_end", ("action/normalized/ddim10_cfg1.5",), 3e-5, runtime.end_to_end),
    Group("batch", ("batch/cognition_features", "batch/normalized"), 3e-5, runtime.batch),
    Group("batch_unnormalized", ("batch/unnormalized/*",), 1e-5, runtime.batch),
    Group("ensemble", ("ensemble/h*",), 1e-9, runtime.ensemble),
    Group("simpler", SIMPLER, 1e-9, runtime.simpler),
    Group("simpler_rotation", ("simpler/*/rot_axangle",), 1e-7, runtime.simpler),
    Group("deploy", ("deploy/resized*",), 0.0, runtime.deploy),
)


def verify_reference(directory: Path | str, groups: Sequence[Group] = GROUPS) -> dict[str, Any]:
    """Compare our policy, with the directory's weights, against the arrays that the public code gave.

    Args:
        directory: a reference directory (docs/REFERENCE_FORMAT.md).
        groups: what to compare.

    Returns:
        {"ok", "compared": arrays, "failed": [{"group", "key", "reason"}], "absent": [groups without any array],
        "groups": {name: {"compared", "worst", "worst_key", "mean", "cosine", "tolerance"}}}.

    Raises:
        ConfigError, CheckpointError: the directory cannot be opened.
    """
    reference = open_reference(directory)
    return report({group.name: compare_group(group, reference) for group in groups})


@torch.no_grad()
def compare_group(group: Group, reference: Reference) -> Comparison:
    """Compare one group; what cannot be computed is a failure, not an exception."""
    comparison = Comparison(group.name, group.tolerance)
    pending = {key for key in reference.arrays if group.covers(key)}
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
