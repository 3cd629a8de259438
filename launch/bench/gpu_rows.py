"""What was measured on a GPU -> rows with ratios to the compiled dense policy, sizes and floors.

Knows samples and sizes; measures nothing.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

import msgspec
import numpy as np
import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.device_policy import COMPILED
from trimvla.launch.bench.floor import Floor, Machine, floors
from trimvla.launch.bench.gpu_subjects import Bench
from trimvla.launch.bench.results import BenchRow, GpuResult, GpuRow, figures_of


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
