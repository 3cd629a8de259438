"""`trimvla faults`: what the robot does when something breaks, row by row of `fault_table`, seen
from outside.

Starts the system as `trimvla run` does, and the arm beside it; breaks one thing after the other
with real signals and real sockets, and lets the safety monitor judge every command, those between
two rows and during the start included. A row passes if the robot holds in time, nothing was sent
that must not be, and all goes on when the fault is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimvla.launch.console import Console
from trimvla.launch.faults.play import NotStartedError, Outcome, Play
from trimvla.launch.faults.report import NAME, as_markdown, as_table
from trimvla.launch.faults.results import FaultsResult
from trimvla.launch.faults.session import running
from trimvla.launch.faults.table import BOUND_S, ROWS, Row, System, sections
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.setup.programs import check_system
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.launch.tables import insert
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import ConfigError

NOT_PLAYED = "not played: the row before it left no system that runs"
END_S = 0.5  # after the last row: what follows it is judged too


@dataclass(frozen=True)
class Args(Options):
    """Break one thing after the other in a running system, and see from outside that nothing unsafe
    was commanded.
    """

    bundle: str = "tabletop-trimmed"
    """The policy's: a path or a shipped bundle's name."""

    only: tuple[str, ...] = ()
    """Rows whose names contain one of these words; all by default."""

    page: Path | None = None
    """Also put the table into this Markdown file, between the marks of a table of faults."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--page", self.page),)

    def rows(self) -> list[Row]:
        """Those that are named. Raises ConfigError where there is none."""
        found = [
            row for row in ROWS if not self.only or any(word in row.name for word in self.only)
        ]
        if not found:
            names = [row.name for row in ROWS]
            raise ConfigError(f"expected --only to be part of one of {names}, got {self.only}")
        return found


@dataclass(frozen=True)
class Played:
    """Rows of one system."""

    outcomes: list[Outcome]
    commands: int
    between: list[str]
    """Violations that belong to no row: during the start, between two rows and at the end."""


def run(args: Args) -> FaultsResult:
    """All rows; the table."""
    rows = args.rows()
    start = time.monotonic()
    bundle = str(manifest.resolve(args.bundle).resolve())
    check_system(sections(bundle))
    terminate_as_interrupt()
    with Console(stderr=True).status("starting") as line:
        systems: dict[System, None] = dict.fromkeys(row.system for row in rows)
        played = [play_system(system, rows, bundle, line.update) for system in systems]
    outcomes = [outcome for part in played for outcome in part.outcomes]
    between = [words for part in played for words in part.between]
    result = FaultsResult(
        ok=all(outcome.ok for outcome in outcomes) and not between,
        bound_ms=BOUND_S * 1e3,
        seconds=round(time.monotonic() - start, 1),
        commands=sum(part.commands for part in played),
        violations_between_rows=len(between),
        between_rows=between,
        rows=outcomes,
    )
    args.console().print(as_table(result))
    if args.page is not None:
        args.page.write_text(insert(args.page.read_text(), NAME, as_markdown(result)))
    return result


def play_system(
    system: System, rows: list[Row], bundle: str, show: Callable[[str], None]
) -> Played:
    """The rows of one system; every violation belongs to a row or to what lies between."""
    outcomes: list[Outcome] = []
    between: list[str] = []
    with running(system, bundle) as session:
        monitor = session.monitor
        judged = 0
        for row in rows:
            if row.system != system:
                continue
            show(row.name)
            play = Play(row, session)
            try:
                outcomes.append(play.run())
            except NotStartedError as error:
                outcomes.append(Outcome(row.name, row.must, broken=[str(error)]))
                outcomes += [
                    Outcome(later.name, later.must, broken=[NOT_PLAYED])
                    for later in after(row, rows)
                ]
                break
            between += [found.words for found in monitor.violations[judged : play.first]]
            judged = len(monitor.violations)
        monitor.until(lambda: False, END_S)
        between += [found.words for found in monitor.violations[judged:]]
        return Played(outcomes, len(monitor.commands), between)


def after(row: Row, rows: list[Row]) -> list[Row]:
    """The rows of the same system that would have followed."""
    following = rows[rows.index(row) + 1 :]
    return [later for later in following if later.system == row.system]
