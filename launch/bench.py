"""`trimvla bench`: where the time of one action chunk goes, layer by layer, beside the dense policy and beside torch.

Wires the parts: bundles and their torch twins (`bench_subjects`) take turns (`export.benchmark`), each stage gets its
floor (`export.floor`), and the policy's real process answers over its sockets (`bench_socket`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import Positional

from trimvla.export import benchmark
from trimvla.export.benchmark import COMPILED, EAGER, Cell, Samples, Subject
from trimvla.export.floor import Floor, Machine, better, measure_machine
from trimvla.launch.bench_report import SAMPLES_AS, as_table, doubts, explain, write_samples
from trimvla.launch.bench_socket import socket_policy
from trimvla.launch.bench_subjects import (
    UNMEASURED,
    Asked,
    Party,
    named_subjects,
    open_parties,
    own_subject,
    party_floors,
    torch_subjects,
    with_dense,
)
from trimvla.launch.options import Options, Result
from trimvla.launch.supervisor import terminate_as_interrupt
from trimvla.runtime.errors import ConfigError

CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it
BASELINES = {"none": (), "eager": (EAGER,), "all": (EAGER, COMPILED)}
Baselines = Literal["auto", "none", "eager", "all"]


@dataclass(frozen=True)
class Args(Options):
    """Measure a bundle's latency layer by layer; with --against, beside the dense bundle and the dense torch policy."""

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    against: str | None = None
    """The dense bundle that it is compared with, turn by turn; a ratio above 1 is faster than it."""

    also: tuple[str, ...] = ()
    """More bundles in the same turns, each as BUNDLE@BACKEND (such as tabletop-trimmed@openvino:bf16), L0 to L2; with
    --against the dense bundle on each of these backends too."""

    instruction: str = "pick up the red cube"
    """What the policy is asked."""

    rounds: int = 50
    """Turns that count."""

    warmup: int = 5
    """Turns before them that do not."""

    backend: str = "onnxruntime"
    """What executes the stages."""

    threads: int = 1
    """Threads of an operator, in every backend; 0 takes all cores."""

    baselines: Baselines = "auto"
    """The same policies in eager torch, and in compiled torch too: `auto` is `all` with --against, if torch and the
    checkpoint are there, else `none`. Compiling takes minutes, but only once on a machine."""

    samples: Path | None = None
    """Also write the time of every single turn here: .npz or .json."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to measure, or nowhere to write it."""
        if self.rounds < 1 or self.warmup < 0:
            raise ConfigError(f"expected --rounds >= 1 and --warmup >= 0, got {self.rounds} and {self.warmup}")
        if self.threads < 0:
            raise ConfigError(f"expected --threads >= 0, got {self.threads}")
        if self.samples is not None and self.samples.suffix not in SAMPLES_AS:
            raise ConfigError(f"expected {' or '.join(SAMPLES_AS)} at the end of --samples, got {self.samples}")

    @property
    def torch_backends(self) -> tuple[str, ...]:
        """The baselines that are to be measured."""
        asked = ("none" if self.against is None else "all") if self.baselines == "auto" else self.baselines
        return BASELINES[asked]


@dataclass(frozen=True)
class Measured:
    """What came of it; `notes` say what was left out and why."""

    subjects: list[Subject]
    samples: Samples
    machine: Machine
    floors: dict[str, dict[str, Floor]]
    runs_on: dict[str, dict[str, str]]
    also_runs_on: dict[str, dict[str, dict[str, str]]]
    asked_again: int
    notes: list[str]


def run(args: Args) -> Result:
    """Measure; the rows, and a table for people."""
    terminate_as_interrupt()
    with ExitStack() as stack:
        measured = measure(args, stack)
    if args.samples is not None:
        write_samples(measured.samples, args.samples)
    result = summarise(args, measured)
    console = args.console()
    console.print(as_table(result))
    for line in explain(result):
        console.print(line, highlight=False, markup=False)
    return result


def measure(args: Args, stack: ExitStack) -> Measured:
    """Open everything, let all take turns; `stack` closes it."""
    notes: list[str] = []
    asked = Asked(np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8), args.instruction)
    parties = open_parties(args.bundle, args.against, args.backend, args.threads, stack)
    sockets = [
        stack.enter_context(
            socket_policy(party.directory, asked.picture, asked.instruction, backend=args.backend, threads=args.threads)
        )
        for party in parties
    ]
    twins = baselines(args, parties, asked, stack, notes)
    others = named_subjects(with_dense(args.also, args.against, args.backend), args.threads, asked, stack)
    for socket in sockets:
        socket.connect()
    own = [own_subject(party, socket, args.backend, asked) for party, socket in zip(parties, sockets, strict=True)]
    subjects = [*own, *twins, *(subject for subject, _ in others)]
    before = measure_machine(args.threads)
    samples = take_turns(subjects, args)
    machine = better(before, measure_machine(args.threads))
    return Measured(
        subjects,
        samples,
        machine,
        floors={party.name: known_floors(party, asked, machine, notes) for party in parties},
        runs_on=parties[-1].policy.describe(),
        also_runs_on={subject.name: party.policy.describe() for subject, party in others},
        asked_again=sum(socket.asked_again for socket in sockets),
        notes=notes,
    )


def baselines(args: Args, parties: Sequence[Party], asked: Asked, stack: ExitStack, notes: list[str]) -> list[Subject]:
    """The torch twins. With `auto`, what cannot be measured becomes a note instead of an error."""
    found: list[Subject] = []
    if not args.torch_backends:
        return found
    try:
        with Console(stderr=True).status("torch: compiling takes minutes, the first time on a machine"):
            found.extend(torch_subjects(parties, args.torch_backends, args.threads, asked, stack))
    except UNMEASURED as error:
        if args.baselines != "auto":
            raise
        notes.append(f"Not measured in torch: {error}")
    return found


def known_floors(party: Party, asked: Asked, machine: Machine, notes: list[str]) -> dict[str, Floor]:
    """The party's floors; a note where they are not known."""
    try:
        return party_floors(party, asked, machine)
    except ConfigError as error:
        notes.append(f"No floor for '{party.name}': {error}")
        return {}


def take_turns(subjects: Sequence[Subject], args: Args) -> Samples:
    """All turns, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("turns", total=args.warmup + args.rounds)
        return benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: progress.update(bar, completed=turn),
        )


def layers(cells: Mapping[Cell, object]) -> set[str]:
    """The layers that were measured of a subject."""
    return {layer for layer, _ in cells}


def summarise(args: Args, measured: Measured) -> Result:
    """Everything as one JSON-able object."""
    rows = benchmark.rows(measured.subjects, measured.samples, measured.floors)
    own = next(subject for subject in reversed(measured.subjects) if "L3" in layers(measured.samples[subject.name]))
    backends = dict.fromkeys(subject.backend for subject in measured.subjects)
    return {
        "ok": True,
        "bundle": args.bundle,
        "against": args.against,
        "rounds": args.rounds,
        "threads": args.threads,
        "backends": list(backends),
        "runs_on": measured.runs_on,
        "also_runs_on": measured.also_runs_on,
        "machine": {
            "gflops": round(measured.machine.gflops, 1),
            "gbytes_per_s": round(measured.machine.gbytes_per_s, 2),
        },
        "runtime_cost_ms": benchmark.over_l0(measured.samples[own.name], "L3"),
        "notes": [*measured.notes, *doubts(rows, measured.asked_again)],
        "samples": args.samples,
        "rows": rows,
    }
