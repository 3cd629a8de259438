"""The GPU benchmark for people: a table, and a picture of the stages of every policy in every way.

Knows rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimvla.runtime.bundle.manifest import STAGES

TOTAL = "total"
COLOURS = {"vision": "tab:blue", "language": "tab:orange", "action": "tab:green"}


COLUMNS = (
    "policy",
    "p50 ms",
    "p99 ms",
    "x dense, same way",
    "x eager",
    "x compiled",
    *STAGES,
    "floor ms",
)


def as_text(result: dict[str, Any]) -> str:
    """One line a policy and way: whole chunk, ratios to dense, stages, floor.

    Text, for `rich` may not be there.
    """
    title = (
        f"{result['preset']} in {result['dtype']} on {result['device']}, torch {result['torch']},"
        f" {result['date']}"
    )
    parts = {(row["subject"], row["part"]): row for row in result["rows"]}
    ratios = ("ratio_to_dense", "ratio_to_eager_dense", "ratio_to_compiled_dense")
    cells = [
        (
            row["subject"],
            *(number(row[name]) for name in ("p50_ms", "p99_ms", *ratios)),
            *(number(parts[row["subject"], stage]["p50_ms"]) for stage in STAGES),
            number(row["floor_ms"]),
        )
        for row in totals(result)
    ]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in (COLUMNS, *cells)
    ]
    return "\n".join((title, *lines, *result["notes"]))


def totals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of whole chunks."""
    return [row for row in result["rows"] if row["part"] == TOTAL]


def number(value: float | None) -> str:
    """Two digits, or nothing."""
    return "" if value is None else f"{value:.2f}"


def draw(result: dict[str, Any], path: Path) -> Path:
    """Stacked stages of every policy, with the whole chunk's median and the floor beside them.

    Args:
        result: of `gpu-bench`.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    rows: Sequence[dict[str, Any]] = totals(result)
    parts = {(row["subject"], row["part"]): row["p50_ms"] for row in result["rows"]}
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for line, row in enumerate(rows):
        left = 0.0
        for stage in STAGES:
            took = parts[row["subject"], stage]
            axes.barh(
                line, took, left=left, color=COLOURS[stage], label=stage if line == 0 else None
            )
            left += took
        axes.plot(
            [row["p50_ms"]] * 2,
            [line - 0.4, line + 0.4],
            color="black",
            label="all at once" if not line else None,
        )
        axes.plot([row["floor_ms"]], [line], "k.", label="floor" if not line else None)
    axes.set_yticks(range(len(rows)), [row["subject"] for row in rows])
    axes.invert_yaxis()
    axes.set(
        xlabel="one action chunk, median [ms]", title=f"{result['preset']} on {result['device']}"
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
