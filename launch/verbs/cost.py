"""`trimvla cost`: what a policy would cost under a plan, before there is a plan, a weight or a
device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.policies.sizes.config import PolicyConfig, find_preset
from trimvla.policies.sizes.cost import Shape, report, shape_by_counts, shape_of
from trimvla.policies.sizes.cost_report import CostReport, Ratios, StageCost, ratios
from trimvla.policies.sizes.memory import (
    BOARDS,
    GIB,
    BoardFit,
    fit_rows,
    plan_memory,
    precision_named,
)
from trimvla.runtime.bundle.plan import TokenPlan, TokenSelector, load_plan

# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP
# and interval 5.
PUBLISHED = ((28, 112), (28, 56), (22, 112), (22, 56))


@dataclass(frozen=True)
class Args(Options):
    """Parameters, floating-point operations and bytes of weights, from the config alone."""

    plan: Positional[Path | None] = None
    """A plan file; without it, the options below say how much is kept."""

    preset: str = "cogact-base"
    """Which policy: cogact-small, cogact-base, cogact-large or tabletop."""

    layers: int | None = None
    """Language layers to keep (default: all)."""

    mlp_keep: float = 1.0
    """Share of the MLP channels to keep in every kept layer."""

    tokens: int | None = None
    """Visual tokens to keep after the second kept layer (default: all)."""

    selector: TokenSelector = "efficientvla"
    """Which tokens: some selectors need extra score rows."""

    cache_interval: int = 1
    """Run the head's blocks at every n-th DDIM step only."""

    steps: int | None = None
    """DDIM steps (default: as configured)."""

    prompt: int | None = None
    """Ids in the prompt, padding included (default: the smallest bucket)."""

    dtype: str = "float32"
    """Precision of the weights: float32, float16, bfloat16, int8 or int4 (fp32, fp16 and bf16 are
    understood).
    """

    boards: bool = False
    """Also say which boards have the memory, in every precision; of a dense CogACT also for
    published trimmings.
    """


class CostResult(CostReport, frozen=True, kw_only=True):
    """What a policy costs under a plan."""

    ok: bool
    """Always true."""
    preset: str
    """Which policy."""
    dtype: str
    """Precision of the weights."""
    ratio_to_dense: Ratios
    """What is left of the dense policy."""
    boards: list[BoardFit] | msgspec.UnsetType = msgspec.UNSET
    """With --boards: one row for every plan and precision."""


def run(args: Args) -> CostResult:
    """Cost under the plan, and its share of the dense policy's."""
    cfg = find_preset(args.preset)
    precision = precision_named(args.dtype)
    dense = in_precision(cfg, shape_by_counts(cfg), args.prompt, precision)
    shape = wanted_shape(args, cfg)
    cost = in_precision(cfg, shape, args.prompt, precision)
    boards = fit_rows(cfg, named_shapes(cfg, shape)) if args.boards else msgspec.UNSET
    console = args.console()
    console.print(as_table(cfg.name, precision, cost, dense))
    if boards is not msgspec.UNSET:
        console.print(board_table(cfg.name, boards))
    return CostResult(
        **msgspec.structs.asdict(cost),
        ok=True,
        preset=cfg.name,
        dtype=precision,
        ratio_to_dense=ratios(cost, dense),
        boards=boards,
    )


def in_precision(cfg: PolicyConfig, shape: Shape, prompt: int | None, precision: str) -> CostReport:
    """`cost.report`, with bytes of weights as this precision stores them."""
    cost = report(cfg, shape, prompt)
    weights = plan_memory(cfg, shape, precision).weights
    stages = {
        name: msgspec.structs.replace(row, weight_bytes=weights[name])
        for name, row in cost.stages.items()
    }
    return msgspec.structs.replace(cost, weight_bytes=sum(weights.values()), stages=stages)


def wanted_shape(args: Args, cfg: PolicyConfig) -> Shape:
    """What the plan file keeps, or as much as the options say."""
    if args.plan is not None:
        from trimvla.policies.trimming.trimmed import check  # needs torch; the counts do not

        plan = load_plan(args.plan)
        check(plan, cfg)
        return shape_of(cfg, plan)
    tokens = None if args.tokens is None else TokenPlan(keep=args.tokens, selector=args.selector)
    return shape_by_counts(
        cfg,
        layers=args.layers,
        mlp_keep=args.mlp_keep,
        tokens=tokens,
        cache_interval=args.cache_interval,
        steps=args.steps,
    )


def named_shapes(cfg: PolicyConfig, shape: Shape) -> list[tuple[str, Shape]]:
    """The shape that was asked for; if that is all of a CogACT, the published trimmings beside
    it.
    """
    if shape != shape_by_counts(cfg):
        return [("as asked", shape)]
    points = PUBLISHED if cfg.name.startswith("cogact") else ()
    return [
        ("dense", shape),
        *((f"L{layers} T{tokens}", published(cfg, layers, tokens)) for layers, tokens in points),
    ]


def published(cfg: PolicyConfig, layers: int, tokens: int) -> Shape:
    """One row of `PUBLISHED`."""
    return shape_by_counts(
        cfg, layers=layers, mlp_keep=0.75, tokens=TokenPlan(keep=tokens), cache_interval=5
    )


def as_table(name: str, dtype: str, cost: CostReport, dense: CostReport) -> Table:
    """One row a stage, and the whole."""
    columns = ("parameters", "GFLOP", f"MB of {dtype}", "of dense")
    table = Table(name, *columns, title="cost of one action chunk")
    for stage, row in cost.stages.items():
        table.add_row(stage, *numbers(row, row.parameters, dense.stages[stage].flops))
    running = sum(row.parameters for row in cost.stages.values())
    table.add_row("all", *numbers(cost, running, dense.flops))
    unused = "G parameters with those that never reach an action"
    table.caption = f"{cost.parameters / 1e9:.3f} {unused}"
    return table


def numbers(row: StageCost | CostReport, parameters: int, dense_flops: int) -> tuple[str, ...]:
    """The cells of a row."""
    return (
        f"{parameters / 1e6:,.1f} M",
        f"{row.flops / 1e9:,.2f}",
        f"{row.weight_bytes / 1e6:,.1f}",
        f"{row.flops / dense_flops:.1%}",
    )


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
