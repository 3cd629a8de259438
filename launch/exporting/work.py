"""A trained run or an official checkpoint -> a bundle. Finds the parts; `export.bundle` makes it.

What memory cannot hold is streamed (`stream`). Knows options and files; not what a graph is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.export.bundle import export_policy
from trimvla.export.inputs import check_target
from trimvla.export.precision.table import PRECISIONS, precision_named
from trimvla.launch.console import progress_bar
from trimvla.launch.exporting.calibration import find_calibration
from trimvla.launch.exporting.named_plan import named_plan
from trimvla.launch.exporting.options import ExportOptions
from trimvla.launch.exporting.parity_table import as_table
from trimvla.launch.exporting.policy_source import (
    TOKENIZER,
    WEIGHTS,
    check_preset,
    find_source,
    find_statistics,
    is_official,
    load_policy,
)
from trimvla.launch.exporting.results import ExportResult, StreamedResult, parity_of
from trimvla.launch.exporting.stream import (
    choose_key,
    default_actions,
    official_source,
    random_source,
    run_streamed,
)
from trimvla.launch.exporting.unwinding import unwinding
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.runtime.bundle.action_statistics import chosen, read_table
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class ExportArgs(ExportOptions):
    """Export a policy to a bundle: ONNX stages, manifest, tokenizer, statistics, and the proof of
    parity.
    """

    source: Positional[Path | None] = None
    """A run folder of `trimvla train`, a bundle with its checkpoint beside it (by path, or a
    shipped one by name), or a directory in the official checkpoint layout (then --preset is
    needed). None with --random-weights.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError where options do not go together."""
        counts = (self.layers, self.mlp_keep, self.tokens, self.cache_interval) != (
            None,
            1.0,
            None,
            1,
        )
        if counts and (not self.random_weights or self.plan is not None):
            raise ConfigError(
                "expected --layers, --mlp-keep, --tokens and --cache-interval only with"
                " --random-weights and without --plan: what a trained policy can do without is for"
                " `trimvla trim` to find out"
            )
        if (self.source is None) != self.random_weights:
            got = "neither" if self.source is None else "both"
            raise ConfigError(f"expected a source, or --random-weights with --preset, got {got}")


def run(args: ExportArgs) -> ExportResult | StreamedResult:
    """Load, export, prove; the parity report. What memory cannot hold goes its own way."""
    with unwinding():
        return export(args)


def export(args: ExportArgs) -> ExportResult | StreamedResult:
    """The work of `run`."""
    if args.source is None:
        return run_streamed(args, *random_source(args))
    source = find_source(args.source)
    statistics = find_statistics(source)
    check_target(args.out, args.overwrite)
    if is_official(source):
        cfg = PRESETS[check_preset(source, args.preset)]
        parts = official_source(args, source, cfg, statistics, args.tokenizer or source / TOKENIZER)
        return run_streamed(args, *parts)
    table = read_table(statistics, error=ConfigError)
    key = choose_key(table, args.statistics_key)
    weights = WeightsBeside(source / WEIGHTS, args.out.with_name(f"{args.out.name}.safetensors"))
    weights.check(args.overwrite)
    with progress_bar() as progress:
        progress.add_task("exporting and comparing with torch", total=None)
        policy = load_policy(source, args.preset, args.checkpoint)
        actions = default_actions(policy.cfg, args.control_hz, key)
        chosen(table, key, actions, where=str(statistics), error=ConfigError)
        manifest = export_policy(
            policy,
            named_plan(args.plan, policy.cfg),
            table,
            args.tokenizer or source / TOKENIZER,
            args.out,
            statistics_key=key,
            control_hz=args.control_hz,
            precision=args.dtype,
            calibration=calibration_for(args, source, policy.cfg),
            overwrite=args.overwrite,
            guided=args.guided,
        )
    weights.copy()
    parity = parity_of(manifest)
    args.console().print(as_table(parity))
    return ExportResult(ok=True, bundle=args.out, parity=parity, bytes=size(args.out))


@dataclass(frozen=True)
class WeightsBeside:
    """A run's weights, copied beside its bundle, where `trimvla verify` looks for them."""

    source: Path
    target: Path

    @property
    def needed(self) -> bool:
        """Whether there are any, and not there already."""
        if not self.source.exists():
            return False
        return not (self.target.exists() and self.target.samefile(self.source))

    def check(self, overwrite: bool) -> None:
        """ConfigError where other weights lie there, which nobody asked to replace."""
        if self.needed and self.target.exists() and not overwrite:
            words = "where the policy's weights go: remove it or ask for overwriting"
            raise ConfigError(f"expected no file at {self.target}, {words}")

    def copy(self) -> None:
        """Copy them; they are there as a whole or not at all."""
        if not self.needed:
            return
        handle, partial = tempfile.mkstemp(prefix=f".{self.target.name}.", dir=self.target.parent)
        os.close(handle)
        try:
            shutil.copyfile(self.source, partial)
            Path(partial).chmod(0o644)
            Path(partial).replace(self.target)
        finally:
            Path(partial).unlink(missing_ok=True)


def calibration_for(args: ExportArgs, source: Path, cfg: PolicyConfig) -> Calibration | None:
    """Frames, if the precision needs them. Raises ConfigError where there are none."""
    if not PRECISIONS[precision_named(args.dtype)].calibrated:
        return None
    tokenizer = args.tokenizer or source / TOKENIZER
    return find_calibration(args.calibration, source, cfg, tokenizer, frames=args.frames, seed=0)


def size(bundle: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in bundle.iterdir())
