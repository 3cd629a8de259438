"""Policy + plan -> bundle: a directory that is complete or absent.

Everything is written beside the target, proved against torch, validated as the runtime will
validate it, and only then renamed into place. Knows what a bundle holds, of any family; graphs come
from `to_onnx`, the proof from `verify`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from trimvla.export.graphs.stages import DENSE, stage_spec, stages_of
from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.inputs import (
    check_frames,
    check_manifest,
    check_target,
    read_tokenizer,
    stage_specs,
    statistics_text,
)
from trimvla.export.precision.ranges import CalibrationFrames
from trimvla.export.precision.table import convert, precision_named
from trimvla.export.verify import closing_all, parity, proof_runners
from trimvla.policies.families import family_of
from trimvla.policies.recovery.patch import Patch, check_distilled, under_patch
from trimvla.policies.stage import Stage
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import (
    InputsAndOutput,
    Manifest,
    PatchSpec,
    Plan,
    StageSpec,
    modes_of,
)
from trimvla.runtime.errors import BundleError, ConfigError

PARITY_SAMPLES = 2  # inputs per prompt bucket in the proof that a bundle carries


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """What is to be exported."""

    policy: nn.Module
    """The dense policy of any family, in float32, on the CPU."""
    described: InputsAndOutput
    """What it takes and gives: `Family.describe`, perhaps with another rate or other kinds
    (`inputs.with_action`).
    """
    plan: Plan = DENSE
    """What is kept of it; the empty plan is the dense policy."""
    patch: Patch | None = None
    """Weights that were recovered for this plan, in place of the dense ones' slices."""
    statistics: Mapping[str, Any]
    """{key: {"action": {"q01": [A], ...}, "state": {...}}} with
    `described.action.statistics_key` among the keys.
    """
    tokenizer: Path | None
    """The policy's `tokenizer.json`; not looked at for one that reads no instruction."""
    out: Path
    """The bundle; its last part becomes the bundle's name."""
    precision: str = "float32"
    """What the graphs compute in; see `precision.PRECISIONS`."""
    calibration: CalibrationFrames | None = None
    """Frames of this policy, for a precision that needs them."""
    created_utc: str | None = None
    """Time stamp; now when left out."""
    overwrite: bool = False
    """Replace an existing bundle."""
    guided: bool = False
    """Also export the optional stages that real-time chunking needs."""


