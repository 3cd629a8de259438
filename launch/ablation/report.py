"""The outcome of an ablation: its rows as a result, a table for people, and the same table as
Markdown.

Knows samples, outcomes and plans; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from trimvla.launch import tables
from trimvla.launch.ablation.results import AblationRow, Timing
from trimvla.launch.ablation.rows import DENSE, ROWS
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.results import BenchRow
from trimvla.launch.bench.turns import COMPILED, EAGER, Samples, Subject
from trimvla.launch.result import as_plain
from trimvla.policies.families import family_of, parse_config
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan
from trimvla.sim.evaluation.statistics import compare
from trimvla.sim.evaluation.success import Outcome, success_of

NAME = "ablation"  # of the marks around the table in a page
BACKENDS = ("onnxruntime", EAGER, COMPILED)
COLUMNS = ("plan", "success", "against dense, paired", *BACKENDS, "operations", "parameters")
HEAD = (
    "plan",
    "success",
    "points to dense, paired",
    "ONNX Runtime",
    "eager torch",
    "compiled torch",
    "operations",
    "parameters",
)


def summarise(
    made: Mapping[str, Path],
    subjects: Sequence[Subject],
    samples: Samples,
    played: Mapping[str, Sequence[Outcome]],
    margin: float,
) -> list[AblationRow]:
    """All rows, in the order of the table.

    Args:
        made: row -> bundle.
        subjects: that took turns at the clock.
        samples: their times.
        played: row -> its outcomes; fewer than the dense bundle's are of its first seeds.
        margin: of non-inferiority.
    """
    times = benchmark.rows(subjects, samples, {})
    return [row_of(name, path, times, played, margin) for name, path in made.items()]


def row_of(
    name: str,
    path: Path,
    times: Sequence[BenchRow],
    played: Mapping[str, Sequence[Outcome]],
    margin: float,
) -> AblationRow:
    """One row: what it keeps, what it costs, how long it takes, how often it succeeds."""
    manifest = bundles.load(path)
    cfg = parse_config(manifest.policy)
    family = family_of(cfg)
    cost = family.cost(cfg, manifest.plan)
    dense = family.cost(cfg, Plan())
    success = success_of(played[name])
    reference = success_of(played[DENSE][: len(played[name])])
    paired = compare(success.outcomes, reference.outcomes, margin=margin)
    own = (row for row in times if row.bundle == name and is_whole(row))
    return AblationRow(
        name=name,
        control=next(row.control for row in ROWS if row.name == name),
        parameters=cost.parameters,
        flops=cost.flops,
        flops_ratio=cost.flops / dense.flops,
        backends={row.backend: timing(row) for row in own},
        success=success.success_rate,
        interval=success.interval,
        successes=success.successes,
        episodes=success.episodes,
        by_verb=success.by_verb,
        against_dense=None if name == DENSE else paired,
        outcomes="".join(map(str, success.outcomes)),
        plan=msgspec.structs.replace(manifest.plan, channels=None),  # masks fill pages
    )


def with_times(rows: Sequence[AblationRow]) -> list[dict[str, object]]:
    """Rows for the picture: each with `ms`, the median of a chunk on ONNX Runtime."""
    return [{**as_plain(row), "ms": row.backends["onnxruntime"].p50_ms} for row in rows]


def is_whole(row: BenchRow) -> bool:
    """Whether a row of the benchmark is image in, chunk out."""
    return row.layer == "L2" and row.part == benchmark.TOTAL


def timing(row: BenchRow) -> Timing:
    """The numbers of a benchmark's row."""
    return Timing(**{name: getattr(row, name) for name in Timing.__struct_fields__})


def cells(row: AblationRow) -> tables.Row:
    """One line of the table."""
    return (
        row.name,
        tables.rate(row.success, row.interval, row.episodes),
        tables.points(row.against_dense),
        *(duration(row.backends.get(backend)) for backend in BACKENDS),
        f"{row.flops_ratio:.1%}",
        f"{row.parameters / 1e6:.2f} M",
    )


def duration(times: Timing | None) -> str:
    """Milliseconds, and how many times faster than dense on the same backend."""
    return "" if times is None else tables.duration(times.p50_ms, times.ratio_to_dense)


def as_table(rows: Sequence[AblationRow]) -> Table:
    """For people."""
    title = "ms: one action chunk, median; * not inferior to dense"
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows:
        table.add_row(*cells(row))
    return table


def as_markdown(rows: Sequence[AblationRow]) -> str:
    """For a page."""
    return tables.as_markdown(HEAD, [cells(row) for row in rows])
