"""Training on a borrowed GPU: shards packed small, as many steps as a time allows, weights and a
recipe back.

`launch/bare.sh training.gpu_train pack DEMOS PACKED` makes of each shard a file of a twentieth of
its size, without loss; `... gpu_train fit PACKED RUN --seconds 300` trains from
`RUN/policy.safetensors`. The second needs torch, NumPy, tokenizers, safetensors and msgspec, no
simulator. RUN holds weights, recipe, tokenizer and statistics, as `trimvla train` leaves them, and
no state: training would go on from that one instead.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from trimvla.policies.cogact import checkpoint
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.training.dataset import Demonstrations, read_shard
from trimvla.policies.training.trainer import Recipe, Trainer, train
from trimvla.runtime.errors import ConfigError, TrimvlaError

# the preset's own, which needs the simulator to be read
NOUNS = "carrot,plate,spoon,towel,block,eggplant,basket"
TRIAL_STEPS = 30  # that measure how long a step takes; the first third does not count


def pack(images: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures uint8[n, S, S, 3] as the first, where each differs from the one before, and the
    pixels there.
    """
    changed = (images[1:] != images[:-1]).any(axis=-1)
    return {
        "first": images[0],
        "changed": _squeezed(np.packbits(changed, axis=None)),
        "pixels": _squeezed(images[1:][changed]),
    }


def unpack(first: np.ndarray, changed: np.ndarray, pixels: np.ndarray, count: int) -> np.ndarray:
    """What `pack` was given, `count` images."""
    bits = np.frombuffer(lzma.decompress(changed.tobytes()), np.uint8)
    side = first.shape[0]
    where = (
        np.unpackbits(bits, count=(count - 1) * side * side).reshape(-1, side, side).astype(bool)
    )
    values = np.frombuffer(lzma.decompress(pixels.tobytes()), np.uint8).reshape(-1, 3)
    images = np.empty((count, *first.shape), np.uint8)
    start = 0
    images[0] = first
    for index, mask in enumerate(where, 1):
        images[index] = images[index - 1]
        end = start + int(mask.sum())
        images[index][mask] = values[start:end]
        start = end
    return images


def _squeezed(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(lzma.compress(array.tobytes(), preset=6), np.uint8)


def pack_shard(place: Path, path: Path) -> None:
    """Write the packed form of a shard, in one move."""
    content = read_shard(path)
    partial_path = place / f".{path.name}"
    if "images" not in content:  # of a window: it is small already
        shutil.copyfile(path, partial_path)
    else:
        packed: dict[str, Any] = {**pack(content.pop("images")), **content}
        np.savez_compressed(partial_path, **packed)
    partial_path.replace(place / path.name)


def unpack_shard(place: Path, path: Path) -> Path:
    """Write a shard again from its packed form; one that was not packed stays where it is."""
    content = read_shard(path)
    if "first" not in content:
        return path
    packed = {name: content.pop(name) for name in ("first", "changed", "pixels")}
    images = unpack(**packed, count=len(content["chunks"]))
    whole: dict[str, Any] = {"images": images, **content}
    np.savez(place / path.name, **whole)
    return place / path.name


def pack_all(demos: Path, place: Path) -> None:
    """Pack the shards that are not packed yet."""
    place.mkdir(parents=True, exist_ok=True)
    missing = [path for path in sorted(demos.glob("*.npz")) if not (place / path.name).exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(pack_shard, place), missing))


def load(packed: Path, run: Path, preset: str, nouns: tuple[str, ...]) -> Demonstrations:
    """Unpacked shards, with the run's own tokenizer and statistics."""
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    statistics = json.loads((run / "statistics.json").read_text())[preset]
    with tempfile.TemporaryDirectory() as demos:
        with ProcessPoolExecutor() as pool:
            shards = list(
                pool.map(partial(unpack_shard, Path(demos)), sorted(packed.glob("*.npz")))
            )
        return Demonstrations(
            shards, PRESETS[preset], tokenizer, nouns=nouns, statistics=statistics
        )


