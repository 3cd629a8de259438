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
from trimvla.launch.bench.subjects import BenchBundle, BenchInput, open_bench_bundle, torch_subjects
from trimvla.launch.bench.turns import COMPILED, EAGER, Samples, Subject
from trimvla.launch.console import Progress

INSTRUCTION = "pick up the red cube"
CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it


def take_times(
    args: AblateArgs, made: Mapping[str, Path], progress: Progress
) -> tuple[Samples, list[Subject]]:
    """All rows in turns: ONNX Runtime, eager torch and, but for controls, compiled torch."""
    image = np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8)
    given = BenchInput(image, INSTRUCTION)
    with ExitStack() as stack:
        entries = [
            replace(
                open_bench_bundle(str(path), "onnxruntime", args.threads, stack),
                dense=name == DENSE,
                name=name,
            )
            for name, path in made.items()
        ]
        subjects = [own(entry, given) for entry in entries]
        task = progress.add_task("torch", total=None)
        subjects += torch_subjects(entries, (EAGER,), args.threads, given, stack)
        if args.compiled:
            compiled = [entry for entry in entries if entry.name in MAIN]
            subjects += torch_subjects(compiled, (COMPILED,), args.threads, given, stack)
        progress.update(task, total=1, completed=1)
        turns = progress.add_task("turns at the clock", total=args.warmup + args.rounds)
        samples = benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: progress.update(turns, completed=turn),
        )
    return samples, subjects


def own(entry: BenchBundle, given: BenchInput) -> Subject:
    """The bundle by ONNX Runtime, without sockets."""
    calls = benchmark.policy_calls(entry.policy, given.of(entry.policy))
    return Subject(entry.name, entry.name, "onnxruntime", entry.dense, calls)
