"""`trimvla cost`: what a policy would cost under a plan, before there is a plan, a weight or a
device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.exporting.sized import Named, Sized, find_sizes
from trimvla.launch.options import Options
from trimvla.policies.families import Family, family_of
from trimvla.policies.sizes.cost_report import CostReport, Ratios, StageCost, ratios
from trimvla.policies.sizes.counts import Trimmable, plan_by_counts
from trimvla.policies.sizes.memory import BOARDS, GIB, PRECISIONS, BoardFit, precision_named
from trimvla.runtime.bundle.plan import Plan, TokenPlan, TokenSelector
from trimvla.runtime.errors import ConfigError

# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP
# and interval 5.
PUBLISHED = ((28, 112), (28, 56), (22, 112), (22, 56))


@dataclass(frozen=True)
class Args(PlanCounts, Options):
    """Parameters, floating-point operations and bytes of weights, from the config alone."""

    source: Positional[Path | None] = None
    """A bundle (by path, or a shipped one by name), a run folder or a checkpoint's folder, whose
    own sizes count, and a bundle's own plan; or a plan file, for --preset.
    """

    plan: Path | None = None
    """A plan file; without a plan, the options below set how much is kept."""

    preset: str | None = None
    """Which policy, where no folder is named: cogact-small, cogact-base (the default),
    cogact-large, tabletop, dbcogact, smolvla-base, pi0 or pi05; needed beside a folder in CogACT's
    official layout.
    """

    statistics_key: str | None = None
    """Which data set, of a checkpoint's folder with several."""

    checkpoint: str | None = None
    """Name of the .pt file in `checkpoints/` of an official CogACT folder; needed where there are
    several.
    """

    cameras: int | None = None
    """Cameras that the policy looks through: its first ones (default: all that it has)."""

    selector: TokenSelector = "efficientvla"
    """Which tokens: some selectors need extra score rows."""

    steps: int | None = None
    """Sampler steps, DDIM or Euler (default: as configured)."""

    prompt: int | None = None
    """Ids in the prompt, padding included (default: the smallest bucket)."""

    dtype: str = "float32"
    """Precision of the weights: float32, float16, bfloat16, int8 or int4 (fp32, fp16 and bf16 are
    understood); the last two narrow the decoder's matrices.
    """

    boards: bool = False
    """Also list which boards have the memory, in every precision; of a dense CogACT also for
    published trimmings.
    """


class CostResult(CostReport, frozen=True, kw_only=True):
    """What a policy costs under a plan."""

    ok: bool
    """Always true."""
    preset: str
    """Which policy: the name of its sizes."""
    family: str
    """Its family."""
    dtype: str
    """Precision of the weights."""
    ratio_to_dense: Ratios
    """What is left of the dense policy."""
    boards: list[BoardFit] | msgspec.UnsetType = msgspec.UNSET
    """With --boards: one row for every plan and precision."""


def run(args: Args) -> CostResult:
    """Cost under the plan, and its share of the dense policy's."""
    precision = precision_named(args.dtype)
    named = Named(args.source, args.plan, args.preset, args.statistics_key, args.checkpoint)
    sized = find_sizes(named)
    cfg = sized.cfg
    family = family_of(cfg)
    check_known(family, precision, args.boards)
    dense = in_precision(cfg, Plan(), args, precision)
    plan = wanted_plan(args, sized)
    cost = in_precision(cfg, plan, args, precision)
    boards = list(fit_rows(cfg, plan)) if args.boards else msgspec.UNSET
    console = args.console()
    console.print(as_table(cfg.name, precision, cost, dense))
    if boards is not msgspec.UNSET:
        console.print(board_table(cfg.name, boards))
    return CostResult(
        **msgspec.structs.asdict(cost),
        ok=True,
        preset=cfg.name,
        family=family.name,
        dtype=precision,
        ratio_to_dense=ratios(cost, dense),
        boards=boards,
    )


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


def in_precision(cfg: Any, plan: Plan, args: Args, precision: str) -> CostReport:  # noqa: ANN401
    """The family's report, with bytes of weights as this precision stores them."""
    family = family_of(cfg)
    cost = family.cost(cfg, plan, cameras=args.cameras, prompt=args.prompt)
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


def wanted_plan(args: Args, sized: Sized) -> Plan:
    """As much as the options keep, else the plan that is named or the source's own.

    Raises:
        ConfigError: counts beside a named plan, or more than there is.
    """
    there = family_of(sized.cfg).trimmable(sized.cfg)
    counted = counted_plan(args, over_cameras(there, args.cameras))
    if sized.plan is None or not counted.dense:
        if sized.named and not counted.dense:
            raise ConfigError("expected either a plan file or counts of what is kept, got both")
        return counted
    if sized.plan.tokens is not None and args.cameras not in (None, there.cameras):
        words = f"the {there.cameras} camera(s) that the plan chooses tokens of"
        raise ConfigError(f"expected --cameras as {words}, got {args.cameras}")
    return sized.plan


def counted_plan(args: Args, there: Trimmable) -> Plan:
    """The plan that keeps as much as the options. ConfigError where there is not so much."""
    tokens = None
    if args.tokens is not None:
        tokens = TokenPlan(keep=args.tokens, selector=args.selector)
    return plan_by_counts(there, **args.kept, tokens=tokens, steps=args.steps)


def over_cameras(there: Trimmable, cameras: int | None) -> Trimmable:
    """What there is with so many cameras."""
    return there if cameras is None else replace(there, cameras=cameras)


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