def step_seconds(trainer: Trainer, data: Demonstrations) -> float:
    """Time of a step [s], over a short trial."""
    took = []
    for step in range(TRIAL_STEPS):
        rng = np.random.default_rng(step)
        start = time.monotonic()
        trainer.update(data.draw(rng, trainer.recipe.pictures, trainer.recipe.sentences), rng)
        took.append(time.monotonic() - start)
    return float(np.mean(took[TRIAL_STEPS // 3 :]))


def fit(args: argparse.Namespace) -> None:
    """Train as long as there is time; weights, history and recipe into the run's folder."""
    if (args.run / "state.pt").exists():
        raise ConfigError(
            f"expected a run without a state, got {args.run / 'state.pt'}: training would go on"
            " from it"
        )
    known = json.loads((args.run / "recipe.json").read_text())
    recipe = Recipe(**known["recipe"])
    preset = known["preset"]
    cfg = PRESETS[known["preset"]]
    recipe = replace(
        recipe,
        tokens=tuple(map(tuple, recipe.tokens)),
        emphasis=tuple(recipe.emphasis),
        compile=False,
    )
    recipe = replace(
        recipe, pictures=args.pictures, learning_rate=args.learning_rate, warmup=args.warmup
    )
    start = time.monotonic()
    data = load(args.packed, args.run, preset, tuple(args.nouns.split(",")))
    print(f"{len(data)} pictures after {time.monotonic() - start:.1f} s", flush=True)
    weights = checkpoint.load(args.run / "policy.safetensors", cfg)
    outputs = data.aux.shape[-1]
    trial = Trainer(cfg, recipe, outputs, args.device)
    trial.start_from(weights)
    per_step = step_seconds(trial, data)
    steps = max(1, int((args.seconds - (time.monotonic() - start)) / per_step))
    print(
        f"{1000 * per_step:.1f} ms a step: {steps} steps of {recipe.pictures} pictures", flush=True
    )
    trainer = Trainer(cfg, replace(recipe, steps=steps), outputs, args.device)
    trainer.start_from(weights)
    train(trainer, data, args.run, report=print_losses, save_every=10**9)
    checkpoint.save(trainer.averaged_policy(), args.run / "policy.safetensors", dtype=torch.float16)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    described = {
        "preset": preset,
        "policy": cfg.to_dict(),
        "recipe": asdict(trainer.recipe),
        "frames": len(data),
        "device": name,
        "torch": torch.__version__,
        "steps": steps,
        "seconds": round(trainer.seconds, 1),
    }
    (args.run / "recipe.json").write_text(json.dumps(described, indent=1) + "\n")


def print_losses(step: int, losses: dict[str, float]) -> None:
    """One line every hundred steps."""
    if step % 100 == 0:
        print(step, " ".join(f"{name} {value:.4f}" for name, value in losses.items()), flush=True)


def main() -> None:
    """`pack DEMOS PACKED` or `fit PACKED RUN`."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    packing = verbs.add_parser("pack")
    packing.add_argument("demos", type=Path)
    packing.add_argument("packed", type=Path)
    fitting = verbs.add_parser("fit")
    fitting.add_argument("packed", type=Path)
    fitting.add_argument("run", type=Path)
    fitting.add_argument(
        "--nouns", default=NOUNS, help="words that name things, for another preset than widowx"
    )
    fitting.add_argument("--device", default="cuda")
    fitting.add_argument("--seconds", type=float, default=300.0)
    fitting.add_argument("--pictures", type=int, default=256)
    fitting.add_argument("--learning-rate", type=float, default=7e-4)
    fitting.add_argument("--warmup", type=int, default=100)
    args = parser.parse_args()
    try:
        pack_all(args.demos, args.packed) if args.verb == "pack" else fit(args)
    except (TrimvlaError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
