"""`trimvla bench`: where the time of one action chunk goes, layer by layer, beside the dense policy
and beside torch.

Wires the parts: bundles and their torch twins (`bench_subjects`) take turns (`export.benchmark`),
each stage gets its floor (`export.floor`), and the policy's real process answers over its sockets
(`bench_socket`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.floor import Floor, Machine, better, measure_machine
from trimvla.launch.bench.report import (
    SAMPLES_AS,
    as_cost,
    as_table,
    breakdown,
    doubts,
    explain,
    own_parts,
    write_samples,
)
from trimvla.launch.bench.results import BenchResult, RandomResult, figures_of
from trimvla.launch.bench.socket_layer import socket_policy
from trimvla.launch.bench.subjects import (
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
from trimvla.launch.bench.turns import COMPILED, EAGER, Cell, Samples, Subject
from trimvla.launch.console import Console, progress_bar
from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import ConfigError

OWN_SIZE = "policy"
BASELINES = {"none": (), "eager": (EAGER,), "all": (EAGER, COMPILED)}
Baselines = Literal["auto", "none", "eager", "all"]


@dataclass(frozen=True)
class Args(PlanCounts, Options):
    """Measure a bundle's latency layer by layer; with --against, beside the dense bundle and the
    dense torch policy.
    """

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    against: str | None = None
    """The dense bundle that it is compared with, turn by turn; a ratio above 1 is faster than
    it.
    """

    also: tuple[str, ...] = ()
    """More bundles in the same turns, each as BUNDLE@BACKEND (such as
    tabletop-trimmed@openvino:bf16), L0 to L2; with --against the dense bundle on each of these
    backends too.
    """

    instruction: str = "pick up the red cube"
    """What the policy is asked."""

    picture: str = OWN_SIZE
    """Size of the camera's image: the policy's own, as the demo's camera and one with `side` give
    it; or 640x480.
    """

    rounds: int = 50
    """Turns that count."""

    warmup: int = 5
    """Turns before them that do not."""

    backend: str = "onnxruntime"
    """What executes the stages: onnxruntime, openvino, tensorrt, tensorrt-rtx, or module:attribute
    of your own (docs/guides/own-backend.md).
    """

    provider: str | None = None
    """What executes inside the backend, such as CUDAExecutionProvider of ONNX Runtime (default: the
    CPU).
    """

    threads: int = 1
    """Threads of an operator, in every backend; 0 takes all cores."""

    baselines: Baselines = "auto"
    """The same policies in eager torch, and in compiled torch too: `auto` is `all` with --against,
    if torch and the checkpoint are there, else `none`. Compiling takes minutes, but only once on a
    machine.
    """

    selector: str | None = None
    """The token selector of somebody's own that the bundle's plan names, module:attribute; it is
    imported only where it is named here (docs/guides/own-token-selector.md).
    """

    random_weights: bool = False
    """Instead of a bundle: the stages of `preset` at full size with random weights, one in memory
    at a time. It is exported to out/random/ first, and kept there; only the graphs are timed.
    """

    preset: str = "cogact-base"
    """With random weights: which policy, cogact-small, cogact-base, cogact-large or tabletop."""

    dtype: str = "float16"
    """Likewise: float32, float16 or bfloat16."""

    samples: Path | None = None
    """Also write the time of every single turn here: .npz or .json."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to measure, or nowhere to write it."""
        if self.rounds < 1 or self.warmup < 0:
            raise ConfigError(
                f"expected --rounds >= 1 and --warmup >= 0, got {self.rounds} and {self.warmup}"
            )
        if self.picture != OWN_SIZE and not re.fullmatch(
            r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.picture
        ):
            raise ConfigError(
                f"expected a size such as 640x480, or {OWN_SIZE}, for --picture,"
                f" got {self.picture!r}"
            )
        if self.threads < 0:
            raise ConfigError(f"expected --threads >= 0, got {self.threads}")
        if self.samples is not None and self.samples.suffix not in SAMPLES_AS:
            raise ConfigError(
                f"expected {' or '.join(SAMPLES_AS)} at the end of --samples, got {self.samples}"
            )
        alone = (self.bundle, self.against, self.baselines, self.samples) == (
            "tabletop",
            None,
            "auto",
            None,
        )
        if self.random_weights and not alone:
            raise ConfigError(
                "expected --random-weights without a bundle, --against, --baselines and --samples"
            )
        if self.counted and not self.random_weights:
            raise ConfigError(
                "expected --layers, --mlp-keep, --tokens and --cache-interval with --random-weights"
                " only"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        kept = Output(
            "--random-weights, which keeps its bundle there", Path("out/random"), folder=True
        )
        return Output("--samples", self.samples), *([kept] if self.random_weights else [])

    @property
    def torch_backends(self) -> tuple[str, ...]:
        """The baselines that are to be measured."""
        asked = (
            ("none" if self.against is None else "all")
            if self.baselines == "auto"
            else self.baselines
        )
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
    parts: dict[str, float]
    """Of L3, of the bundle itself [ms]."""
    notes: list[str]


def run(args: Args) -> BenchResult | RandomResult:
    """Measure; the rows, and a table for people."""
    terminate_as_interrupt()
    if args.random_weights:
        return full_size(args)
    with ExitStack() as stack:
        measured = measure(args, stack)
    if args.samples is not None:
        write_samples(measured.samples, args.samples)
    result = summarise(args, measured)
    console = args.console()
    console.print(as_table(result))
    console.print(as_cost(result))
    for line in explain(result):
        console.print(line)
    return result


def full_size(args: Args) -> RandomResult:
    """Random weights: another export under every name, measured stage by stage."""
    from trimvla.launch.bench.random_weights import PLACE, Turns, run_random
    from trimvla.launch.exporting.work import ExportArgs

    asked = ExportArgs(
        json=args.json,
        out=PLACE / "-".join((args.preset, *args.short_names, args.dtype)),
        preset=args.preset,
        random_weights=True,
        dtype=args.dtype,
        **args.kept,
        tokens=args.tokens,
    )
    return run_random(asked, Turns(args.backend, args.threads, args.rounds, args.warmup))


def measure(args: Args, stack: ExitStack) -> Measured:
    """Open everything, let all take turns; `stack` closes it."""
    notes: list[str] = []
    shape = picture_shape(args)
    asked = Asked(np.random.default_rng(0).integers(0, 256, shape, np.uint8), args.instruction)
    parties = open_parties(
        args.bundle, args.against, args.backend, args.threads, stack, args.provider
    )
    sockets = [
        stack.enter_context(
            socket_policy(
                party.directory,
                asked.picture,
                asked.instruction,
                backend=args.backend,
                provider=args.provider,
                threads=args.threads,
            )
        )
        for party in parties
    ]
    twins = baselines(args, parties, asked, stack, notes)
    others = named_subjects(
        with_dense(args.also, args.against, args.backend), args.threads, asked, stack
    )
    for socket in sockets:
        socket.connect()
    own = [
        own_subject(party, socket, args.backend, asked)
        for party, socket in zip(parties, sockets, strict=True)
    ]
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
        parts=sockets[-1].parts(),
        notes=notes,
    )


