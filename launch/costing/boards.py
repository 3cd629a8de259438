"""Which boards have the memory for a policy under its plan, and under published ones.

Knows families and boards; builds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from trimvla.policies.families import family_of
from trimvla.policies.sizes.counts import plan_by_counts
from trimvla.policies.sizes.memory import BOARDS, GIB, PRECISIONS, BoardFit
from trimvla.runtime.bundle.plan import Plan, TokenPlan

# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP
# and interval 5.
PUBLISHED = ((28, 112), (28, 56), (22, 112), (22, 56))


def fit_rows(cfg: Any, plan: Plan) -> Iterator[BoardFit]:  # noqa: ANN401
    """One row for every plan and precision."""
    memory = family_of(cfg).memory
    assert memory is not None  # see `check_known`
    for name, one in named_plans(cfg, plan):
        for precision in PRECISIONS:
            yield memory(cfg, one, precision).fit(name)


def named_plans(cfg: Any, plan: Plan) -> list[tuple[str, Plan]]:  # noqa: ANN401
    """The plan that was chosen; if that is all of a CogACT, the published trimmings beside
    it.
    """
    if not plan.dense:
        return [("as asked", plan)]
    points = PUBLISHED if cfg.name.startswith("cogact") else ()
    return [
        ("dense", plan),
        *((f"L{layers} T{tokens}", published(cfg, layers, tokens)) for layers, tokens in points),
    ]


def published(cfg: Any, layers: int, tokens: int) -> Plan:  # noqa: ANN401
    """One row of `PUBLISHED`."""
    there = family_of(cfg).trimmable(cfg)
    kept = TokenPlan(keep=tokens)
    return plan_by_counts(there, layers=layers, mlp_keep=0.75, tokens=kept, cache_interval=5)


def board_table(name: str, rows: list[BoardFit]) -> Table:
    """One row for every plan and precision, one column a board."""
    titles = (board.title for board in BOARDS.values())
    sizes = ("GiB to run", "to build")
    table = Table(name, "precision", *sizes, *titles, title="which boards have the memory")
    for row in rows:
        needs = (f"{bytes_ / GIB:.1f}" for bytes_ in (row.running_bytes, row.building_bytes))
        table.add_row(row.plan, row.precision, *needs, *(row.boards[board] for board in BOARDS))
    whole = "the engines would fit, but the board cannot build them in one piece"
    table.caption = f"yes: builds and runs; runs: {whole}"
    return table
