"""`trimvla gpu-bench`: a full-size policy of random weights on the GPU that is there, dense and
under published plans.

One command for whoever has the hardware: eager torch, compiled torch and CUDA graphs, and what
`--bundles` names in ONNX Runtime and TensorRT, take turns, each stage and all of them. What cannot
run is left out with one line. Everybody is measured once when it is ready and the file is written,
so that a run that is cut short leaves what it has. Needs torch, NumPy and msgspec, no more;
`launch/gpu_bench.sh` runs it without an installation.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.device_policy import (
    COMPILED,
    COMPILED_GRAPH,
    EAGER,
    GRAPH,
    WAYS,
    DevicePolicy,
    Run,
    Way,
    device_inputs,
    random_policy,
)
from trimvla.launch.bench.floor import Floor, Machine, floors, shortest
from trimvla.launch.bench.gpu_report import as_text, draw
from trimvla.launch.bench.results import BenchRow, GpuResult, GpuRow, figures_of
from trimvla.launch.bench.turns import Samples, Subject, Times
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.result import as_plain
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig, find_preset
from trimvla.policies.trimming.plan_by_size import plan_by_sizes
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.manifest import PLAIN
from trimvla.runtime.bundle.mode_problems import external_inputs
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import BackendError, ConfigError, TrimvlaError
from trimvla.runtime.preprocess.observation import blank_observation

DENSE = "dense"
# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP
# and interval 5.
PUBLISHED = ((22, 56), (28, 112), (28, 56), (22, 112))
MLP_KEEP = 0.75
INTERVAL = 5
# of the product and of the copy that measure a GPU; elements and bytes
SQUARE = 8192
COPIED = 2**30
TRIAL_S = 0.3
# Share of the time that must be left for a way to be begun; eager is quick, and everybody is
# compared with it.
SHARES = {COMPILED.name: 1 / 4, GRAPH.name: 1 / 8, COMPILED_GRAPH.name: 1 / 4}
FIRST_ROUNDS = 5  # of the measurement right after a subject is ready
# of the one that counts; and what is left for the files
FEWEST_ROUNDS = 10
RESERVE_S = 20.0
RUNTIMES = (
    ("onnxruntime", "CUDAExecutionProvider"),
    ("onnxruntime", "TensorrtExecutionProvider"),
    ("tensorrt", None),
)


@dataclass(frozen=True)
class Args(Options):
    """Latency of a full-size policy on a GPU, with random weights: dense and trimmed, eager,
    compiled and captured.
    """

    preset: str = "cogact-base"
    """Which policy: cogact-small, cogact-base, cogact-large or tabletop."""

    out: Path = Path("benchmarks")
    """Folder of `gpu-<device>.json` and `.png`."""

    seconds: float = 420.0
    """Time for everything: past it, what is not yet prepared is left out and named in the notes."""

    rounds: int = 100
    """Turns that count, if there is time for so many."""

    warmup: int = 10
    """Turns before them that do not."""

    device: str = "cuda"
    """`cpu` is for trying the command; it has no graphs."""

    layers: tuple[int, ...] = ()
    """Language layers of the plans, beside `tokens`, where the preset is no CogACT."""

    tokens: tuple[int, ...] = ()
    """Visual tokens of the plans."""

    bundles: tuple[Path, ...] = ()
    """Exported bundles, dense first, that ONNX Runtime's GPU providers and TensorRT run beside
    torch.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be measured."""
        if self.rounds < 1 or self.warmup < 0 or self.seconds <= 0:
            given = f"{self.rounds}, {self.warmup} and {self.seconds:g}"
            raise ConfigError(
                f"expected --rounds >= 1, --warmup >= 0 and --seconds > 0, got {given}"
            )
        if len(self.layers) != len(self.tokens):
            raise ConfigError(
                f"expected as many --layers as --tokens, got {len(self.layers)} and"
                f" {len(self.tokens)}"
            )
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"expected 'cuda' or 'cpu' for --device, got {self.device!r}")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)

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
    samples: Samples = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def left_s(self) -> float:
        """Seconds that are left."""
        return self.args.seconds - (time.monotonic() - self.started)

    def add(self, subject: Subject, plan: Plan, sizes: dict[str, int]) -> None:
        """Somebody who is ready, measured a first time."""
        first = benchmark.measure([subject], rounds=FIRST_ROUNDS, warmup=1)
        self.samples |= first
        self.subjects.append(subject)
        self.plans[subject.bundle] = plan
        self.sizes[subject.name] = sizes


def run(args: Args) -> GpuResult:
    """Prepare, measure, write."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "expected a GPU that torch can use, found none; --device cpu tries the command"
            " without one"
        )
    bench = Bench(find_preset(args.preset), args)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    machine = measure_device(args.device, dtype)

    def write() -> GpuResult:
        return write_files(summarise(bench, machine, dtype), args.out)

    prepare(bench, random_policy(bench.cfg, args.device, dtype), write)
    add_bundles(bench, write)
    rounds = affordable_rounds(bench)
    if bench.subjects and rounds:
        bench.samples = benchmark.measure(
            bench.subjects, rounds=rounds, warmup=min(args.warmup, rounds)
        )
    else:
        bench.notes.append(f"no time for turns: every row is of {FIRST_ROUNDS} calls in a row")
    result = write()
    print(as_text(result), file=sys.stderr if args.json else sys.stdout)
    return result