def picture_shape(args: Args) -> tuple[int, int, int]:
    """Height, width and channels of the image that everybody gets."""
    if args.picture == OWN_SIZE:
        side = manifest.load(manifest.resolve(args.bundle)).images.size
        return side, side, 3
    width, height = map(int, args.picture.split("x"))
    return height, width, 3


def baselines(
    args: Args, parties: Sequence[Party], asked: Asked, stack: ExitStack, notes: list[str]
) -> list[Subject]:
    """The torch twins. With `auto`, what cannot be measured becomes a note instead of an error."""
    found: list[Subject] = []
    if not args.torch_backends:
        return found
    try:
        with Console(stderr=True).status(
            "torch: compiling takes minutes, the first time on a machine"
        ):
            twins = torch_subjects(
                parties, args.torch_backends, args.threads, asked, stack, selector=args.selector
            )
            found.extend(twins)
    except UNMEASURED as error:
        if args.baselines != "auto":
            raise
        notes.append(f"Not measured in torch: {error}")
    return found


def known_floors(
    party: Party, asked: Asked, machine: Machine, notes: list[str]
) -> dict[str, Floor]:
    """The party's floors; a note where they are not known."""
    try:
        return party_floors(party, asked, machine)
    except ConfigError as error:
        notes.append(f"No floor for '{party.name}': {error}")
        return {}


def take_turns(subjects: Sequence[Subject], args: Args) -> Samples:
    """All turns, with a progress bar."""
    with progress_bar(counts=True) as progress:
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


def summarise(args: Args, measured: Measured) -> BenchResult:
    """Everything that was measured."""
    rows = benchmark.rows(measured.subjects, measured.samples, measured.floors)
    whole = (
        one for one in reversed(measured.subjects) if "L3" in layers(measured.samples[one.name])
    )
    cells = measured.samples[next(whole).name]
    costs = np.subtract(cells["L3", benchmark.TOTAL], cells["L0", benchmark.TOTAL]).tolist()
    low, high = benchmark.median_interval(costs)
    parts = breakdown(cells, measured.parts)
    return BenchResult(
        ok=True,
        bundle=args.bundle,
        against=args.against,
        rounds=args.rounds,
        threads=args.threads,
        backends=tuple(dict.fromkeys(subject.backend for subject in measured.subjects)),
        runs_on=measured.runs_on,
        also_runs_on=measured.also_runs_on,
        machine=figures_of(measured.machine),
        picture=args.picture,
        runtime_cost_ms=benchmark.over_l0(cells, "L3"),
        runtime_cost_interval_ms=(round(low, 3), round(high, 3)),
        own_parts_ms=own_parts(parts),
        breakdown=parts,
        notes=(*measured.notes, *doubts(rows, measured.asked_again)),
        samples=args.samples,
        rows=rows,
    )
