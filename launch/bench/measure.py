"""One whole measurement of `trimvla bench`: bundles, sockets and torch twins are opened and take
turns.

Knows how the parts are put together; the parts are measured by `turns`, and read by `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.floor import Floor, Machine, better, measure_machine
from trimvla.launch.bench.options import OWN_SIZE, BenchArgs
from trimvla.launch.bench.peers.peer import peer_subjects
from trimvla.launch.bench.socket_layer import socket_policy
from trimvla.launch.bench.subjects import (
    UNMEASURED,
    BenchBundle,
    BenchInput,
    bundle_floors,
    named_subjects,
    open_bench_bundles,
    own_subject,
    torch_subjects,
    with_dense,
)
from trimvla.launch.bench.turns import Samples, Subject
from trimvla.launch.console import Console, progress_bar
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """What came of it; `notes` list what was left out and why."""

    subjects: list[Subject]
    samples: Samples
    machine: Machine
    floors: dict[str, dict[str, Floor]]
    runs_on: dict[str, dict[str, str]]
    also_runs_on: dict[str, dict[str, dict[str, str]]]
    resent: int
    parts: dict[str, float]
    """Of L3, of the bundle itself [ms]."""
    notes: list[str]


def measure(args: BenchArgs, stack: ExitStack) -> Measured:
    """Open everything, let all take turns; `stack` closes it."""
    notes: list[str] = []
    shape = picture_shape(args)
    given = BenchInput(np.random.default_rng(0).integers(0, 256, shape, np.uint8), args.instruction)
    entries = open_bench_bundles(
        args.bundle, args.against, args.backend, args.threads, stack, args.provider
    )
    sockets = [
        stack.enter_context(
            socket_policy(
                entry.directory,
                given.image,
                given.instruction,
                backend=args.backend,
                provider=args.provider,
                threads=args.threads,
            )
        )
        for entry in entries
    ]
    twins = baselines(args, entries, given, stack, notes)
    others = named_subjects(
        with_dense(args.also, args.against, args.backend), args.threads, given, stack
    )
    peers = peer_subjects(args.peer, entries[0], args.threads, given, stack)
    for socket in sockets:
        socket.connect()
    own = [
        own_subject(entry, socket, args.backend, given)
        for entry, socket in zip(entries, sockets, strict=True)
    ]
    subjects = [*own, *twins, *peers, *(subject for subject, _ in others)]
    before = measure_machine(args.threads)
    samples = take_turns(subjects, args)
    machine = better(before, measure_machine(args.threads))
    return Measured(
        subjects,
        samples,
        machine,
        floors={entry.name: known_floors(entry, given, machine, notes) for entry in entries},
        runs_on=entries[-1].policy.describe(),
        also_runs_on={subject.name: entry.policy.describe() for subject, entry in others},
        resent=sum(socket.resent for socket in sockets),
        parts=sockets[-1].parts(),
        notes=notes,
    )


def picture_shape(args: BenchArgs) -> tuple[int, int, int]:
    """Height, width and channels of the image that everybody gets."""
    if args.picture == OWN_SIZE:
        return *manifest.load(manifest.resolve(args.bundle)).images.shape, 3
    width, height = map(int, args.picture.split("x"))
    return height, width, 3


def baselines(
    args: BenchArgs,
    entries: Sequence[BenchBundle],
    given: BenchInput,
    stack: ExitStack,
    notes: list[str],
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
                entries, args.torch_backends, args.threads, given, stack, selector=args.selector
            )
            found.extend(twins)
    except UNMEASURED as error:
        if args.baselines != "auto":
            raise
        notes.append(f"Not measured in torch: {error}")
    return found


def known_floors(
    entry: BenchBundle, given: BenchInput, machine: Machine, notes: list[str]
) -> dict[str, Floor]:
    """The entry's floors; a note where they are not known."""
    try:
        return bundle_floors(entry, given, machine)
    except ConfigError as error:
        notes.append(f"No floor for '{entry.name}': {error}")
        return {}


def take_turns(subjects: Sequence[Subject], args: BenchArgs) -> Samples:
    """All turns, with a progress bar."""
    with progress_bar(counts=True) as progress:
        bar = progress.add_task("turns", total=args.warmup + args.rounds)
        return benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: progress.update(bar, completed=turn),
        )
