"""`trimvla trim`: calibration frames -> a plan; `launch.trimming` does the work."""

from __future__ import annotations

from trimvla.launch.exporting.results import TrimResult
from trimvla.launch.trimming.options import Args
from trimvla.launch.trimming.shown import as_table, scores_of
from trimvla.launch.trimming.work import decide
from trimvla.runtime.bundle.plan import save_plan


def run(args: Args) -> TrimResult:
    """Measure, decide, write the plan and its image; the scores as bars."""
    made = decide(args)
    save_plan(made.plan, args.out)
    args.console().print(as_table(made.plan))
    return TrimResult(
        ok=True,
        plan=args.out,
        picture=made.picture,
        kept_layers=made.plan.layers,
        scores=list(scores_of(made.plan)),
        ratio_to_dense=made.ratio_to_dense,
    )
