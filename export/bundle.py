"""Policy + plan -> bundle: a directory that is complete or absent.

Everything is written beside the target, proved against torch, validated as the runtime will
validate it, and only then renamed into place. Knows what a bundle holds; graphs come from
`to_onnx`, the proof from `verify`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from trimvla.export.graphs.stages import Stage, prompt_spec, stage_spec, stages_under
from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.inputs import (
    action_spec,
    check_frames,
    check_manifest,
    check_target,
    read_tokenizer,
    stage_specs,
    statistics_text,
)
from trimvla.export.precision.table import convert, precision_named
from trimvla.export.verify import closing_all, parity, proof_runners
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import (
    ActionKind,
    ActionSpec,
    ImageSpec,
    Manifest,
    Plan,
    StageSpec,
)
from trimvla.runtime.errors import BundleError, ConfigError

SIX_DELTAS_AND_GRIPPER: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
PARITY_SAMPLES = 2  # inputs per prompt bucket in the proof that a bundle carries


def export_policy(
    policy: CogAct,
    plan: Plan,
    statistics: Mapping[str, Any],
    tokenizer_path: Path | str,
    out_dir: Path | str,
    *,
    statistics_key: str,
    control_hz: float,
    precision: str = "float32",
    calibration: Calibration | None = None,
    kinds: Sequence[ActionKind] = SIX_DELTAS_AND_GRIPPER,
    created_utc: str | None = None,
    overwrite: bool = False,
    guided: bool = False,
) -> Manifest:
    """Export a policy to a bundle.

    Args:
        policy: the dense policy, in float32, on the CPU.
        plan: what is kept of it; the empty plan is the dense policy.
        statistics: the official layout {key: {"action": {"q01": [A], "q99": [A], "mask": [A]}}}.
        tokenizer_path: the policy's `tokenizer.json`.
        out_dir: the bundle; its last part becomes the bundle's name.
        statistics_key: the entry of `statistics` that un-normalises actions.
        control_hz: rows of a chunk per second [Hz].
        precision: what the graphs compute in; see `precision.PRECISIONS`.
        calibration: frames of this policy, for a precision that needs them.
        kinds: what each action dimension is.
        created_utc: time stamp; now when left out.
        overwrite: replace an existing bundle.
        guided: also export the optional stage that real-time chunking needs.

    Returns:
        The manifest, with the parity report.

    Raises:
        ConfigError: the plan does not fit, no tokenizer, no such statistics, an unknown precision
            or no frames for it, or the target exists.
        BundleError: the graphs differ from torch by more than their tolerance. Nothing is left
            behind.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.export import export_policy
        >>> from trimvla.policies import load_policy
        >>> from trimvla.runtime import Plan, Policy, find_bundle
        >>> shipped = find_bundle("tabletop")
        >>> bundle = Path(tempfile.mkdtemp()) / "short"
        >>> scale = {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}
        >>> manifest = export_policy(
        ...     load_policy(shipped.with_suffix(".safetensors")),
        ...     Plan(layers=(0, 4), steps=2),
        ...     {"lab": {"action": scale}},
        ...     shipped / "tokenizer.json",
        ...     bundle,
        ...     statistics_key="lab",
        ...     control_hz=5.0,
        ... )
        >>> sorted(manifest.stages), Policy.load(bundle).manifest.name
        (['action', 'language', 'vision'], 'short')
    """
    precision = precision_named(precision)
    if guided and precision != "float32":
        raise ConfigError(
            f"expected 'guided' with precision float32 only, got {precision}: the stage's weights"
            " are there"
        )
    out = Path(out_dir)
    cfg = policy.cfg
    check_target(out, overwrite)
    check_frames(precision, calibration, cfg)
    action = action_spec(cfg, control_hz, kinds, statistics_key)
    tokenizer = read_tokenizer(Path(tokenizer_path), cfg)
    scales = statistics_text(statistics, statistics_key, action)
    policy = trim(policy, plan)
    stages = stage_specs(cfg, plan, guided)
    manifest = described(
        cfg,
        plan,
        name=out.name,
        precision=precision,
        action=action,
        stages=stages,
        created_utc=created_utc,
    )
    check_manifest(manifest)
    with written_beside(out) as directory:
        (directory / bundles.TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (directory / bundles.STATISTICS).write_text(scales, encoding="utf-8")
        for stage in stages_under(plan, guided):
            export_to(policy, stage, directory)
        convert(
            {name: directory / stage.file for name, stage in manifest.stages.items()},
            precision,
            cfg,
            calibration,
        )
        return prove(policy, manifest, directory)


def described(
    cfg: PolicyConfig,
    plan: Plan,
    *,
    name: str,
    precision: str,
    action: ActionSpec,
    stages: Mapping[str, StageSpec],
    created_utc: str | None,
) -> Manifest:
    """The manifest of a bundle made now, or at `created_utc`; its parity report is still
    missing.
    """
    return Manifest(
        name=name,
        created_utc=created_utc or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        trimvla_version=version("trimvla"),
        policy=cfg.to_dict(),
        plan=plan,
        precision=precision,
        image=ImageSpec(cfg.image_size),
        prompt=prompt_spec(cfg),
        action=action,
        stages=dict(stages),
    )


def export_to(policy: CogAct, stage: Stage, directory: Path) -> StageSpec:
    """Write one stage's graph into the directory."""
    file = f"{stage.name}.onnx"
    export_stage(policy, stage, directory / file)
    return stage_spec(policy.cfg, stage, file, policy.plan)


def prove(policy: CogAct, manifest: Manifest, directory: Path) -> Manifest:
    """Measure parity, write the manifest with the report, and read the bundle back as the runtime
    does.

    Raises:
        BundleError: a boundary differs by more than its tolerance.
    """
    with closing_all(proof_runners(directory, manifest)) as runners:
        result = parity(
            policy, runners, samples=PARITY_SAMPLES, seed=0, precision=manifest.precision
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
