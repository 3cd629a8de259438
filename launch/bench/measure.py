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
    Asked,
    Party,
    named_subjects,
    open_parties,
    own_subject,
    party_floors,
    torch_subjects,
    with_dense,
)
from trimvla.launch.bench.turns import Samples, Subject
from trimvla.launch.console import Console, progress_bar
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """What came of it; `notes` say what was left out and why."""

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
    peers = peer_subjects(args.peer, parties[0], args.threads, asked, stack)
    for socket in sockets:
        socket.connect()
    own = [
        own_subject(party, socket, args.backend, asked)
        for party, socket in zip(parties, sockets, strict=True)
    ]
    subjects = [*own, *twins, *peers, *(subject for subject, _ in others)]
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
        resent=sum(socket.resent for socket in sockets),
        parts=sockets[-1].parts(),
        notes=notes,
    )


def picture_shape(args: BenchArgs) -> tuple[int, int, int]:
    """Height, width and channels of the image that everybody gets."""
    if args.picture == OWN_SIZE:
        side = manifest.load(manifest.resolve(args.bundle)).images.size
        return side, side, 3
    width, height = map(int, args.picture.split("x"))
    return height, width, 3


def baselines(
    args: BenchArgs, parties: Sequence[Party], asked: Asked, stack: ExitStack, notes: list[str]
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
