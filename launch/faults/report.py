"""The outcome of a run of the fault table: a table for people, and the same as Markdown.

Knows results; plays nothing.
"""

from __future__ import annotations

from rich.table import Table

from trimvla.launch import tables
from trimvla.launch.faults.play import Outcome
from trimvla.launch.faults.results import FaultsResult
from trimvla.launch.tables import number

NAME = "faults"  # of the marks around the table in a page
COLUMNS = (
    "fault",
    "noticed ms",
    "by",
    "state",
    "actions",
    "holds",
    "recovery ms",
    "broken",
    "ok",
)
WORDS = 80  # of a reason that are shown


def as_table(result: FaultsResult) -> Table:
    """For people."""
    table = Table(title=title(result), title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in result.rows:
        table.add_row(*cells(row))
    return table


def as_markdown(result: FaultsResult) -> str:
    """For a page."""
    rows = [cells(row) for row in result.rows]
    return f"{title(result)}.\n\n{tables.as_markdown(COLUMNS, rows)}"


def title(result: FaultsResult) -> str:
    """The whole run in a line."""
    between = f"{result.violations_between_rows} violations between"
    passed = sum(row.ok for row in result.rows)
    rows = f"{passed} of {len(result.rows)} rows ok in {result.seconds:.0f} s"
    return f"Hold within {result.bound_ms:.0f} ms, {rows}; {result.commands} commands, {between}"


def cells(row: Outcome) -> tables.Row:
    """One row, as text."""
    recovery = number(row.recovery_ms, digits=0, none="never")
    return (
        row.fault,
        number(row.detected_ms, digits=0, none="never"),
        row.detected_by[:WORDS],
        row.state,
        str(row.actions),
        str(row.holds),
        "by a person" if row.must == "robot holds" else recovery,
        str(len(row.broken)),
        "yes" if row.ok else "no",
    )
