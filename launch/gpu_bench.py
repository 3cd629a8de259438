"""`trimvla gpu-bench`: a full-size policy of random weights on the GPU that is there, dense and under published plans.

One command for whoever has the hardware: eager torch, compiled torch and CUDA graphs take turns, each stage and all of
them; results are written as they come, so that a run that is cut short leaves what it has. Needs torch and msgspec
beside NumPy, rich and matplotlib; `launch/gpu_bench.sh` runs it without an installation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from trimvla.export import benchmark
from trimvla.export.benchmark import Samples, Subject, Times
from trimvla.export.floor import Floor, Machine, floors, shortest
from trimvla.export.gpu_policy import (
    COMPILED,
    EAGER,
    WAYS,
    DevicePolicy,
    Run,
    Way,
    device_inputs,
    plan_by_counts,
    random_policy,
)
from trimvla.launch.gpu_report import as_table, draw
from trimvla.launch.options import Options, Result
from trimvla.policies.cogact import CogAct
from trimvla.policies.config import PolicyConfig, find_preset
from trimvla.runtime.errors import BackendError, ConfigError
from trimvla.runtime.plan import Plan

DENSE = "dense"
# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP and interval 5.
PUBLISHED = ((22, 56), (28, 112), (28, 56), (22, 112))
MLP_KEEP, INTERVAL = 0.75, 5
SQUARE, COPIED = 8192, 2**30  # of the product and of the copy that measure a GPU; elements and bytes
TRIAL_S = 0.3
CHOICES = tuple(way.name for way in WAYS)


@dataclass(frozen=True)
class Args(Options):
    """Latency of a full-size policy on a GPU, with random weights: dense and trimmed, eager, compiled and captured."""

    preset: str = "cogact-base"
    """Which policy: cogact-small, cogact-base, cogact-large or tabletop."""

    out: Path = Path("benchmarks")
    """Folder of `gpu-<device>.json` and `.png`."""

    seconds: float = 420.0
    """Time for everything: past it, what is not yet prepared is left out and named in the notes."""

    rounds: int = 100
    """Turns that count."""

    warmup: int = 10
    """Turns before them that do not."""

    device: str = "cuda"
    """`cpu` is for trying the command; it has no graphs."""

    layers: tuple[int, ...] = ()
    """Language layers of the plans, beside `tokens`, where the preset is no CogACT."""

    tokens: tuple[int, ...] = ()
    """Visual tokens of the plans."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be measured."""
        if self.rounds < 1 or self.warmup < 0 or self.seconds <= 0:
            given = f"{self.rounds}, {self.warmup} and {self.seconds:g}"
            raise ConfigError(f"expected --rounds >= 1, --warmup >= 0 and --seconds > 0, got {given}")
        if len(self.layers) != len(self.tokens):
            raise ConfigError(f"expected as many --layers as --tokens, got {len(self.layers)} and {len(self.tokens)}")
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"expected 'cuda' or 'cpu' for --device, got {self.device!r}")

    @property
    def plans(self) -> tuple[tuple[int, int], ...]:
        """Layers and tokens of each plan."""
        return tuple(zip(self.layers, self.tokens, strict=True)) if self.layers else PUBLISHED


@dataclass
class Bench:
    """Everything that is measured, as it grows."""

    cfg: PolicyConfig
    args: Args
    started: float = field(default_factory=time.monotonic)
    subjects: list[Subject] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def left_s(self) -> float:
        """Seconds that are left."""
        return self.args.seconds - (time.monotonic() - self.started)


