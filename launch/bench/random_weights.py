"""`trimvla bench --random-weights`: the stages of a policy at its full size, without a checkpoint,
one at a time.

Latency does not depend on the weights' values. The bundle is exported once and kept; then each
stage is loaded alone, takes its turns and is closed, so that the largest stage must fit into
memory, not the policy. Only the graphs are timed (layer L0): beside graphs of this size the runtime
is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.floor import better, floors, measure_machine
from trimvla.launch.bench.report import MEANING, as_table
from trimvla.launch.bench.results import RandomResult, figures_of
from trimvla.launch.bench.turns import TOTAL, Samples, Subject, timed
from trimvla.launch.console import Console
from trimvla.launch.exporting.options import ExportArgs
from trimvla.launch.exporting.work import run as export
from trimvla.policies.families import family_of, parse_config
from trimvla.policies.sizes.memory import PRECISIONS
from trimvla.runtime.backends.runner import Runner, create
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import PLAIN, Manifest, StageSpec

PLACE = Path("out/random")
WIDENED = (
    "ONNX Runtime's CPU has no kernels for half precision: every weight is widened in every turn,"
    " so that the file is all the memory that is needed. On a CPU read these times as an upper"
    " limit."
)


@dataclass(frozen=True)
class Turns:
    """How a stage is run."""

    backend: str
    threads: int
    rounds: int
    warmup: int


def run_random(options: ExportArgs, turns: Turns) -> RandomResult:
    """Export where that has not been done, measure each stage."""
    directory = options.out
    if not (directory / bundles.MANIFEST).exists():
        export(options)
    manifest = bundles.load(directory, verify_hashes=False)
    cfg = parse_config(manifest.policy)
    prompt = manifest.buckets[0]
    before = measure_machine(turns.threads)
    samples: Samples = {manifest.name: dict(measure(directory, manifest, cfg, turns))}
    machine = better(before, measure_machine(turns.threads))
    width = int(PRECISIONS[manifest.precision].other)
    below = floors(cfg, manifest.plan, prompt, machine, weight_bytes=width)
    subject = Subject(manifest.name, manifest.name, turns.backend, manifest.plan.dense, ())
    widened = manifest.precision != "float32" and turns.backend == "onnxruntime"
    result = RandomResult(
        ok=True,
        bundle=directory,
        dtype=manifest.precision,
        rounds=turns.rounds,
        threads=turns.threads,
        machine=figures_of(machine),
        notes=(WIDENED,) if widened else (),
        rows=benchmark.rows([subject], samples, {manifest.name: below}),
    )
    show(options.console(), result)
    return result


def show(console: Console, result: RandomResult) -> None:
    """The table, and what its columns are."""
    console.print(as_table(result))
    machine = result.machine
    peak = f"Measured peak {machine.gflops:.0f} GFLOP/s in float32"
    for line in (
        MEANING[-1],
        *result.notes,
        f"{peak}, bandwidth {machine.gbytes_per_s:.1f} GB/s.",
        f"Kept for the next time: {result.bundle} (delete it when done).",
    ):
        console.print(line)


def measure(
    directory: Path,
    manifest: Manifest,
    cfg: Any,  # noqa: ANN401
    turns: Turns,
) -> Iterator[tuple[benchmark.Cell, list[float]]]:
    """Milliseconds of every turn, stage by stage and of all; each stage gets what the ones before
    it gave.
    """
    generator = torch.Generator().manual_seed(0)
    example = family_of(cfg).example_inputs(cfg, manifest.plan, manifest.buckets[0], generator)
    arrays = {name: tensor.numpy() for name, tensor in example.items()}
    total = np.zeros(turns.rounds)
    for stage in manifest.modes[PLAIN]:
        took = time_stage(directory, manifest, stage, arrays, turns)
        total += took
        yield ("L0", stage), took.tolist()
    yield ("L0", TOTAL), total.tolist()


def time_stage(
    directory: Path, manifest: Manifest, stage: str, arrays: dict[str, np.ndarray], turns: Turns
) -> np.ndarray:
    """Load a stage, run it, add its outputs to the arrays, let go of it."""
    spec = manifest.stages[stage]
    inputs: Mapping[str, np.ndarray] = {tensor.name: arrays[tensor.name] for tensor in spec.inputs}
    with Console(stderr=True).status(f"{stage}: loading, then {turns.warmup + turns.rounds} turns"):
        runner = load(directory / spec.file, spec, manifest.precision, turns)
        took = [
            timed(lambda: arrays.update(runner.run(inputs)))
            for _ in range(turns.warmup + turns.rounds)
        ]
        runner.close()
    return np.array(took[turns.warmup :])


def load(path: Path, spec: StageSpec, precision: str, turns: Turns) -> Runner:
    """The backend's runner; on a CPU, a frugal one for what ONNX Runtime would widen as a whole."""
    if turns.backend != "onnxruntime" or precision == "float32":
        return create(turns.backend, path, spec, threads=turns.threads)
    from trimvla.runtime.backends.ort_runner import OrtRunner

    return OrtRunner(path, spec, threads=turns.threads, frugal=True)
