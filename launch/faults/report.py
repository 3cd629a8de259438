"""What a run of the fault table says: a table for people, and the same as Markdown.

Knows results; plays nothing.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from trimvla.launch.options import Result

NAME = "faults"  # of the marks around the table in a page
COLUMNS = ("fault", "noticed ms", "by", "state", "actions", "holds", "recovery ms", "broken", "ok")
WORDS = 80  # of a reason that are shown


def as_table(result: Result) -> Table:
    """For people."""
    table = Table(title=title(result), title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in result["rows"]:
        table.add_row(*cells(row))
    return table


def as_markdown(result: Result) -> str:
    """For a page."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in result["rows"])]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"{title(result)}.", "", *lines])


def title(result: Result) -> str:
    """The whole run in a line."""
    counts = (
        f"{result['commands']} commands, {result['violations_between_rows']} violations between"
    )
    passed = sum(row["ok"] for row in result["rows"])
    rows = f"{passed} of {len(result['rows'])} rows ok in {result['seconds']:.0f} s"
    return f"Hold within {result['bound_ms']:.0f} ms, {rows}; {counts}"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row, as text."""
    by_a_person = row["must"] == "robot holds"
    return (
        row["fault"],
        _number(row["detected_ms"]),
        row["detected_by"][:WORDS],
        row["state"],
        str(row["actions"]),
        str(row["holds"]),
        "by a person" if by_a_person else _number(row["recovery_ms"]),
        str(len(row["broken"])),
        "yes" if row["ok"] else "no",
    )


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"
