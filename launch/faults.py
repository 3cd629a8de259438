"""`trimvla faults`: what the robot does when something breaks, row by row of `fault_table`, seen from outside.

Starts the system as `trimvla run` does, and the arm beside it; breaks one thing after the other with real signals and
real sockets, and lets `witness` judge every command. A row passes if the robot holds in time, nothing was sent that
must not be, and all goes on when the fault is gone.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from trimvla.launch.children import Child
from trimvla.launch.console import Console, styled
from trimvla.launch.fault_table import (
    BOUND_S,
    HZ,
    PROMISE,
    RECORDING,
    ROWS,
    TASK,
    Row,
    Scene,
    System,
    nothing,
    sections,
    switch,
)
from trimvla.launch.options import Options, Result
from trimvla.launch.processes import check_system
from trimvla.launch.run_dirs import temporary_run_dir
from trimvla.launch.signals import terminate_as_interrupt
from trimvla.launch.witness import Witness
from trimvla.runtime import manifest
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError, TrimvlaError
from trimvla.runtime.messages import Command
from trimvla.sim.faults import seen_ns

START_S = 90.0  # imports and model loading on a slow, busy machine
SHOWN_S = 8.0  # for a report to tell of what the robot need not notice
RECOVERY_S = 30.0
GONE_S = 10.0  # for the processes of a supervisor that was killed
FLOWS_S = 1.2  # of actions only, before something is broken
HEARD = ("policy", "control", "recorder", "arm")


@dataclass(frozen=True)
class Args(Options):
    """Break one thing after the other in a running system, and see from outside that nothing unsafe was commanded."""

    bundle: str = "tabletop-trimmed"
    """The policy's: a path or a shipped bundle's name."""

    only: tuple[str, ...] = ()
    """Rows whose names contain one of these words; all by default."""

    def rows(self) -> list[Row]:
        """Those that are asked for. Raises ConfigError where there is none."""
        found = [row for row in ROWS if not self.only or any(word in row.name for word in self.only)]
        if not found:
            raise ConfigError(f"expected --only to be part of one of {[row.name for row in ROWS]}, got {self.only}")
        return found


@dataclass
class Outcome:
    """What happened in one row; times are from the fault on, `recovery_ms` from its end."""

    fault: str
    must: str
    ok: bool = False
    detected_ms: float | None = None
    detected_by: str = ""
    state: str = ""
    actions: int = 0
    """Sent while the fault lasted."""
    holds: int = 0
    actions_after_bound: int = 0
    recovery_ms: float | None = None
    broken: list[str] = field(default_factory=list)
    """Commands that must not have been sent."""


class NotStartedError(TrimvlaError):
    """The system that was to be broken does not run."""


def run(args: Args) -> Result:
    """All rows; the table."""
    rows, start = args.rows(), time.monotonic()
    bundle = str(manifest.resolve(args.bundle).resolve())
    check_system(sections(bundle))
    terminate_as_interrupt()
    outcomes: list[Outcome] = []
    with Console(stderr=True).status("starting") as line:
        systems: dict[System, None] = dict.fromkeys(row.system for row in rows)
        for system in systems:
            with broken_system(system, bundle) as (scene, witness, began_ns):
                for row in rows:
                    if row.system == system:
                        line.update(row.name)
                        outcomes.append(play(row, scene, witness, began_ns))
    result: Result = {
        "ok": all(outcome.ok for outcome in outcomes),
        "bound_ms": BOUND_S * 1e3,
        "seconds": round(time.monotonic() - start, 1),
        "rows": [asdict(outcome) for outcome in outcomes],
    }
    args.console().print(as_table(result))
    return result


@contextmanager
def broken_system(system: System, bundle: str) -> Iterator[tuple[Scene, Witness, int]]:
    """Start arm and system; scene, witness and when they were started. All is stopped at the end."""
    with ExitStack() as stack:
        run_dir = stack.enter_context(temporary_run_dir())
        witness = stack.enter_context(Witness(run_dir, PROMISE, HEARD))
        switch()(Scene(run_dir))
        arm = {"arm": {"process": "sim-arm", "watchdog_s": 3 / HZ}}
        options = ["--run-dir", str(run_dir)]
        program = ["process", "arm", "--system", write(run_dir / "arm.msgpack", arm), "--supervised", *options]
        start("arm", program, run_dir, stack)
        extra = ["--record", str(run_dir / RECORDING)] if system == "steady" else []
        if system == "port":
            taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            extra = ["--metrics", str(taken.getsockname()[1])]
        began_ns = monotonic_ns()
        program = ["run", write(run_dir / "broken.msgpack", sections(bundle)), "--task", TASK, *options, *extra]
        group = start("run", program, run_dir, stack)
        yield Scene(run_dir, group.pid), witness, began_ns


def write(path: Path, settings: dict[str, Any]) -> str:
    """A system's file."""
    path.write_bytes(msgspec.msgpack.encode(settings))
    return str(path)


def start(name: str, words: list[str], run_dir: Path, stack: ExitStack) -> Child:
    """Start the program with these words; it is terminated at the end."""
    child = Child(name, [sys.executable, "-m", "trimvla.launch.cli", *words], run_dir / f"{name}.log")
    stack.callback(child.ask_to_stop)
    stack.callback(child.terminate)
    return child


