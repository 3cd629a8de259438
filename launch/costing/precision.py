"""Costs with the bytes of weights as a precision stores them, where a family works them out."""

from __future__ import annotations

from typing import Any

import msgspec

from trimvla.policies.families import Family, family_of
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.policies.sizes.memory import PRECISIONS
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError


def check_known(family: Family, precision: str, boards: bool) -> None:
    """Refuse what is worked out for some families only.

    Raises:
        ConfigError: names the option.
    """
    if family.memory is not None:
        return
    if boards:
        words = "no --boards: what its engines need on a board is not worked out"
        raise ConfigError(f"expected for family '{family.name}' {words}")
    uniform = [name for name, kind in PRECISIONS.items() if kind.matrix == kind.other]
    if precision not in uniform:
        words = f"--dtype for family '{family.name}' as one of {uniform}"
        raise ConfigError(f"expected {words}, got {precision!r}")


def in_precision(
    cfg: Any,  # noqa: ANN401
    plan: Plan,
    precision: str,
    *,
    cameras: int | None,
    prompt: int | None,
) -> CostReport:
    """The family's report, with bytes of weights as this precision stores them."""
    family = family_of(cfg)
    cost = family.cost(cfg, plan, cameras=cameras, prompt=prompt)
    if family.memory is None:
        one = PRECISIONS[precision].other
        weights = {name: int(one * row.parameters) for name, row in cost.stages.items()}
    else:
        weights = family.memory(cfg, plan, precision).weights
    stages = {
        name: msgspec.structs.replace(row, weight_bytes=weights[name])
        for name, row in cost.stages.items()
    }
    return msgspec.structs.replace(cost, weight_bytes=sum(weights.values()), stages=stages)
