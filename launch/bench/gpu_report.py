"""The GPU benchmark for people: a table, and an image of the stages of every policy.

Knows rows only.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.launch.bench.results import GpuResult, GpuRow
from trimvla.launch.figures import style
from trimvla.launch.figures.stage_times import stage_times_figure
from trimvla.launch.result import as_plain
from trimvla.launch.tables import number

TOTAL = "total"
STAGES = ("vision", "language", "action")  # of the policies that are measured
RATIOS = ("x dense, same way", "x eager", "x compiled")
COLUMNS = ("policy", "p50 ms", "p99 ms", *RATIOS, *STAGES, "floor ms")


def as_text(result: GpuResult) -> str:
    """One line a policy and way: whole chunk, ratios to dense, stages, floor.

    Text, for `rich` may not be there.
    """
    device = f"{result.preset} in {result.dtype} on {result.device}"
    title = f"{device}, torch {result.torch}, {result.date}"
    medians = {(row.subject, row.part): row.p50_ms for row in result.rows}
    cells = [
        (
            row.subject,
            *map(number, (row.p50_ms, row.p99_ms, row.ratio_to_dense)),
            *map(number, (row.ratio_to_eager_dense, row.ratio_to_compiled_dense)),
            *(number(medians[row.subject, stage]) for stage in STAGES),
            number(row.floor_ms),
        )
        for row in totals(result)
    ]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in (COLUMNS, *cells)
    ]
    return "\n".join((title, *lines, *result.notes))


def totals(result: GpuResult) -> list[GpuRow]:
    """The rows of whole chunks."""
    return [row for row in result.rows if row.part == TOTAL]


def draw(result: GpuResult, path: Path) -> Path:
    """The image of a result of `gpu-bench`, as a PNG; its path."""
    title = f"{result.preset} in {result.dtype} on {result.device}"
    return style.save(stage_times_figure(as_plain(result.rows), title), path)
