"""`trimvla bench`: where the time of one action chunk goes, layer by layer, measured in turns within one run.

L0 is the stages' graphs alone, on inputs that lie ready. L2 is the policy: picture and instruction in, chunk out. The
difference is what the runtime itself costs. Turns are interleaved, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.options import Options, Result
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.manifest import STAGES
from trimvla.runtime.policy import Policy
from trimvla.runtime.runner import Runner

CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it


@dataclass(frozen=True)
class Args(Options):
    """Measure a bundle's latency, layer by layer."""

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    instruction: str = "pick up the red cube"
    """What the policy is asked."""

    rounds: int = 50
    """Turns of every layer, after the warm-up."""

    warmup: int = 5
    """Turns that are not counted."""

    backend: str = "onnxruntime"
    """What executes the stages."""

    threads: int = 1
    """Threads of an operator; 0 takes all cores."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to measure."""
        if self.rounds < 1 or self.warmup < 0:
            raise ConfigError(f"expected --rounds >= 1 and --warmup >= 0, got {self.rounds} and {self.warmup}")


def run(args: Args) -> Result:
    """Measure; milliseconds by layer and by stage."""
    policy = Policy.load(args.bundle, backend=args.backend, threads=args.threads)
    picture = np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8)
    l0: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
    l2: dict[str, list[float]] = {}
    stages = stage_calls(policy, picture, args.instruction)
    for turn in range(args.warmup + args.rounds):
        alone, whole = time_stages(stages), policy.infer(picture, args.instruction, seed=turn).milliseconds
        if turn >= args.warmup:
            for store, times in ((l0, alone), (l2, whole)):
                for name, took in times.items():
                    store.setdefault(name, []).append(took)
    result: Result = {
        "ok": True,
        "bundle": args.bundle,
        "rounds": args.rounds,
        "runs_on": policy.describe(),
        "L0_ms": {name: percentiles(values) for name, values in l0.items()},
        "L2_ms": {name: percentiles(values) for name, values in l2.items()},
    }
    result["runtime_cost_ms"] = round(result["L2_ms"]["total"]["p50"] - result["L0_ms"]["total"]["p50"], 3)
    policy.close()
    console = args.console()
    console.print(as_table(result))
    console.print("L0: the graphs alone. L2: picture in, chunk out. L2 - L0 is what the runtime itself costs:")
    console.print(f"{result['runtime_cost_ms']:.2f} ms in the median")
    return result


def stage_calls(policy: Policy, picture: np.ndarray, instruction: str) -> dict[str, Callable[[], object]]:
    """Each stage with the inputs that it has in this policy, ready to be called."""
    runners = dict(policy.runners)
    heard = {name: Listener(runner) for name, runner in runners.items()}
    policy.runners.update(heard)
    policy.infer(picture, instruction)
    policy.runners.update(runners)
    return {name: partial(runners[name].run, heard[name].inputs) for name in STAGES}


class Listener:
    """A runner that passes everything on and keeps the last inputs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.spec = runner.spec
        self.inputs: Mapping[str, np.ndarray] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the runner does."""
        self.inputs = inputs
        return self._runner.run(inputs)

    def describe(self) -> dict[str, str]:
        """As the runner does."""
        return self._runner.describe()

    def close(self) -> None:
        """As the runner does."""
        self._runner.close()


def time_stages(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each stage and of all."""
    times = {}
    for name, call in calls.items():
        start = time.monotonic_ns()
        call()
        times[name] = (time.monotonic_ns() - start) / 1e6
    return {**times, "total": sum(times.values())}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p99 [ms]."""
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def as_table(result: Result) -> Table:
    """One row a part."""
    title = f"{result['bundle']}, {result['rounds']} rounds"
    table = Table("ms", "L0 p50", "L0 p99", "L2 p50", "L2 p99", title=title, title_justify="left")
    for name in ("preprocess", *STAGES, "total"):
        rows = (result[layer].get(name) for layer in ("L0_ms", "L2_ms"))
        cells = [f"{row[p]:.2f}" if row else "" for row in rows for p in ("p50", "p99")]
        table.add_row(name, *cells)
    return table
