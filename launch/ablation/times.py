"""The clock of an ablation: all rows take turns, in ONNX Runtime and in torch.

Knows bundles by their rows; nothing of what they play.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from trimvla.launch.ablation.options import AblateArgs
from trimvla.launch.ablation.rows import DENSE, MAIN
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.subjects import Asked, Party, open_party, torch_subjects
from trimvla.launch.bench.turns import COMPILED, EAGER, Samples, Subject
from trimvla.launch.console import Progress

INSTRUCTION = "pick up the red cube"
CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it


def take_times(
    args: AblateArgs, made: Mapping[str, Path], progress: Progress
) -> tuple[Samples, list[Subject]]:
    """All rows in turns: ONNX Runtime, eager torch and, but for controls, compiled torch."""
    picture = np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8)
    asked = Asked(picture, INSTRUCTION)
    with ExitStack() as stack:
        parties = [
            replace(
                open_party(str(path), "onnxruntime", args.threads, stack),
                dense=name == DENSE,
                name=name,
            )
            for name, path in made.items()
        ]
        subjects = [own(party, asked) for party in parties]
        task = progress.add_task("torch", total=None)
        subjects += torch_subjects(parties, (EAGER,), args.threads, asked, stack)
        if args.compiled:
            compiled = [party for party in parties if party.name in MAIN]
            subjects += torch_subjects(compiled, (COMPILED,), args.threads, asked, stack)
        progress.update(task, total=1, completed=1)
        turns = progress.add_task("turns at the clock", total=args.warmup + args.rounds)
        samples = benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: progress.update(turns, completed=turn),
        )
    return samples, subjects


def own(party: Party, asked: Asked) -> Subject:
    """The bundle by ONNX Runtime, without sockets."""
    calls = benchmark.policy_calls(party.policy, asked.of(party.policy))
    return Subject(party.name, party.name, "onnxruntime", party.dense, calls)
