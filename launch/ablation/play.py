"""The episodes of `trimvla ablate`: all rows play the same seeds, and every outcome is kept as it
comes.

Knows bundles by their folders and rows by their names; a run that was stopped reads back what was
played.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec

from trimvla.launch.console import Progress
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_like import PolicyLike
from trimvla.sim.evaluation import rollout
from trimvla.sim.evaluation.rollout import PairedOutcomes, Setting
from trimvla.sim.evaluation.success import Outcome
from trimvla.sim.evaluation.workers import spread

OUTCOMES = "outcomes.jsonl"


def play(
    made: Mapping[str, Path],
    setting: Setting,
    seeds: range,
    *,
    workers: int,
    work: Path,
    progress: Progress,
) -> dict[str, list[Outcome]]:
    """Let some rows play the same seeds.

    Args:
        made: row -> its bundle.
        setting: the task and its pace.
        seeds: of the episodes.
        workers: processes that play.
        work: the folder of the outcomes; there, what these bundles played before is read back.
        progress: gets a bar.

    Returns:
        Row -> its outcomes, in the order of the seeds.
    """
    what = repr(([(name, fingerprint(path)) for name, path in made.items()], setting))
    path = work / f"{hashlib.sha256(what.encode()).hexdigest()[:12]}-{OUTCOMES}"
    rounds = read_rounds(path)
    left = [seed for seed in seeds if seed not in rounds]
    task = progress.add_task(
        f"episodes of {len(made)} rows", total=len(seeds), completed=len(seeds) - len(left)
    )
    with path.open("a") as file:
        for played in spread(
            partial(rollout.play, partial(open_all, dict(made)), setting), left, workers
        ):
            rounds[next(iter(played.values())).seed] = played
            file.write(
                json.dumps({name: asdict(outcome) for name, outcome in played.items()}) + "\n"
            )
            file.flush()
            progress.advance(task)
    return {name: [rounds[seed][name] for seed in seeds] for name in made}


def fingerprint(bundle: Path) -> str:
    """sha256 of a bundle's graphs."""
    digest = hashlib.sha256()
    for path in sorted(bundle.glob("*.onnx")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_rounds(path: Path) -> dict[int, PairedOutcomes]:
    """Seeds that were played; a line that was cut off is not counted."""
    rounds: dict[int, PairedOutcomes] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            played = msgspec.json.decode(line, type=PairedOutcomes)
        except (ValueError, msgspec.DecodeError):
            continue
        rounds[next(iter(played.values())).seed] = played
    return rounds


@contextmanager
def open_all(made: Mapping[str, Path]) -> Iterator[Mapping[str, PolicyLike]]:
    """All bundles, in a process that plays."""
    actors: dict[str, Policy] = {name: Policy.load(path, threads=1) for name, path in made.items()}
    try:
        yield actors
    finally:
        for actor in actors.values():
            actor.close()