def play(row: Row, scene: Scene, witness: Witness, began_ns: int) -> Outcome:
    """Wait until the robot moves, break it, watch, mend it, wait until it moves again."""
    outcome = Outcome(row.name, row.must)
    if row.at_start:
        notice(row, scene, witness, began_ns, outcome)
    if not witness.until(lambda: flows(witness), START_S):
        said = witness.said("control")
        states = f"control is {said.state} ({said.reason})"
        raise NotStartedError(f"'{row.name}': expected actions within {START_S:g} s; {states}")
    witness.broken.clear()
    broken_ns = break_it(row, scene, witness)
    if not row.at_start:
        notice(row, scene, witness, broken_ns, outcome)
    mended_ns = mend(row, scene, witness, broken_ns, outcome)
    recover(row, scene, witness, mended_ns, outcome)
    if row.undo is nothing:
        count(row, witness, broken_ns, witness.last_ns(), outcome)
    outcome.broken += witness.broken
    outcome.ok = passed(row, outcome)
    return outcome


def break_it(row: Row, scene: Scene, witness: Witness) -> int:
    """Do the deed; when it took effect: a process that is told to go wrong begins with its next picture or call."""
    broken_ns = monotonic_ns()
    row.do(scene)
    witness.until(lambda: seen_ns(scene.run_dir) is not None, START_S)
    return max(broken_ns, seen_ns(scene.run_dir) or 0)


def mend(row: Row, scene: Scene, witness: Witness, broken_ns: int, outcome: Outcome) -> int:
    """Let the fault last until well after the bound, then undo it, if it does not undo itself; when that was."""
    if row.undo is nothing:
        return monotonic_ns()
    end_ns = broken_ns + to_ns(BOUND_S + 4 / HZ)
    witness.until(lambda: monotonic_ns() > end_ns, BOUND_S + 1)
    count(row, witness, broken_ns, monotonic_ns(), outcome)
    mended_ns = monotonic_ns()
    row.undo(scene)
    return mended_ns


def flows(witness: Witness) -> bool:
    """Whether nothing but actions was sent for a while, at about the rate that was promised."""
    sent = witness.since(monotonic_ns() - to_ns(FLOWS_S))
    return len(sent) >= 0.7 * FLOWS_S * HZ and all(command.kind == "action" for command in sent)


def notice(row: Row, scene: Scene, witness: Witness, broken_ns: int, outcome: Outcome) -> None:
    """When and by what it was noticed."""

    def seen() -> bool:
        found = first_sign(row, scene, witness, broken_ns)
        if found is not None:
            outcome.detected_ms, outcome.detected_by = round((found[0] - broken_ns) / NS_PER_MS, 1), found[1]
        return found is not None

    witness.until(seen, SHOWN_S)


def first_sign(row: Row, scene: Scene, witness: Witness, broken_ns: int) -> tuple[int, str] | None:
    """Time and words of the first sign; None while there is none."""
    if row.must == "robot holds":
        said = witness.said("arm")
        held = said.state == "holding" and said.time_ns >= broken_ns
        return (said.time_ns, "the arm's own watchdog, or a last hold") if held else None
    if row.must == "go on":
        shown = row.shows is not None and row.shows(scene, witness.said)
        return (monotonic_ns(), "report or log") if shown else None
    signs = witness.since(broken_ns, "action" if row.must == "gate" else "hold")
    sign: Command | None = next((command for command in signs if command.reason), None)
    return None if sign is None else (sign.time_ns, sign.reason)


def count(row: Row, witness: Witness, broken_ns: int, end_ns: int, outcome: Outcome) -> None:
    """What was sent while the fault lasted, and the state that it led to."""
    actions, holds = ([c for c in witness.since(broken_ns, kind) if c.time_ns <= end_ns] for kind in ("action", "hold"))
    outcome.actions, outcome.holds = len(actions), len(holds)
    outcome.actions_after_bound = sum(command.time_ns > broken_ns + to_ns(BOUND_S) for command in actions)
    who = "arm" if row.must == "robot holds" else "control"
    outcome.state = (
        f"{who}: {witness.said(who).state}" if row.must != "hold at times" else "control: hold, then running"
    )


def recover(row: Row, scene: Scene, witness: Witness, mended_ns: int, outcome: Outcome) -> None:
    """How long it takes until the robot moves as before; where nobody commands it any more, that nobody is left."""
    if row.must == "robot holds":
        if not witness.until(lambda: not scene.pids(), GONE_S):
            outcome.broken.append(f"processes are left: {scene.pids()}")
        return
    if row.must in ("go on", "gate"):
        outcome.recovery_ms = 0.0
        return
    if witness.until(lambda: bool(witness.since(mended_ns, "action")), RECOVERY_S):
        outcome.recovery_ms = round((witness.since(mended_ns, "action")[0].time_ns - mended_ns) / NS_PER_MS, 1)


def passed(row: Row, outcome: Outcome) -> bool:
    """Whether all that must follow did."""
    if outcome.detected_ms is None or outcome.broken:
        return False
    in_time = row.must in ("go on", "gate") or outcome.detected_ms <= BOUND_S * 1e3
    quiet = row.must not in ("hold", "robot holds") or outcome.actions_after_bound == 0
    return in_time and quiet and (row.must == "robot holds" or outcome.recovery_ms is not None)


def as_table(result: Result) -> Table:
    """For people."""
    title = f"trimvla faults: hold within {result['bound_ms']:.0f} ms, {result['seconds']:.0f} s in all"
    table = Table(title=title, title_justify="left")
    for column in ("fault", "noticed ms", "by", "state", "actions", "holds", "recovery ms", "broken", "ok"):
        table.add_column(column, overflow="fold")
    for row in result["rows"]:
        recovery = "by a person" if row["must"] == "robot holds" else _number(row["recovery_ms"])
        noticed = _number(row["detected_ms"])
        cells = (row["fault"], noticed, row["detected_by"][:80], row["state"], str(row["actions"]), str(row["holds"]))
        table.add_row(*cells, recovery, str(len(row["broken"])), "yes" if row["ok"] else styled("no", "red"))
    return table


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"
