"""The cost of one action chunk as a table: a row a stage. Counts nothing."""

from __future__ import annotations

from rich.table import Table

from trimvla.policies.sizes.cost_report import CostReport, StageCost


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
