"""The floor under a stage's time: its operations at this machine's peak, or its weights at this
machine's bandwidth.

Both limits are measured, not looked up: the peak is a large float32 matrix product by ONNX Runtime,
the bandwidth a read of more memory than caches hold, with as many threads as the stages get. So the
floor shows how far a stage is from what this machine does at its best (the roofline of Williams et
al. 2009), the larger of the two. Weights that stay in a cache come faster, and a stage that reads
them at every sampler step is charged once. Knows no policy's time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimvla.policies.families import family_of
from trimvla.policies.sizes.cost import FLOAT32_BYTES, Cost
from trimvla.runtime.bundle.plan import Plan

# An ONNX model that computes c = a @ b on float32[n, n], opset 20.
MATRIX_PRODUCT = (
    b'\x08\x08\x12\x00:[\n\x11\n\x01a\n\x01b\x12\x01c"\x06MatMul\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x01\x12\n\n'
    b"\x03\x12\x01n\n\x03\x12\x01nZ\x15\n\x01b\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01n\n\x03\x12\x01nb\x15\n\x01c"
    b"\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01n\n\x03\x12\x01nB\x04\n\x00\x10\x14"
)
SIDE = 1024  # of the matrices
READ_BYTES = 256 << 20
TRIAL_S = 0.5  # the best of what fits into this time


@dataclass(frozen=True)
class Machine:
    """What this machine does at its best: 1e9 operations and bytes per second, with so many
    threads.
    """

    gflops: float
    gbytes_per_s: float
    threads: int


@dataclass(frozen=True)
class Floor:
    """No run of a stage is faster than `ms`; `by`: "operations" or "bytes", whichever takes
    longer.
    """

    ms: float
    by: str


def measure_machine(threads: int, trial_s: float = TRIAL_S) -> Machine:
    """Measure both limits; 0 threads are all cores."""
    threads = threads or len(os.sched_getaffinity(0))
    return Machine(peak(threads, trial_s) / 1e9, bandwidth(threads, trial_s) / 1e9, threads)


def better(one: Machine, other: Machine) -> Machine:
    """The best of two measurements: a machine that was disturbed is no slower for it."""
    return Machine(
        max(one.gflops, other.gflops), max(one.gbytes_per_s, other.gbytes_per_s), one.threads
    )


def peak(threads: int, trial_s: float) -> float:
    """Operations per second of a matrix product; a multiplication and an addition are two."""
    import onnxruntime as ort

    from trimvla.runtime.backends.ort_runner import CPU, session_options

    session = ort.InferenceSession(MATRIX_PRODUCT, session_options(threads), providers=[CPU])
    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), dtype=np.float32)
    return 2 * SIDE**3 / shortest(lambda: session.run(None, {"a": a, "b": b}), trial_s)


def bandwidth(threads: int, trial_s: float) -> float:
    """Bytes per second of reading float32 from memory once."""
    parts = np.array_split(np.ones(READ_BYTES // FLOAT32_BYTES, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / shortest(lambda: list(pool.map(np.max, parts)), trial_s)


def shortest(call: Callable[[], object], trial_s: float) -> float:
    """Seconds of the fastest call within a time; at least two calls."""
    took: list[int] = []
    end = time.monotonic_ns() + trial_s * 1e9
    while len(took) < 2 or time.monotonic_ns() < end:
        start = time.monotonic_ns()
        call()
        took.append(time.monotonic_ns() - start)
    return min(took) / 1e9


def floors(
    cfg: Any,  # noqa: ANN401
    plan: Plan,
    prompt: int | None,
    machine: Machine,
    *,
    weight_bytes: int = FLOAT32_BYTES,
) -> dict[str, Floor]:
    """The floor of every stage of any family's policy under a plan, for a prompt of so many ids
    (None: it reads none), and their sum as "total".
    """
    stages = family_of(cfg).cost(cfg, plan, prompt=prompt).stages
    found = {
        name: floor(Cost(stage.parameters, stage.flops), machine, weight_bytes)
        for name, stage in stages.items()
    }
    limits = {each.by for each in found.values()}
    return {
        **found,
        "total": Floor(sum(each.ms for each in found.values()), " and ".join(sorted(limits))),
    }


def floor(cost: Cost, machine: Machine, weight_bytes: int = FLOAT32_BYTES) -> Floor:
    """The floor of one stage, with weights of so many bytes each."""
    by_operations = cost.flops / machine.gflops / 1e6
    by_bytes = weight_bytes * cost.parameters / machine.gbytes_per_s / 1e6
    return (
        Floor(by_operations, "operations")
        if by_operations >= by_bytes
        else Floor(by_bytes, "bytes")
    )
