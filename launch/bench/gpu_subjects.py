"""Who takes part in `trimvla gpu-bench`: policies in every way that torch has, and bundles in every
runtime that is installed.

What cannot run becomes one line in the notes, and the next one is tried. Everybody is measured
once when ready. Knows policies, plans and the time that is left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.device_policy import (
    COMPILED,
    COMPILED_GRAPH,
    EAGER,
    GRAPH,
    WAYS,
    DevicePolicy,
    Way,
    device_inputs,
)
from trimvla.launch.bench.gpu_device import activation_bytes, reserved_bytes, timed_calls
from trimvla.launch.bench.gpu_options import GpuBenchArgs
from trimvla.launch.bench.turns import Samples, Subject, Times
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.plan_by_size import plan_by_sizes
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.manifest import PLAIN
from trimvla.runtime.bundle.mode_problems import external_inputs
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import BackendError
from trimvla.runtime.preprocess.observation import blank_observation

DENSE = "dense"
MLP_KEEP = 0.75
INTERVAL = 5
# Share of the time that must be left for a way to be begun; eager is quick, and everybody is
# compared with it.
SHARES = {COMPILED.name: 1 / 4, GRAPH.name: 1 / 8, COMPILED_GRAPH.name: 1 / 4}
FIRST_ROUNDS = 5  # of the measurement right after a subject is ready
RUNTIMES = (
    ("onnxruntime", "CUDAExecutionProvider"),
    ("onnxruntime", "TensorrtExecutionProvider"),
    ("tensorrt", None),
)


@dataclass
class Bench:
    """Everything that is measured, as it grows."""

    cfg: PolicyConfig
    args: GpuBenchArgs
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


def prepare(bench: Bench, dense: CogAct, write: Callable[[], object]) -> None:
    """All policies in all ways, the ones that targets name first; what fails is noted, and the
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
    """An error's message, on one line."""
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
