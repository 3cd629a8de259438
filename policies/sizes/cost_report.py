"""What a policy costs, as a result: parameters, operations and bytes, whole and by stage. Types
alone."""

from __future__ import annotations

import msgspec


class StageCost(msgspec.Struct, frozen=True, omit_defaults=True):
    """One exported stage."""

    parameters: int
    """Its weights, counted."""
    flops: int
    """Floating-point operations of one action chunk."""
    weight_bytes: int
    """Its weights [bytes]."""
    weights_read: int | None = None
    """Weights that one action chunk reads from memory, counted; left out where all are, once."""


class CostReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole policy under a plan."""

    parameters: int
    """Of the whole checkpoint as published, with the LM head and other weights that never reach an
    action."""
    flops: int
    """Floating-point operations of one action chunk."""
    weight_bytes: int
    """Of the exported stages [bytes]."""
    stages: dict[str, StageCost]
    """Stage -> its share."""
    acting_parameters: int | None = None
    """Of the dense policy, those that an action depends on; of some families."""


class Ratios(msgspec.Struct, frozen=True):
    """Shares of the dense policy's, 0 to 1."""

    parameters: float
    """Of its parameters: of a CogACT with those that never reach an action, as papers count; of
    others those that the exported stages hold."""
    flops: float
    """Of its operations."""
    weight_bytes: float
    """Of its bytes of weights."""


def ratios(cost: CostReport, dense: CostReport) -> Ratios:
    """What is left of the dense policy."""
    return Ratios(
        parameters=_counted(cost) / _counted(dense),
        flops=cost.flops / dense.flops,
        weight_bytes=cost.weight_bytes / dense.weight_bytes,
    )


def _counted(cost: CostReport) -> int:
    """Parameters that a plan makes fewer; where acting ones are given, `parameters` are the
    checkpoint's under any plan."""
    if cost.acting_parameters is None:
        return cost.parameters
    return sum(stage.parameters for stage in cost.stages.values())
