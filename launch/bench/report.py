"""A benchmark for people and for other programs: the table, what it means, and the samples behind
it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from trimvla.launch.bench.results import BenchResult, BenchRow, CostPart, GraphsResult
from trimvla.launch.bench.turns import TOTAL, Cell, Samples
from trimvla.launch.tables import number

SAMPLES_AS = (".npz", ".json")
IN_A_ROW = "graphs in a row, not on inputs that lie ready"
ELSEWHERE = "policy in its own process against in this one"
MEANING = (
    "L0: the graphs alone. L1: image in. L2: policy, chunk out. L3: socket in, socket out.",
    "x dense: times as fast as the dense policy on the same backend, turn by turn: median "
    "(quartiles).",
    "x eager: the same against the dense policy in eager torch.",
    "floor: operations at this machine's measured peak or weights at its measured bandwidth, "
    "whichever takes longer.",
)
LEFT = ("", "policy")  # columns of text
COLUMNS = (*LEFT, "p50 ms", "p99 ms", "x dense", "quartiles", "x eager", "floor ms")


def as_table(result: GraphsResult) -> Table:
    """One block a layer and part, with one row for each policy and backend."""
    title = f"{result.rounds} turns, {result.threads or 'all'} threads"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in COLUMNS:
        justify = "left" if column in LEFT else "right"
        table.add_column(column, justify=justify, overflow="fold")
    block = ""
    peers = any(row.ratio_to_peer is not None for row in result.rows)
    if peers:
        table.add_column("x peer", justify="right")
    for row in result.rows:
        here = f"{row.layer} {row.part}"
        if block not in ("", here):
            table.add_section()
        style = "bold" if row.part == TOTAL else None
        against = [number(row.ratio_to_peer)] if peers else []
        table.add_row(here if here != block else "", *_cells(row), *against, style=style)
        block = here
    return table


def _cells(row: BenchRow) -> Iterator[str]:
    yield row.subject
    yield from map(number, (row.p50_ms, row.p99_ms, row.ratio_to_dense))
    yield "" if row.ratio_low is None else f"{row.ratio_low:.2f}-{row.ratio_high:.2f}"
    yield from map(number, (row.ratio_to_eager_dense, row.floor_ms))


def breakdown(
    cells: Mapping[Cell, Sequence[float]], parts: Mapping[str, float]
) -> tuple[CostPart, ...]:
    """Where L3 - L0 goes, from medians. Their sum is not exact: medians do not add up."""

    def over(layer: str, below: str) -> float:
        return float(np.median(np.subtract(cells[layer, TOTAL], cells[below, TOTAL])))

    picture = float(np.median(cells["L1", "preprocess"]))
    again = parts["policy"] - float(np.median(cells["L2", TOTAL]))
    socket = {name: ms for name, ms in parts.items() if name != "policy"}
    found = (
        ("L1 - L0", "image resized, prompt looked up, noise drawn", picture),
        ("L1 - L0", IN_A_ROW, over("L1", "L0") - picture),
        ("L2 - L1", "clipped, un-normalised", over("L2", "L1")),
        *(("L3 - L2", name, ms) for name, ms in socket.items()),
        ("L3 - L2", ELSEWHERE, again),
        ("L3 - L0", TOTAL, over("L3", "L0")),
    )
    return tuple(CostPart(step, part, round(ms, 3)) for step, part, ms in found)


def own_parts(rows: Sequence[CostPart]) -> float:
    """What of a breakdown is the runtime's own work [ms]: all but the graphs themselves."""
    return round(sum(row.ms for row in rows if row.part not in (IN_A_ROW, ELSEWHERE, TOTAL)), 3)


def as_cost(result: BenchResult) -> Table:
    """The runtime's own cost, part by part."""
    title = f"the runtime's own cost, image {result.picture} [ms]"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in ("step", "part", "p50 ms"):
        table.add_column(column, justify="right" if column == "p50 ms" else "left")
    for row in result.breakdown:
        style = "bold" if row.part == TOTAL else None
        table.add_row(row.step, row.part, number(row.ms), style=style)
    return table


def explain(result: BenchResult) -> Iterator[str]:
    """What the columns are, and the figures that have no row."""
    yield from MEANING
    machine = result.machine
    bandwidth = f"{machine.gbytes_per_s:.1f} GB/s"
    yield f"Measured peak {machine.gflops:.0f} GFLOP/s, bandwidth {bandwidth}."
    low, high = result.runtime_cost_interval_ms
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    cost = f"{result.runtime_cost_ms:.2f} ms"
    yield f"The runtime itself costs {cost} (L3 - L0, median; {interval})."
    yield (
        f"Its own parts add up to {result.own_parts_ms:.2f} ms; the rest is how the same graphs "
        "run in one process and in the other."
    )
    yield from result.notes


def doubts(rows: Sequence[BenchRow], resent: int) -> Iterator[str]:
    """Signs that the machine did other things too, so that the figures are not to be trusted."""
    floored = [row for row in rows if row.floor_ms is not None]
    impossible = [row.name for row in floored if row.p50_ms < (row.floor_ms or 0.0)]
    if impossible:
        names = ", ".join(impossible)
        yield f"Busy machine: below their floor, whose peak was measured apart from them: {names}."
    if resent:
        yield f"Busy machine: {resent} frames had to be sent again."


def write_samples(samples: Samples, path: Path) -> None:
    """Milliseconds of every turn, as "NAME LAYER PART": arrays of an .npz, or lists in a .json."""
    table: dict[str, Any] = {
        f"{name} {layer} {part}": took
        for name, cells in samples.items()
        for (layer, part), took in cells.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(table) + "\n")
        return
    np.savez_compressed(path, **table)
