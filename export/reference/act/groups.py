"""Does our ACT compute what LeRobot's computed? What is compared, and how closely.

Tolerances are for float32. Arrays below `in/` and `second/observation` are what the others are
computed from.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.export.reference.act import dense
from trimvla.export.reference.act.directory import ActReference, open_reference
from trimvla.export.reference.groups import Group, ReferenceFamily
from trimvla.export.reference.staged import ExportedRuns

GROUPS = (
    Group("pixels", ("pixels/*",), 1e-6, dense.pixels, required=True),
    Group("state", ("state/*",), 1e-6, dense.state),
    Group("backbone", ("backbone/*",), 1e-4, dense.backbone, required=True),
    Group("tokens", ("encoder/tokens", "encoder/positions"), 5e-5, dense.tokens, required=True),
    Group("encoder", ("encoder/out",), 5e-5, dense.encoded, required=True),
    Group("decoder", ("decoder/out",), 5e-5, dense.decoded, required=True),
    Group("actions", ("*/normalized",), 1e-4, dense.actions, required=True, staged=True),
    Group("unnormalized", ("*/unnormalized",), 1e-5, dense.unnormalized, required=True),
)


def exported(ref: ActReference, directory: Path, every_plan: bool) -> ActReference:
    """The same reference with its stages exported into the directory."""
    del every_plan  # the dense policy alone is stored
    return ref.through(ExportedRuns(ref.policy, directory))


ACT = ReferenceFamily(GROUPS, open_reference, exported)
"""ACT's references."""
