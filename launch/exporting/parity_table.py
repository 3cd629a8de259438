"""A parity report as a table for people. Knows the report's groups; compares nothing."""

from __future__ import annotations

from rich.table import Table

from trimvla.launch.options import Result


def as_table(result: Result) -> Table:
    """One row a group: how many arrays, the worst difference, and what was allowed."""
    table = Table("group", "compared", "worst difference", "tolerance", "at")
    for name, row in result["groups"].items():
        worst = f"{row['worst']:.2e}{' relative' if row.get('relative') else ''}"
        table.add_row(
            name, str(row["compared"]), worst, f"{row['tolerance']:.0e}", str(row["worst_key"])
        )
    return table
