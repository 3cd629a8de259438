"""A trained run or an official checkpoint -> a bundle. Finds the parts; `export.bundle` makes it.

What memory cannot hold is streamed (`stream`). Knows options and files; not what a graph is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trimvla.export.bundle import BundleRequest, export_policy
from trimvla.export.inputs import check_target, read_tokenizer, with_action
from trimvla.export.precision.ranges import CalibrationFrames
from trimvla.export.precision.table import PRECISIONS, precision_named
from trimvla.export.verify import patch_beside
from trimvla.launch.console import progress_bar
from trimvla.launch.exporting.named_plan import named_plan
from trimvla.launch.exporting.options import ExportArgs
from trimvla.launch.exporting.paired_plan import find_shards
from trimvla.launch.exporting.parity_table import as_table
from trimvla.launch.exporting.policy_source import (
    TOKENIZER,
    WEIGHTS,
    build_policy,
    find_source,
    is_official,
    open_source,
)
from trimvla.launch.exporting.results import ExportResult, StreamedResult, parity_of
from trimvla.launch.exporting.stage_frames import stage_frames
from trimvla.launch.exporting.stream import (
    official_source,
    random_source,
    run_streamed,
)
from trimvla.launch.exporting.unwinding import unwinding
from trimvla.launch.frames.calibration import find_calibration
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import family_of
from trimvla.policies.recovery.patch import (
    check_distilled,
    check_family,
    check_record,
    read_patch,
)
from trimvla.runtime.bundle.action_statistics import chosen
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError


def run(args: ExportArgs) -> ExportResult | StreamedResult:
    """Load, export, prove; the parity report. What memory cannot hold goes its own way."""
    with unwinding():
        return export(args)


def export(args: ExportArgs) -> ExportResult | StreamedResult:
    """The work of `run`."""
    if args.source is None:
        return run_streamed(args, *random_source(args))
    source = find_source(args.source)
    check_target(args.out, args.overwrite)
    opened = open_source(
        source,
        preset=args.preset,
        checkpoint=args.checkpoint,
        statistics_key=args.statistics_key,
        tokenizer=args.tokenizer,
    )
    if is_official(source) and family_of(opened.cfg).lend_weights is not None:
        if args.patch is not None:
            words = "an official checkpoint is exported weight by weight, which takes no patch yet"
            raise ConfigError(f"{source}: expected no --patch, got {args.patch}: {words}")
        return run_streamed(args, *official_source(args, opened))
    weights = FileBeside(source / WEIGHTS, args.out.with_name(f"{args.out.name}.safetensors"))
    copied = [weights]
    if args.patch is not None:
        copied.append(FileBeside(args.patch, patch_beside(args.out), "the patch goes"))
    for file in copied:
        file.check(args.overwrite)
    with progress_bar() as progress:
        progress.add_task("exporting and comparing with torch", total=None)
        manifest = export_policy(bundle_request(args, source, opened))
    for file in copied:
        file.copy()
    parity = parity_of(manifest)
    args.console().print(as_table(parity))
    return ExportResult(ok=True, bundle=args.out, parity=parity, bytes=size(args.out))


def bundle_request(args: ExportArgs, source: Path, opened: Checkpoint) -> BundleRequest:
    """What is exported of an opened checkpoint; its weights are read last.

    Raises ConfigError where statistics, tokenizer or frames do not fit, CheckpointError where the
    patch does not.
    """
    plan = named_plan(args.plan, opened.cfg)
    patch = None if args.patch is None else read_patch(args.patch)
    if patch is not None:
        check_family(opened.cfg)
        check_record(patch, opened.cfg, plan)
    check_distilled(plan, patch)
    described = with_action(family_of(opened.cfg).describe(opened, plan), *args.action)
    key = opened.statistics_key
    chosen(opened.table, key, described.action, where=opened.statistics_file, error=ConfigError)
    if described.prompt is not None:
        family = family_of(opened.cfg)
        read_tokenizer(opened.tokenizer, described.prompt, family, beside=opened.directory)
    return BundleRequest(
        policy=build_policy(opened),
        described=described,
        plan=plan,
        patch=patch,
        statistics=opened.table,
        tokenizer=opened.tokenizer,
        out=args.out,
        precision=args.dtype,
        calibration=calibration_for(args, source, opened, plan),
        overwrite=args.overwrite,
        guided=args.guided,
    )


@dataclass(frozen=True)
class FileBeside:
    """A run's weights, or a patch, copied beside the bundle, where `trimvla verify` looks for
    them.
    """

    source: Path
    target: Path
    what: str = "the policy's weights go"

    @property
    def needed(self) -> bool:
        """Whether there are any, and not there already."""
        if not self.source.exists():
            return False
        return not (self.target.exists() and self.target.samefile(self.source))

    def check(self, overwrite: bool) -> None:
        """ConfigError where other weights lie there, which nobody chose to replace."""
        if self.needed and self.target.exists() and not overwrite:
            words = f"where {self.what}: remove it or ask for overwriting"
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


def calibration_for(
    args: ExportArgs, source: Path, opened: Checkpoint, plan: Plan
) -> CalibrationFrames | None:
    """Frames, if the precision needs them. Raises ConfigError where there are none."""
    if not PRECISIONS[precision_named(args.dtype)].calibrated:
        return None
    cfg = opened.cfg
    if not family_of(cfg).calibrates:
        shards = find_shards(args.calibration, source)
        return stage_frames(opened, plan, shards, args.frames, seed=0)
    tokenizer = args.tokenizer or source / TOKENIZER
    return find_calibration(args.calibration, source, cfg, tokenizer, frames=args.frames, seed=0)


def size(bundle: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in bundle.iterdir())
