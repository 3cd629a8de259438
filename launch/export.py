"""`trimvla export`: a trained run or an official checkpoint -> a bundle. Finds the parts; `export.bundle` makes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional

from trimvla.export.bundle import export_policy
from trimvla.export.precision import PRECISIONS, precision_named
from trimvla.export.verify import checkpoint_beside
from trimvla.launch.frames import find_calibration
from trimvla.launch.options import Options, Result
from trimvla.launch.verify import as_table
from trimvla.policies import checkpoint
from trimvla.policies.calibrate import Calibration
from trimvla.policies.cogact import CogAct
from trimvla.policies.config import PRESETS, PolicyConfig
from trimvla.runtime import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.plan import Plan, load_plan

WEIGHTS = "policy.safetensors"
TOKENIZER = "tokenizer.json"
STATISTICS = ("statistics.json", "dataset_statistics.json")  # ours, and the official layout's


@dataclass(frozen=True)
class Args(Options):
    """Export a policy to a bundle: ONNX stages, manifest, tokenizer, statistics, and the proof of parity."""

    source: Positional[Path]
    """A run folder of `trimvla train`, a bundle with its checkpoint beside it (by path, or a shipped one by name), or a
    directory in the official checkpoint layout (then --preset is needed)."""

    out: Path
    """Where the bundle goes; its last part becomes the bundle's name."""

    preset: str | None = None
    """Sizes of an official checkpoint: cogact-small, cogact-base or cogact-large."""

    tokenizer: Path | None = None
    """`tokenizer.json`, where it does not lie in the source."""

    statistics_key: str | None = None
    """Which dataset's statistics un-normalise the actions; needed where there are several."""

    plan: Path | None = None
    """What to keep: a plan made by `trimvla trim` (default: everything)."""

    dtype: str = "float32"
    """What the graphs compute in: float32, float16, bfloat16, int8 or int8-dynamic (docs/PRECISION.md)."""

    calibration: Path | None = None
    """Frames for int8, as `trimvla trim` takes them (default: demonstrations, made for the tabletop where none are)."""

    frames: int = 64
    """How many of the demonstrations' frames."""

    control_hz: float = 5.0
    """Rows of an action chunk per second (5 for the tabletop and WidowX, 3 for the Google robot)."""

    overwrite: bool = False
    """Replace a bundle that is there."""


def run(args: Args) -> Result:
    """Load, export, prove; the parity report."""
    source = find_source(args.source)
    statistics = read_statistics(source)
    key = choose_key(statistics, args.statistics_key)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        progress.add_task("exporting and comparing with torch", total=None)
        policy = load_policy(source, args.preset)
        manifest = export_policy(
            policy,
            Plan() if args.plan is None else load_plan(args.plan),
            statistics,
            args.tokenizer or source / TOKENIZER,
            args.out,
            statistics_key=key,
            control_hz=args.control_hz,
            precision=args.dtype,
            calibration=calibration_for(args, source, policy.cfg),
            overwrite=args.overwrite,
        )
    if (source / WEIGHTS).exists():  # beside the bundle, where `trimvla verify` looks for them
        shutil.copyfile(source / WEIGHTS, args.out.with_name(f"{args.out.name}.safetensors"))
    args.console().print(as_table(manifest.parity))
    return {"ok": True, "bundle": args.out, "parity": manifest.parity, "bytes": size(args.out)}


def calibration_for(args: Args, source: Path, cfg: PolicyConfig) -> Calibration | None:
    """Frames, if the precision needs them. Raises ConfigError where there are none."""
    if not PRECISIONS[precision_named(args.dtype)].calibrated:
        return None
    tokenizer = args.tokenizer or source / TOKENIZER
    return find_calibration(args.calibration, source, cfg, tokenizer, frames=args.frames, seed=0)


def find_source(source: Path) -> Path:
    """The folder that is meant: a path, or the name of a shipped bundle."""
    return source if source.exists() else bundles.resolve(str(source))


def load_policy(source: Path, preset: str | None) -> CogAct:
    """The torch policy of the source.

    Raises:
        ConfigError: an official checkpoint without a known preset.
        CheckpointError: weights that are missing, unknown or of another shape.
    """
    if (source / WEIGHTS).exists():
        return checkpoint.load(source / WEIGHTS)
    if (source / bundles.MANIFEST).exists():
        return checkpoint_beside(source)
    if preset not in PRESETS:
        raise ConfigError(
            f"{source}: no {WEIGHTS}, so an official checkpoint: expected --preset as one of "
            f"{sorted(PRESETS)}, got {preset!r}"
        )
    return checkpoint.load_official(source, PRESETS[preset])


def read_statistics(source: Path) -> dict[str, Any]:
    """Action statistics by dataset. Raises ConfigError where the source has none."""
    for name in STATISTICS:
        if (source / name).exists():
            return json.loads((source / name).read_text())
    raise ConfigError(f"{source}: expected {' or '.join(STATISTICS)}, got neither")


def choose_key(statistics: Iterable[str], asked: str | None) -> str:
    """The dataset that is meant. Raises ConfigError where it is unknown or not said among several."""
    keys = sorted(statistics)
    if asked is None and len(keys) == 1:
        return keys[0]
    if asked not in keys:
        raise ConfigError(f"expected --statistics-key as one of {keys}, got {asked!r}")
    return asked


def size(bundle: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in bundle.iterdir())
