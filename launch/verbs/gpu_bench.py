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
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.device_policy import random_policy
from trimvla.launch.bench.gpu_device import measure_device
from trimvla.launch.bench.gpu_options import GpuBenchArgs as Args
from trimvla.launch.bench.gpu_report import as_text, draw
from trimvla.launch.bench.gpu_rows import summarise
from trimvla.launch.bench.gpu_subjects import FIRST_ROUNDS, Bench, add_bundles, prepare
from trimvla.launch.bench.results import GpuResult
from trimvla.launch.result import as_plain
from trimvla.policies.sizes.config import find_preset
from trimvla.runtime.errors import BackendError, TrimvlaError

# of the one that counts; and what is left for the files
FEWEST_ROUNDS = 10
RESERVE_S = 20.0


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
    """Turns that everybody together can still do; 0 where they are too few to mean anything."""
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
