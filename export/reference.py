"""Does this policy compute what the public code computed? Every stored array of a reference directory, compared.

`GROUPS` says what is compared and how closely; `reference_arrays` says how each array comes about; the format of the
directory is in docs/REFERENCE_FORMAT.md. Knows no sizes: they come from the directory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimvla.export import reference_arrays as part
from trimvla.export.reference_arrays import Reference, Value, Values, open_reference
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


GROUPS = (
    Group("vision", ("vision/*",), 5e-5, part.vision, required=True),
    Group("layers", ("llm/inputs_embeds", "llm/layer_outputs", "llm/final_normed"), 2e-4, part.layers, required=True),
    Group("cognition", ("llm/cognition_feature", "dit/z_cond"), 3e-5, part.cognition, required=True),
    Group("dit", ("dit/z_uncond", "dit/t*"), 3e-5, part.dit, required=True),
    Group("schedule", ("diffusion/betas*", "action/*/timesteps", "action/*/alphas_cumprod*"), 1e-12, part.schedule),
    Group("ddim", ("action/*/x", "action/*/pred_xstart"), 3e-5, part.ddim, required=True),
)


@dataclass
class GroupResult:
    """What came of one group; `worst` is the largest absolute difference, at `worst_key`."""

    tolerance: float
    compared: int = 0
    worst: float = 0.0
    worst_key: str | None = None
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, group: str, key: str, expected: np.ndarray, got: Value) -> None:
        """Compare one array."""
        self.compared += 1
        value = got.detach().cpu().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
        if value.shape != expected.shape:
            self.fail(group, key, f"expected shape {list(expected.shape)}, got {list(value.shape)}")
            return
        worst = max_abs_difference(expected, value)
        if self.worst_key is None or not worst <= self.worst:
            self.worst, self.worst_key = worst, key
        if not worst <= self.tolerance:
            self.fail(group, key, f"expected a difference of at most {self.tolerance:g}, got {worst:g}")

    def fail(self, group: str, key: str | None, reason: str) -> None:
        """Note a failure."""
        self.failed.append({"group": group, "key": key, "reason": reason})

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "compared": self.compared,
            "worst": self.worst,
            "worst_key": self.worst_key,
            "tolerance": self.tolerance,
        }


def max_abs_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Largest absolute difference in float64; the largest float where one of the two is not a number."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    worst = float(np.abs(a - b).max(initial=0.0))
    return worst if math.isfinite(worst) else sys.float_info.max


def verify_reference(directory: Path | str, groups: Sequence[Group] = GROUPS) -> dict[str, Any]:
    """Compare our policy, with the directory's weights, against the arrays that the public code gave.

    Args:
        directory: a reference directory (docs/REFERENCE_FORMAT.md).
        groups: what to compare.

    Returns:
        {"ok", "compared": arrays, "failed": [{"group", "key", "reason"}], "absent": [groups without any array],
        "groups": {name: {"compared", "worst", "worst_key", "tolerance"}}}.

    Raises:
        ConfigError, CheckpointError: the directory cannot be opened.
    """
    reference = open_reference(directory)
    results = {group.name: run_group(group, reference) for group in groups}
    failed = [failure for result in results.values() for failure in result.failed]
    present = {name: result for name, result in results.items() if result.compared}
    return {
        "ok": not failed,
        "compared": sum(result.compared for result in present.values()),
        "failed": failed,
        "absent": [name for name in results if name not in present],
        "groups": {name: result.summary() for name, result in present.items()},
    }


@torch.no_grad()
def run_group(group: Group, reference: Reference) -> GroupResult:
    """Compare one group; what cannot be computed is a failure, not an exception."""
    result = GroupResult(group.tolerance)
    pending = {key for key in reference.arrays if group.covers(key)}
    if not pending:
        if group.required:
            result.fail(group.name, None, f"expected arrays named {', '.join(group.keys)}, got none")
        return result
    try:
        for key, value in group.compute(reference):
            if key in pending:
                pending.discard(key)
                result.add(group.name, key, reference.array(key), value)
    except TrimvlaError as error:
        result.fail(group.name, None, str(error))
    for key in sorted(pending):
        result.fail(group.name, key, "expected to be compared, but nothing computes it")
    return result
