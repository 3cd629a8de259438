"""The GPU benchmark for people: a table, and a picture of the stages of every policy in every way.

Knows rows only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimvla.launch.figures import style
from trimvla.launch.figures.stage_times import stage_times_figure
from trimvla.runtime.bundle.manifest import STAGES

TOTAL = "total"

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
    """The picture of a result of `gpu-bench`, as a PNG; its path."""
    title = f"{result['preset']} in {result['dtype']} on {result['device']}"
    return style.save(stage_times_figure(result["rows"], title), path)
