"""Does this policy compute what the public code computed? Every stored array of a reference
directory, compared.

Each family defines how its directories are opened and what is compared how closely
(`groups.ReferenceFamily`, named in its row of the table); which family a directory is of stands in
its architecture.json. The format of the directory is in docs/reference/reference-format.md. Knows
no sizes: they come from the directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import torch

from trimvla.export.compare import Comparison, report
from trimvla.export.parity import Parity
from trimvla.export.reference.architecture import read_architecture
from trimvla.export.reference.groups import Group, ReferenceFamily, StoredArrays
from trimvla.policies.families import FIRST, load, recognise_reference
from trimvla.runtime.errors import ConfigError, TrimvlaError


def reference_family(directory: Path) -> ReferenceFamily:
    """How the directory is opened and what of it is compared.

    ConfigError where its family is not known.
    """
    name = read_architecture(directory).get("family", FIRST)
    if not isinstance(name, str):
        raise ConfigError(
            f"architecture.json: expected text for 'family', got {type(name).__name__}"
        )
    found = load(recognise_reference(name).reference)
    if not isinstance(found, ReferenceFamily):
        raise ConfigError(f"expected a ReferenceFamily for '{name}', got {type(found).__name__}")
    return found


def verify_reference(
    directory: Path | str,
    groups: Sequence[Group] | None = None,
    through: Literal["torch", "onnx"] = "torch",
    *,
    every_plan: bool = False,
) -> Parity:
    """Compare our policy, with the directory's weights, against the stored arrays.

    Args:
        directory: a reference directory (docs/reference/reference-format.md).
        groups: what to compare; all of the family's when left out.
        through: "onnx" exports the stages and runs them in ONNX Runtime, for the groups that are
            `staged`; the
            others look inside the modules and always run in torch.
        every_plan: export every plan that the arrays name; else those that `left_out_when_exported`
            leaves.

    Returns:
        {"ok", "compared": arrays, "failed": [{"group", "key", "reason"}], "absent": [groups without
        any array], "groups": {name: {"compared", "worst", "worst_key", "mean", "cosine",
        "tolerance", "through"}}}.

    Raises:
        ConfigError, CheckpointError: the directory cannot be opened.
    """
    directory = Path(directory)
    family = reference_family(directory)
    compared = family.groups if groups is None else groups
    reference = family.open(directory)
    with TemporaryDirectory() as graphs:
        is_onnx = through == "onnx"
        staged = family.exported(reference, Path(graphs), every_plan) if is_onnx else reference
        rows = {
            group.name: compare_group(group, staged if group.staged else reference)
            for group in compared
        }
    result = report(rows)
    backends = {group.name: (staged if group.staged else reference).backend for group in compared}
    found = {
        name: msgspec.structs.replace(row, through=backends[name])
        for name, row in result.groups.items()
    }
    return msgspec.structs.replace(result, groups=found)


@torch.no_grad()
def compare_group(group: Group, reference: StoredArrays) -> Comparison:
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
