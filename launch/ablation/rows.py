"""EfficientVLA's ablation (arXiv 2506.10100, its table of components), the paper's mildest point
and the controls.

A table of rows: what of the plan is on in each, and how much. Knows plans; measures nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from trimvla.runtime.bundle.plan import TokenPlan, TokenSelector

if TYPE_CHECKING:
    from trimvla.policies.trimming.planner import Request

Knob = Literal["layers", "width", "tokens", "cache"]
DENSE = "dense"
WHOLE = "all"
MAIN = (DENSE, WHOLE)  # rows that play more episodes, and are compiled
EARLY = 2  # the paper's layer
ALL: tuple[Knob, ...] = ("layers", "width", "tokens", "cache")


@dataclass(frozen=True)
class Amounts:
    """How much a knob keeps where it is on."""

    layers: int
    mlp_keep: float
    tokens: int
    after: int
    cache_interval: int


@dataclass(frozen=True)
class Row:
    """One line of the table. `milder`: with the milder amounts; `early`: tokens leave at the
    paper's layer 2, where a small policy's words have not found their things; `control`: what the
    method must beat.
    """

    name: str
    on: tuple[Knob, ...] = ()
    milder: bool = False
    control: bool = False
    selector: TokenSelector = "efficientvla"
    criterion: str = "block-influence"
    fewer_steps: bool = False
    early: bool = False

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return self.name.replace(" + ", "-").replace(", ", "-").replace(" ", "-").lower()


ROWS = (
    Row(DENSE),
    Row("tokens", ("tokens",)),
    Row("cache", ("cache",)),
    Row("layers", ("layers",)),
    Row("width", ("width",)),
    Row("layers + width", ("layers", "width")),
    Row("layers + tokens", ("layers", "tokens")),
    Row("layers + width + cache", ("layers", "width", "cache")),
    Row("tokens + cache", ("tokens", "cache")),
    Row(WHOLE, ALL),
    Row("all, milder", ALL, milder=True),
    Row("tokens at layer 2", ("tokens",), early=True),
    Row("FastV tokens", ("tokens",), control=True, selector="fastv"),
    Row("random tokens", ("tokens",), control=True, selector="random"),
    Row("uniform grid", ("tokens",), control=True, selector="uniform"),
    Row("random layers", ("layers",), control=True, criterion="random"),
    Row("deepest layers", ("layers",), control=True, criterion="reverse-order"),
    Row("fewer DDIM steps", control=True, fewer_steps=True),
)


def request(row: Row, amounts: Amounts, steps: int, seed: int) -> Request:
    """The request to the planner for a row.

    Args:
        row: of the table.
        amounts: of the knobs that are on.
        steps: the dense sampler's; the control takes as many as the cache runs in full.
        seed: of the random controls.
    """
    after = EARLY if row.early else amounts.after
    tokens = TokenPlan(keep=amounts.tokens, after=after, selector=row.selector, seed=seed)
    from trimvla.policies.trimming.planner import Request  # torch: a report needs none

    wanted = Request(criterion=row.criterion, seed=seed)
    if "layers" in row.on:
        wanted = replace(wanted, layers=amounts.layers)
    if "width" in row.on:
        wanted = replace(wanted, mlp_keep=amounts.mlp_keep)
    if "tokens" in row.on:
        wanted = replace(wanted, tokens=tokens)
    if "cache" in row.on:
        wanted = replace(wanted, cache_interval=amounts.cache_interval)
    if row.fewer_steps:
        wanted = replace(wanted, steps=math.ceil(steps / amounts.cache_interval))
    return wanted
