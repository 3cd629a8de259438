"""The card of repeated calls, for people. Knows the result alone."""

from __future__ import annotations

from rich.table import Table

from trimvla.launch.motion.table import jerk_words, motion_line
from trimvla.launch.replay.results import ReplayResult


def as_table(result: ReplayResult) -> Table:
    """The card."""
    table = Table(title="trimvla replay", show_header=False, title_justify="left")
    table.add_row("calls", f"{result.calls} recorded, {result.repeated} repeated")
    table.add_row("same to the bit", f"{result.exact} of {result.repeated}")
    if result.worst is not None:
        worst = result.worst
        where = f"dimension {worst.dimension} of row {worst.row}, chunk {worst.chunk}"
        largest = worst.why if worst.largest is None else f"{worst.largest:.3g}"
        table.add_row("largest difference", f"{largest} in {where}")
    for why, count in result.left_out.items():
        table.add_row("left out", f"{count}: {why}")
    for name, (then, now) in result.differs_here.items():
        table.add_row(name, f"{then} then, {now} now")
    if result.motion is not None:
        table.add_row("motion", motion_line(result.motion))
        table.add_row("jerk", jerk_words(result.motion))
    if result.cut_off:
        table.add_row("file", "cut off; read up to its last whole chunk")
    return table
