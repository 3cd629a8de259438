"""Latency of several policies, layer by layer, measured in turns within one run: calls in; p50, p99
and ratios out.

L0 is the stages' graphs alone, on inputs that lie ready. L1 begins with image and instruction:
resize, tokenise, draw noise, graphs. L2 is the policy: the action chunk out, in the robot's units.
L3 is the policy's process, socket in and socket out; it comes from `launch`, which may start
processes. All subjects take turns and every second turn runs backwards, so that a slow moment of
the machine, and what a neighbour left in the caches, hit all of them alike. Knows policies and
runners by their contract; no torch, no process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np

from trimvla.launch.bench.floor import Floor
from trimvla.launch.bench.results import BenchRow
from trimvla.runtime.backends.chain import HostChain
from trimvla.runtime.backends.runner import Runner
from trimvla.runtime.bundle.manifest import PLAIN
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

TOTAL = "total"
EAGER = "torch-eager"
COMPILED = "torch-compile"
PEER = "peer"
QUARTILES = (25, 50, 75)

Cell = tuple[str, str]
"""Layer and part: ("L0", "vision"), ("L2", "total")."""
Times = dict[Cell, float]
"""Milliseconds of one call."""
Call = Callable[[int], Times]
"""What is timed; takes the number of the turn."""
Samples = dict[str, dict[Cell, list[float]]]
"""Subject -> cell -> milliseconds, one number a turn."""


@dataclass(frozen=True)
class Subject:
    """One policy on one backend. `dense`: what the others on this backend are compared with."""

    name: str
    bundle: str
    backend: str
    dense: bool
    calls: tuple[Call, ...]


def measure(
    subjects: Sequence[Subject],
    *,
    rounds: int,
    warmup: int,
    watch: Callable[[int], object] = lambda turn: None,
) -> Samples:
    """Let all subjects take turns.

    Args:
        subjects: with different names; the order decides who stands beside whom in a turn.
        rounds: turns that count.
        warmup: turns before them that do not.
        watch: called after every turn with the number of turns so far.

    Returns:
        The samples; the n-th of every cell are of the same turn.
    """
    samples: Samples = {subject.name: {} for subject in subjects}
    for turn in range(warmup + rounds):
        for name, times in one_turn(subjects, turn):
            for cell, took in times.items() if turn >= warmup else ():
                samples[name].setdefault(cell, []).append(took)
        watch(turn + 1)
    return samples


def one_turn(subjects: Sequence[Subject], turn: int) -> Iterator[tuple[str, Times]]:
    """The first call of everyone, then the second of everyone, and so on; odd turns go backwards
    through them.
    """
    order = subjects[::-1] if turn % 2 else subjects
    for index in range(max(len(subject.calls) for subject in subjects)):
        for subject in order:
            if index < len(subject.calls):
                yield subject.name, subject.calls[index](turn)


def policy_calls(policy: Policy, observation: Observation) -> tuple[Call, Call]:
    """L0, and L1 with L2, of a policy for this observation."""
    inputs = stage_inputs(policy, observation)
    stages = {
        name: partial(policy.runners[name].run, inputs[name])
        for name in policy.manifest.modes[PLAIN]
    }
    return partial(graphs_alone, stages), partial(whole_policy, policy, observation)


def graphs_alone(stages: Mapping[str, Callable[[], object]], turn: int) -> Times:
    """L0: each stage, and all."""
    times = {("L0", name): timed(call) for name, call in stages.items()}
    return {**times, ("L0", TOTAL): sum(times.values())}


def whole_policy(policy: Policy, observation: Observation, turn: int) -> Times:
    """L1 and L2, of one call: the policy times its own parts."""
    parts = dict(policy.infer(observation, seed=turn).milliseconds)
    whole = parts.pop("total")
    return {
        ("L1", "preprocess"): parts["preprocess"],
        ("L1", TOTAL): sum(parts.values()),
        ("L2", TOTAL): whole,
    }


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.monotonic_ns()
    call()
    return (time.monotonic_ns() - start) / 1e6


def stage_inputs(policy: Policy, observation: Observation) -> dict[str, Mapping[str, np.ndarray]]:
    """What each stage gets in this policy, by stage and tensor name."""
    twin = copy(policy)
    listeners = {name: Listener(runner) for name, runner in policy.runners.items()}
    twin.chain = HostChain(listeners)
    twin.infer(observation)
    return {name: listener.inputs for name, listener in listeners.items()}


def prompt_length(inputs: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    """Ids in the prompt, padding included, of what the stages got."""
    return next(stage["input_ids"].shape[1] for stage in inputs.values() if "input_ids" in stage)


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


def rows(
    subjects: Sequence[Subject], samples: Samples, floors: Mapping[str, Mapping[str, Floor]]
) -> tuple[BenchRow, ...]:
    """The report: one row for each layer, part and subject, in this order.

    Args:
        subjects: as they were measured.
        samples: from `measure`.
        floors: bundle -> stage or "total" -> floor, where it is known.
    """
    measured = {cell: None for cells in samples.values() for cell in cells}
    cells = sorted(measured, key=lambda cell: cell[0])  # which keeps the order of the parts
    return tuple(
        _row(subject, cell, subjects, samples, floors.get(subject.bundle, {}))
        for cell in cells
        for subject in subjects
        if cell in samples[subject.name]
    )


def _row(
    subject: Subject,
    cell: Cell,
    peers: Sequence[Subject],
    samples: Samples,
    floors: Mapping[str, Floor],
) -> BenchRow:
    layer, part = cell
    took = samples[subject.name][cell]
    p50, p99 = np.percentile(took, (50, 99))
    low, ratio, high = _ratios(dense_samples(peers, samples, subject.backend, cell), took)
    eager = dense_samples(peers, samples, EAGER, cell)
    floor = floors.get(part) if layer == "L0" else None
    return BenchRow(
        name=subject.name if part == TOTAL else f"{subject.name}/{part}",
        layer=layer,
        part=part,
        subject=subject.name,
        bundle=subject.bundle,
        backend=subject.backend,
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        ratio_to_dense=ratio,
        ratio_low=low,
        ratio_high=high,
        ratio_to_eager_dense=_ratios(eager, took)[1],
        ratio_to_peer=_ratios(dense_samples(peers, samples, PEER, cell), took)[1],
        over_l0_ms=over_l0(samples[subject.name], layer) if part == TOTAL else None,
        floor_ms=None if floor is None else round(floor.ms, 3),
        floor_by=None if floor is None else floor.by,
    )


def dense_samples(
    peers: Sequence[Subject], samples: Samples, backend: str, cell: Cell
) -> list[float] | None:
    """The dense policy's times on a backend; None where it was not measured."""
    dense = next((peer for peer in peers if peer.dense and peer.backend == backend), None)
    return None if dense is None else samples[dense.name].get(cell)


def _ratios(dense: Sequence[float] | None, took: Sequence[float]) -> tuple[float | None, ...]:
    """Quartiles of dense over took, turn by turn."""
    if dense is None:
        return (None,) * len(QUARTILES)
    return tuple(
        round(float(value), 4) for value in np.percentile(np.divide(dense, took), QUARTILES)
    )


def over_l0(cells: Mapping[Cell, Sequence[float]], layer: str) -> float:
    """What a layer takes beyond the graphs alone [ms]: median over the turns."""
    return round(float(np.median(np.subtract(cells[layer, TOTAL], cells["L0", TOTAL]))), 3)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what was drawn from lies, at 95 %: order statistics, for no assumption
    about its shape.
    """
    ordered = np.sort(values)
    half = 0.98 * len(values) ** 0.5
    middle = (len(ordered) - 1) / 2
    low = max(0, math.floor(middle - half))
    high = min(len(ordered) - 1, math.ceil(middle + half))
    return float(ordered[low]), float(ordered[high])
