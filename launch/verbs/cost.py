"""`trimvla cost`: what a policy would cost under a plan, before there is a plan, a weight or a
device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from tyro.conf import Positional

from trimvla.launch.costing.boards import board_table, fit_rows
from trimvla.launch.costing.precision import check_known, in_precision
from trimvla.launch.costing.sized import Named, Sized, find_sizes
from trimvla.launch.costing.table import as_table
from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.options import Options
from trimvla.policies.families import family_of
from trimvla.policies.sizes.cost_report import CostReport, Ratios, ratios
from trimvla.policies.sizes.counts import Trimmable, plan_by_counts
from trimvla.policies.sizes.memory import BoardFit, precision_named
from trimvla.runtime.bundle.plan import Plan, TokenPlan, TokenSelector
from trimvla.runtime.errors import ConfigError


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
    seen = {"cameras": args.cameras, "prompt": args.prompt}
    dense = in_precision(cfg, Plan(), precision, **seen)
    plan = wanted_plan(args, sized)
    cost = in_precision(cfg, plan, precision, **seen)
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
