"""A parity report as a table for people. Knows the report's groups; compares nothing."""

from __future__ import annotations

from rich.table import Table

from trimvla.export.parity import Parity


def as_table(result: Parity) -> Table:
    """One row a group: how many arrays, the worst difference, and what was allowed."""
    table = Table("group", "compared", "worst difference", "tolerance", "at")
    for name, row in result.groups.items():
        worst = f"{row.worst:.2e}{' relative' if row.relative else ''}"
        allowed = f"{row.tolerance:.0e}"
        table.add_row(name, str(row.compared), worst, allowed, str(row.worst_key))
    return table
