"""What an ablation says: rows for JSON, a table for people, and the same table as Markdown between
two marks.

Knows samples, outcomes and plans; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from trimvla.launch.ablation.rows import DENSE, ROWS
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.turns import COMPILED, EAGER, Samples, Subject
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import report, shape_by_counts, shape_of
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.rollout import Outcome
from trimvla.sim.evaluation.rollout import summarise as add_up
from trimvla.sim.evaluation.statistics import compare

BEGIN = "<!-- ablation: made by `make bench` -->"
END = "<!-- end of ablation -->"
BACKENDS = ("onnxruntime", EAGER, COMPILED)
COLUMNS = ("plan", "success", "against dense, paired", *BACKENDS, "operations", "parameters")


def summarise(
    made: Mapping[str, Path],
    subjects: Sequence[Subject],
    samples: Samples,
    played: Mapping[str, Sequence[Outcome]],
    margin: float,
) -> dict[str, Any]:
    """All rows, in the order of the table.

    Args:
        made: row -> bundle.
        subjects: that took turns at the clock.
        samples: their times.
        played: row -> its outcomes; fewer than the dense bundle's are of its first seeds.
        margin: of non-inferiority.
    """
    times = benchmark.rows(subjects, samples, {})
    return {"rows": [row_of(name, path, times, played, margin) for name, path in made.items()]}


def row_of(
    name: str,
    path: Path,
    times: Sequence[Mapping[str, Any]],
    played: Mapping[str, Sequence[Outcome]],
    margin: float,
) -> dict[str, Any]:
    """One row: what it keeps, what it costs, how long it takes, how often it succeeds."""
    manifest = bundles.load(path)
    cfg = PolicyConfig.from_dict(manifest.policy)
    cost = report(cfg, shape_of(cfg, manifest.plan))
    dense = report(cfg, shape_by_counts(cfg))
    success = add_up(list(played[name]))
    reference = add_up(list(played[DENSE][: len(played[name])]))
    paired = compare(success["outcomes"], reference["outcomes"], margin=margin)
    return {
        "name": name,
        "control": next(row.control for row in ROWS if row.name == name),
        "parameters": cost["parameters"],
        "flops": cost["flops"],
        "flops_ratio": cost["flops"] / dense["flops"],
        "backends": {
            row["backend"]: timing(row) for row in times if row["bundle"] == name and whole(row)
        },
        "success": success["success_rate"],
        "interval": success["interval"],
        "successes": success["successes"],
        "episodes": success["episodes"],
        "by_verb": success["by_verb"],
        "against_dense": None if name == DENSE else asdict(paired),
        "outcomes": "".join(map(str, success["outcomes"])),
        # masks fill pages
        "plan": msgspec.to_builtins(msgspec.structs.replace(manifest.plan, channels=None)),
    }


def with_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for the picture: each with `ms`, the median of a chunk on ONNX Runtime."""
    return [{**row, "ms": row["backends"]["onnxruntime"]["p50_ms"]} for row in rows]


def whole(row: Mapping[str, Any]) -> bool:
    """Whether a row of the benchmark is picture in, chunk out."""
    return row["layer"] == "L2" and row["part"] == benchmark.TOTAL


def timing(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a benchmark's row."""
    names = (
        "p50_ms",
        "p99_ms",
        "ratio_to_dense",
        "ratio_low",
        "ratio_high",
        "ratio_to_eager_dense",
    )
    return {name: row[name] for name in names}


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    low, high = row["interval"]
    return (
        row["name"],
        f"{row['success']:.1%} ({low:.1%} to {high:.1%}) of {row['episodes']}",
        paired(row["against_dense"]),
        *(duration(row["backends"].get(backend)) for backend in BACKENDS),
        f"{row['flops_ratio']:.1%}",
        f"{row['parameters'] / 1e6:.2f} M",
    )


def paired(comparison: Mapping[str, Any] | None) -> str:
    """The difference in points, with its interval; a star where it is not inferior at the
    margin.
    """
    if comparison is None:
        return ""
    low, high = comparison["interval"]
    star = " *" if comparison["non_inferior"] else ""
    return f"{100 * comparison['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){star}"


def duration(times: Mapping[str, Any] | None) -> str:
    """Milliseconds, and how many times faster than dense on the same backend."""
    return "" if times is None else f"{times['p50_ms']:.1f} ms ({times['ratio_to_dense']:.2f}x)"


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people."""
    table = Table(
        *COLUMNS,
        title="ms: one action chunk, median; * not inferior to dense",
        title_justify="left",
    )
    for row in rows:
        table.add_row(*cells(row))
    return table


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of the page."""
    names = (
        "plan",
        "success",
        "points to dense, paired",
        "ONNX Runtime",
        "eager torch",
        "compiled torch",
    )
    lines = [(*names, "operations", "parameters"), ("---",) * len(COLUMNS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(text: str, table: str) -> str:
    """Put the table between the marks. Raises ConfigError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"expected the marks {BEGIN} and {END} in the text, got neither or one")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