def affordable_rounds(bench: Bench) -> int:
    """Turns that everybody together can still do; 0 where they are too few to say anything."""
    turn_s = (
        sum(min(map(sum, zip(*cells.values(), strict=True))) for cells in bench.samples.values())
        / 1e3
    )
    fit = int((bench.left_s() - RESERVE_S) / max(turn_s, 1e-9)) - bench.args.warmup
    rounds = min(bench.args.rounds, fit)
    return rounds if rounds >= min(FEWEST_ROUNDS, bench.args.rounds) else 0


def write_files(result: GpuResult, out: Path) -> GpuResult:
    """The JSON and, where matplotlib is installed, the image; whole, whenever one looks."""
    out.mkdir(parents=True, exist_ok=True)
    device = result.device.lower()
    slug = "".join(letter if letter.isalnum() else "-" for letter in device)
    beside = out / f".gpu-{slug}.json"
    beside.write_text(json.dumps(as_plain(result), indent=1) + "\n")
    beside.replace(out / f"gpu-{slug}.json")
    if result.rows and find_spec("matplotlib") is not None:
        draw(result, out / f"gpu-{slug}.png")
    return result


def prepare(bench: Bench, dense: CogAct, write: Callable[[], object]) -> None:
    """All policies in all ways, the ones that targets speak of first; what fails is noted, and the
    next one tried."""
    inputs = device_inputs(bench.cfg, bench.args.device)
    policies = {DENSE: dense}  # trimmed once: ways share the weights
    for name, plan, way in wanted(bench):
        if way.name in SHARES and bench.left_s() < bench.args.seconds * SHARES[way.name]:
            bench.notes.append(
                f"{name} by {way.name}: left out, {bench.args.seconds:g} s are nearly over"
            )
            continue
        start = time.monotonic()
        try:
            if name not in policies:
                policies[name] = trim(dense, plan).requires_grad_(False)
            add_policy(bench, name, way, policies[name], inputs)
        # compilers have many kinds of errors, and none of them may end the run
        except Exception as error:
            bench.notes.append(f"{name} by {way.name}: {first_line(error)}")
            continue
        print(
            f"{name}@{way.name}: ready after {time.monotonic() - start:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        write()


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (
        f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
    )


def add_policy(
    bench: Bench, name: str, way: Way, policy: CogAct, inputs: dict[str, torch.Tensor]
) -> None:
    """One policy in one way."""
    device = bench.args.device
    before = reserved_bytes(bench.args.device)
    made = DevicePolicy(policy, way, inputs)
    if not torch.isfinite(made.actions()).all():
        raise BackendError("the actions are not finite")
    peak = reserved_bytes(device) - before if way.graph else activation_bytes(made, device)
    subject = Subject(
        f"{name}@{way.name}", name, way.name, name == DENSE, (timed_calls(made, device),)
    )
    bench.add(subject, policy.plan, {"parameters": made.parameters, "activation_bytes": peak})


def reserved_bytes(device: str) -> int:
    """What torch holds of the device's memory, once it has given back what it does not need."""
    if device == "cpu":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def add_bundles(bench: Bench, write: Callable[[], object]) -> None:
    """Exported bundles in every runtime that is installed; one line for each that is not."""
    if not bench.args.bundles:
        names = ", ".join(f"{backend} {provider or ''}".strip() for backend, provider in RUNTIMES)
        bench.notes.append(f"not measured without --bundles: {names}")
    for index, path in enumerate(bench.args.bundles):
        for backend, provider in RUNTIMES:
            try:
                add_bundle(bench, path, backend, provider, dense=index == 0)
                write()
            except Exception as error:  # not installed, no engine, no memory: the others go on
                bench.notes.append(f"{path.name} by {provider or backend}: {first_line(error)}")


def add_bundle(
    bench: Bench, path: Path, backend: str, provider: str | None, *, dense: bool
) -> None:
    """One bundle on one backend: its chain, from host to host, timed by the backend stage by
    stage.
    """
    from trimvla.runtime.inference.policy import Policy

    policy = Policy.load(path, backend=backend, provider=provider)
    manifest = policy.manifest
    blank = blank_observation(manifest, "pick up the red cube", manifest.images.size)
    inputs = {
        name: value
        for stage in benchmark.stage_inputs(policy, blank).values()
        for name, value in stage.items()
    }
    given = {name: inputs[name] for name in external_inputs(manifest, PLAIN)}

    def call(turn: int) -> Times:
        start = time.monotonic_ns()
        _, took = policy.chain.run(given)
        total = (time.monotonic_ns() - start) / 1e6
        return {**{("L0", name): ms for name, ms in took.items()}, ("L0", benchmark.TOTAL): total}

    name = policy.manifest.name
    way = provider or backend
    bench.add(Subject(f"{name}@{way}", name, way, dense, (call,)), policy.manifest.plan, {})


def wanted(bench: Bench) -> Iterator[tuple[str, Plan, Way]]:
    """Name, plan and way, in the order of their weight."""
    (layers, tokens), *others = bench.args.plans
    ways = WAYS if bench.args.device == "cuda" else (EAGER, COMPILED)
    made = {f"L{n} T{t}": published(bench.cfg, n, t) for n, t in ((layers, tokens), *others)}
    main = {DENSE: Plan(), f"L{layers} T{tokens}": made[f"L{layers} T{tokens}"]}
    yield from ((name, plan, way) for way in ways for name, plan in main.items())
    rest = {name: plan for name, plan in made.items() if name not in main}
    yield from (
        (name, plan, way) for way in ways if not way.compiled for name, plan in rest.items()
    )


def published(cfg: PolicyConfig, layers: int, tokens: int) -> Plan:
    """A point of EfficientVLA's table."""
    kept = TokenPlan(keep=tokens)
    return plan_by_sizes(
        cfg, layers=layers, mlp_keep=MLP_KEEP, tokens=kept, cache_interval=INTERVAL
    )


def timed_calls(policy: DevicePolicy, device: str) -> benchmark.Call:
    """L0 of every stage, and of all in one go; each waits for the device."""

    def call(turn: int) -> Times:
        with torch.inference_mode():
            return {
                ("L0", name): benchmark.timed(waiting(run, device))
                for name, run in policy.runs.items()
            }

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
    """Most memory that one run takes beyond what lies there before it.

    What a graph holds, `reserved_bytes` says.
    """
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

    return Machine(
        2 * side**3 / shortest(product, TRIAL_S) / 1e9, 2 * size / shortest(copy, TRIAL_S) / 1e9, 1
    )


def to_compiled(bench: Bench, row: BenchRow) -> float | None:
    """Time of the compiled dense policy over the row's, turn by turn: the median.

    None where it was not measured.
    """
    cell = (row.layer, row.part)
    dense = benchmark.dense_samples(bench.subjects, bench.samples, COMPILED.name, cell)
    took = bench.samples[row.subject][cell]
    return None if dense is None else round(float(np.median(np.divide(dense, took))), 4)


def summarise(bench: Bench, machine: Machine, dtype: torch.dtype) -> GpuResult:
    """The rows of `benchmark.rows`, with ratios to the compiled dense policy, sizes and floors."""
    on_gpu = bench.args.device == "cuda"
    took = [took for cells in bench.samples.values() for took in cells.values()]
    return GpuResult(
        ok=True,
        preset=bench.args.preset,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        torch=str(torch.__version__),
        date=datetime.now(timezone.utc).date().isoformat(),
        rounds=min(map(len, took), default=0),
        seconds=round(time.monotonic() - bench.started, 1),
        peak_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
        machine=figures_of(machine, digits=1),
        notes=tuple(bench.notes),
        rows=gpu_rows(bench, machine, dtype),
    )


def gpu_rows(bench: Bench, machine: Machine, dtype: torch.dtype) -> tuple[GpuRow, ...]:
    """One for every part and policy."""
    width = torch.empty(0, dtype=dtype).element_size()
    prompt = bench.cfg.prompt.buckets[0]
    below: dict[str, dict[str, Floor]] = {
        name: floors(bench.cfg, plan, prompt, machine, weight_bytes=width)
        for name, plan in bench.plans.items()
    }
    return tuple(
        gpu_row(bench, row) for row in benchmark.rows(bench.subjects, bench.samples, below)
    )


def gpu_row(bench: Bench, row: BenchRow) -> GpuRow:
    """A row with what the device knows of it."""
    sizes = bench.sizes[row.subject]
    return GpuRow(
        **msgspec.structs.asdict(row),
        ratio_to_compiled_dense=to_compiled(bench, row),
        parameters=sizes.get("parameters"),
        activation_bytes=sizes.get("activation_bytes"),
    )


def main() -> None:
    """The command where only torch is installed: a folder, and the few options that matter
    there.
    """
    parser = argparse.ArgumentParser(description=Args.__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Args.out)
    for name, kind in (
        ("preset", str),
        ("device", str),
        ("seconds", float),
        ("rounds", int),
        ("warmup", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Args, name))
    for name in ("layers", "tokens"):
        parser.add_argument(
            f"--{name}", type=lambda text: tuple(map(int, text.split(","))), default=()
        )
    try:
        run(Args(**vars(parser.parse_args())))
    except TrimvlaError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
