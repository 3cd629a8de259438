"""`trimvla export`: a trained run or an official checkpoint -> a bundle. Finds the parts; `export.bundle` makes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from trimvla.export.bundle import export_policy
from trimvla.export.precision import PRECISIONS, precision_named
from trimvla.export.verify import checkpoint_beside
from trimvla.launch.console import progress_bar
from trimvla.launch.export_options import ExportOptions
from trimvla.launch.export_stream import choose_key, official_source, random_source, run_streamed
from trimvla.launch.frames import find_calibration
from trimvla.launch.options import Result
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
class Args(ExportOptions):
    """Export a policy to a bundle: ONNX stages, manifest, tokenizer, statistics, and the proof of parity."""

    source: Positional[Path | None] = None
    """A run folder of `trimvla train`, a bundle with its checkpoint beside it (by path, or a shipped one by name), or a
    directory in the official checkpoint layout (then --preset is needed). None with --random-weights."""

    def __post_init__(self) -> None:
        """Raise ConfigError where options do not go together."""
        counts = (self.layers, self.mlp_keep, self.tokens, self.cache_interval) != (None, 1.0, None, 1)
        if counts and (not self.random_weights or self.plan is not None):
            raise ConfigError(
                "expected --layers, --mlp-keep, --tokens and --cache-interval only with --random-weights and without "
                "--plan: what a trained policy can do without is for `trimvla trim` to find out"
            )
        if (self.source is None) != self.random_weights:
            got = "neither" if self.source is None else "both"
            raise ConfigError(f"expected a source, or --random-weights with --preset, got {got}")


def run(args: Args) -> Result:
    """Load, export, prove; the parity report. What memory cannot hold goes its own way."""
    if args.source is None:
        return run_streamed(args, *random_source(args))
    source = find_source(args.source)
    statistics = read_statistics(source)
    if is_official(source):
        cfg = PRESETS[check_preset(source, args.preset)]
        parts = official_source(args, source, cfg, statistics, args.tokenizer or source / TOKENIZER)
        return run_streamed(args, *parts)
    key = choose_key(statistics, args.statistics_key)
    with progress_bar() as progress:
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
            guided=args.guided,
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


def is_official(source: Path) -> bool:
    """Whether the source is neither a run folder nor a bundle."""
    return not (source / WEIGHTS).exists() and not (source / bundles.MANIFEST).exists()


def load_policy(source: Path, preset: str | None) -> CogAct:
    """The torch policy of the source.

    Raises:
        ConfigError: an official checkpoint without a known preset.
        CheckpointError: weights that are missing, unknown or of another shape.
    """
    if (source / WEIGHTS).exists():
        return checkpoint.load(source / WEIGHTS)
    if not is_official(source):
        return checkpoint_beside(source)
    return checkpoint.load_official(source, PRESETS[check_preset(source, preset)])


def check_preset(source: Path, preset: str | None) -> str:
    """The preset that an official checkpoint needs; ConfigError where it is not known."""
    if preset not in PRESETS:
        raise ConfigError(
            f"{source}: no {WEIGHTS}, so an official checkpoint: expected --preset as one of "
            f"{sorted(PRESETS)}, got {preset!r}"
        )
    return preset


def read_statistics(source: Path) -> dict[str, Any]:
    """Action statistics by dataset. Raises ConfigError where the source has none."""
    for name in STATISTICS:
        if (source / name).exists():
            return json.loads((source / name).read_text())
    raise ConfigError(f"{source}: expected {' or '.join(STATISTICS)}, got neither")


def size(bundle: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in bundle.iterdir())