def run(args: Args) -> Result:
    """Prepare, measure, write."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("expected a GPU that torch can use, found none; --device cpu tries the command without one")
    bench = Bench(find_preset(args.preset), args)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    machine = measure_device(args.device, dtype)
    prepare(bench, random_policy(bench.cfg, args.device, dtype))
    bench.notes += missing_backends()
    samples = benchmark.measure(bench.subjects, rounds=args.rounds, warmup=args.warmup)
    result = summarise(bench, samples, machine, dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    slug = "".join(letter if letter.isalnum() else "-" for letter in result["device"].lower())
    (args.out / f"gpu-{slug}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, args.out / f"gpu-{slug}.png")
    args.console().print(as_table(result))
    for note in result["notes"]:
        args.console().print(note, highlight=False, markup=False)
    return result


def prepare(bench: Bench, dense: CogAct) -> None:
    """All policies in all ways, the ones that targets speak of first."""
    inputs = device_inputs(bench.cfg, bench.args.device)
    for name, plan, way in wanted(bench):
        if bench.left_s() < bench.args.seconds / 4 and way.compiled:
            bench.notes.append(f"{name} by {way.name}: left out, {bench.args.seconds:g} s are nearly over")
            continue
        start = time.monotonic()
        try:
            policy = DevicePolicy(dense, plan, way, inputs)
            peak = activation_bytes(policy, bench.args.device)
        except RuntimeError as error:
            bench.notes.append(f"{name} by {way.name}: {next(iter(str(error).splitlines()), 'failed')}")
            continue
        subject = f"{name}@{way.name}"
        bench.plans[name] = plan
        bench.sizes[subject] = {"parameters": policy.parameters, "activation_bytes": peak}
        bench.subjects.append(
            Subject(subject, name, way.name, name == DENSE, (timed_calls(policy, bench.args.device),))
        )
        print(f"{subject}: ready after {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def wanted(bench: Bench) -> Iterator[tuple[str, Plan, Way]]:
    """Name, plan and way, in the order of their weight."""
    (layers, tokens), *others = bench.args.plans
    ways = WAYS if bench.args.device == "cuda" else (EAGER, COMPILED)
    made = {f"L{n} T{t}": plan_by_counts(bench.cfg, n, t, MLP_KEEP, INTERVAL) for n, t in ((layers, tokens), *others)}
    main = {DENSE: Plan(), f"L{layers} T{tokens}": made[f"L{layers} T{tokens}"]}
    yield from ((name, plan, way) for way in ways for name, plan in main.items())
    rest = {name: plan for name, plan in made.items() if name not in main}
    yield from ((name, plan, way) for way in ways if not way.compiled for name, plan in rest.items())


def timed_calls(policy: DevicePolicy, device: str) -> benchmark.Call:
    """L0 of every stage, and of all in one go; each waits for the device."""

    def call(turn: int) -> Times:
        with torch.inference_mode():
            return {("L0", name): benchmark.timed(waiting(run, device)) for name, run in policy.runs.items()}

    return call


def waiting(run: Run, device: str) -> Run:
    """The call, over when the device is done; begun when it has nothing else to do."""
    if device == "cpu":
        return run
    torch.cuda.synchronize()

    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return whole


def activation_bytes(policy: DevicePolicy, device: str) -> int:
    """Most memory that one run takes beyond what lies there before it; 0 where a graph holds it already."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    policy.actions()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_device(device: str, dtype: torch.dtype) -> Machine:
    """Peak of a large matrix product and bandwidth of a copy (read and write counted), by torch."""
    side, size = (SQUARE, COPIED) if device == "cuda" else (1024, 2**26)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def product() -> None:
        torch.mm(a, b)
        _ = torch.cuda.synchronize() if device == "cuda" else None

    def copy() -> None:
        target.copy_(source)
        _ = torch.cuda.synchronize() if device == "cuda" else None

    return Machine(2 * side**3 / shortest(product, TRIAL_S) / 1e9, 2 * size / shortest(copy, TRIAL_S) / 1e9, 1)


def missing_backends() -> list[str]:
    """One line for each backend that this machine lacks."""
    notes = []
    try:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            notes.append("ONNX Runtime CUDA: not measured, this onnxruntime has no CUDA provider")
    except ImportError:
        notes.append("ONNX Runtime CUDA: not measured, onnxruntime is not installed")
    if find_spec("tensorrt") is None:
        notes.append("TensorRT: not measured, tensorrt is not installed")
    return notes


def to_compiled(bench: Bench, samples: Samples, row: Result) -> float | None:
    """Time of the compiled dense policy over the row's, turn by turn: the median; None where it was not measured."""
    cell = (row["layer"], row["part"])
    dense = benchmark.dense_samples(bench.subjects, samples, COMPILED.name, cell)
    return None if dense is None else round(float(np.median(np.divide(dense, samples[row["subject"]][cell]))), 4)


def summarise(bench: Bench, samples: Samples, machine: Machine, dtype: torch.dtype) -> Result:
    """The rows of `benchmark.rows`, with ratios to the compiled dense policy, sizes and floors."""
    width = torch.empty(0, dtype=dtype).element_size()
    prompt = bench.cfg.prompt.buckets[0]
    below: dict[str, dict[str, Floor]] = {
        name: floors(bench.cfg, plan, prompt, machine, weight_bytes=width) for name, plan in bench.plans.items()
    }
    rows = [
        row | bench.sizes[row["subject"]] | {"ratio_to_compiled_dense": to_compiled(bench, samples, row)}
        for row in benchmark.rows(bench.subjects, samples, below)
    ]
    return {
        "ok": True,
        "preset": bench.args.preset,
        "device": torch.cuda.get_device_name() if bench.args.device == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "rounds": bench.args.rounds,
        "seconds": round(time.monotonic() - bench.started, 1),
        "machine": {"gflops": round(machine.gflops, 1), "gbytes_per_s": round(machine.gbytes_per_s, 1)},
        "notes": bench.notes,
        "rows": rows,
    }


if __name__ == "__main__":
    run(Args(out=Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks")))