def export_policy(request: BundleRequest) -> Manifest:
    """Export a policy to a bundle; the manifest, with the parity report.

    Raises:
        ConfigError: the plan does not fit, or its guidance is distilled and no patch has a head for
            it, no tokenizer, no such statistics, an unknown precision
            or no frames for it,
            or the target exists.
        CheckpointError: the patch is for another policy or plan.
        BundleError: the graphs differ from torch by more than their tolerance. Nothing is left
            behind.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.export import export_policy
        >>> from trimvla.export.bundle import BundleRequest
        >>> from trimvla.policies import load_policy
        >>> from trimvla.runtime import Plan, Policy, find_bundle
        >>> shipped = find_bundle("tabletop")
        >>> bundle = Path(tempfile.mkdtemp()) / "short"
        >>> scale = {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}
        >>> request = BundleRequest(
        ...     policy=load_policy(shipped.with_suffix(".safetensors")),
        ...     described=Policy.load(shipped).manifest.described,
        ...     plan=Plan(layers=(0, 4), steps=2),
        ...     statistics={"tabletop": {"action": scale}},
        ...     tokenizer=shipped / "tokenizer.json",
        ...     out=bundle,
        ... )
        >>> manifest = export_policy(request)
        >>> sorted(manifest.stages), Policy.load(bundle).manifest.name
        (['action', 'language', 'vision'], 'short')
    """
    precision = precision_named(request.precision)
    if request.guided and precision != "float32":
        raise ConfigError(
            f"expected 'guided' with precision float32 only, got {precision}: "
            "the stage's weights are there"
        )
    cfg: Any = request.policy.cfg
    family = family_of(cfg)
    check_target(request.out, request.overwrite)
    check_distilled(request.plan, request.patch)
    check_frames(precision, request.calibration, cfg)
    described = request.described
    prompt = described.prompt
    tokenizer = None if prompt is None else read_tokenizer(request.tokenizer, prompt, family)
    scales = statistics_text(request.statistics, described)
    policy = under_patch(request.policy, request.plan, request.patch)
    manifest = manifest_of(
        cfg,
        request.plan,
        described,
        name=request.out.name,
        precision=precision,
        created_utc=request.created_utc,
        guided=request.guided,
        patch=None if request.patch is None else request.patch.spec,
    )
    check_manifest(manifest)
    with written_beside(request.out) as directory:
        if tokenizer is not None:
            (directory / bundles.TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (directory / bundles.STATISTICS).write_text(scales, encoding="utf-8")
        for stage in stages_of(policy, request.guided):
            export_to(policy, stage, directory)
        files = {name: directory / stage.file for name, stage in manifest.stages.items()}
        convert(files, precision, cfg, request.calibration)
        return prove(policy, manifest, directory)


def described_by(manifest: Manifest) -> InputsAndOutput:
    """The inputs and output of a bundle: what another plan of its policy has too."""
    return InputsAndOutput(
        images=manifest.images,
        prompt=manifest.prompt,
        state=manifest.state,
        flow=manifest.flow,
        action=manifest.action,
    )


def manifest_of(
    cfg: Any,  # noqa: ANN401
    plan: Plan,
    described: InputsAndOutput,
    *,
    name: str,
    precision: str,
    created_utc: str | None,
    guided: bool = False,
    patch: PatchSpec | None = None,
) -> Manifest:
    """The manifest of a bundle made now, or at `created_utc`; its parity report is still
    missing.
    """
    stages = stage_specs(cfg, plan, guided)
    return Manifest(
        name=name,
        created_utc=created_utc or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        trimvla_version=version("trimvla"),
        family=family_of(cfg).name,
        policy=cfg.to_dict(),
        plan=plan,
        patch=patch,
        precision=precision,
        images=described.images,
        prompt=described.prompt,
        state=described.state,
        flow=described.flow,
        action=described.action,
        stages=stages,
        modes=modes_of(tuple(stages)),
    )


def export_to(policy: nn.Module, stage: Stage, directory: Path) -> StageSpec:
    """Write one stage's graph into the directory."""
    cfg: Any = policy.cfg
    plan: Any = policy.plan
    file = f"{stage.name}.onnx"
    export_stage(policy, stage, directory / file)
    return stage_spec(cfg, stage, file, plan)


def prove(policy: nn.Module, manifest: Manifest, directory: Path) -> Manifest:
    """Measure parity, write the manifest with the report, and read the bundle back as the runtime
    does.

    Raises:
        BundleError: a boundary differs by more than its tolerance.
    """
    with closing_all(proof_runners(directory, manifest)) as runners:
        result = parity(
            policy,
            runners,
            samples=PARITY_SAMPLES,
            seed=0,
            precision=manifest.precision,
            clip=manifest.action.clip,
        )
    if not result.ok:
        raise BundleError(f"bundle '{manifest.name}' differs from torch: {result.complaint()}")
    proved = msgspec.structs.replace(manifest, parity=msgspec.to_builtins(result))
    bundles.write(directory, proved)
    return bundles.load(directory)


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place at the end, or vanishes when anything
    fails.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        beside.chmod(0o755)
        yield beside
        swap(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def swap(beside: Path, out: Path) -> None:
    """Exchange `beside` and `out` by renaming; afterwards `beside` holds what `out` was, if it
    was.
    """
    if not out.exists():
        beside.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)
    try:
        beside.rename(out)
    except OSError:
        old.rename(out)
        raise
    old.rename(beside)
