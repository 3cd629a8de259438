"""What torch measures of a device: peak and bandwidth, memory of a run, calls that wait for it.

Knows torch and its device; nothing of plans or reports.
"""

from __future__ import annotations

import gc

import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.device_policy import DevicePolicy, Run
from trimvla.launch.bench.floor import Machine, shortest
from trimvla.launch.bench.turns import Times

# of the product and of the copy that measure a GPU; elements and bytes
SQUARE = 8192
COPIED = 2**30
TRIAL_S = 0.3


def reserved_bytes(device: str) -> int:
    """What torch holds of the device's memory, once it has given back what it does not need."""
    if device == "cpu":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


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

    What a graph holds is in `reserved_bytes`.
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
