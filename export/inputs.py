"""What a bundle is made of besides weights, opened and checked before the first of hours of export.

Name and place of the bundle, statistics against the actions, tokenizer against the vocabulary, and
the manifest as the runtime will read it. Writes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimvla.export.graphs.stages import stage_spec, stages_under
from trimvla.export.precision.table import PRECISIONS
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, check_calibration
from trimvla.runtime.bundle import action_statistics
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import ActionKind, ActionSpec, Manifest, StageSpec
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import WHAT, check_vocabulary, parse_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_text

GATED = (
    "; CogACT uses LLaMA-2's, which is gated: take `tokenizer.json` from your own copy of that"
    " model"
)
MAX_HZ = 1000.0


def check_target(out: Path, overwrite: bool) -> None:
    """ConfigError where the path gives no bundle's name, or something is there that may not be
    replaced.
    """
    bundles.check_name(out.name, f"the last part of the bundle's path '{out}'")
    if not out.exists():
        return
    if not overwrite:
        raise ConfigError(f"expected no bundle at {out}, got one: remove it or ask for overwriting")
    if not out.is_dir() or (any(out.iterdir()) and not (out / bundles.MANIFEST).is_file()):
        raise ConfigError(
            f"expected a bundle at {out}, to overwrite it, got something else: remove it yourself"
        )


def action_spec(
    cfg: PolicyConfig, control_hz: float, kinds: Sequence[ActionKind], statistics_key: str
) -> ActionSpec:
    """The manifest's words about actions; ConfigError where the rate is none or the kinds are too
    few or too many.
    """
    if not (math.isfinite(control_hz) and 0 < control_hz <= MAX_HZ):
        raise ConfigError(
            f"expected a rate above 0 and of at most {MAX_HZ:g} Hz for 'control_hz', got"
            f" {control_hz}"
        )
    if len(kinds) != cfg.head.action_dim:
        raise ConfigError(f"expected {cfg.head.action_dim} entries for 'kinds', got {len(kinds)}")
    return ActionSpec(
        cfg.head.horizon, cfg.head.action_dim, float(control_hz), tuple(kinds), statistics_key
    )


def read_tokenizer(path: Path, cfg: PolicyConfig) -> str:
    """A tokenizer's text, if it is one of this policy. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"expected the policy's tokenizer at {path}, got no file{GATED}")
    text = read_text(path, WHAT)
    check_tokenizer(text, cfg, path)
    return text


def check_tokenizer(text: str, cfg: PolicyConfig, where: Path | str) -> None:
    """ConfigError where a tokenizer's text is none, or gives ids that the policy has no embedding
    for.
    """
    prompt = cfg.prompt
    special = (prompt.bos_id, prompt.empty_id, prompt.eos_id, prompt.pad_id)
    check_vocabulary(
        parse_tokenizer(text, where, error=ConfigError), cfg.language.vocab, special, where
    )


def statistics_text(
    statistics: Mapping[str, Any], key: str, action: ActionSpec, where: str = "statistics"
) -> str:
    """What a bundle's `statistics.json` holds of a table: the chosen data set, checked against the
    actions.

    Raises:
        BundleError: see `action_statistics.chosen`.
    """
    action_statistics.chosen(statistics, key, action, where=where)
    return (
        json.dumps(
            action_statistics.only(statistics, key), indent=1, sort_keys=True, allow_nan=False
        )
        + "\n"
    )


def stage_specs(cfg: PolicyConfig, plan: Plan, guided: bool = False) -> dict[str, StageSpec]:
    """The stages as the manifest describes them."""
    stages = stages_under(plan, guided)
    return {stage.name: stage_spec(cfg, stage, f"{stage.name}.onnx", plan) for stage in stages}


def check_manifest(manifest: Manifest) -> None:
    """Raise BundleError where the runtime would refuse this manifest, whatever its files hold."""
    empty = bundles.FileSpec("0" * 64, 1)
    needed = [
        bundles.STATISTICS,
        bundles.TOKENIZER,
        *(stage.file for stage in manifest.stages.values()),
    ]
    bundles.check(msgspec.structs.replace(manifest, files=dict.fromkeys(needed, empty)))


def check_frames(precision: str, calibration: Calibration | None, cfg: PolicyConfig) -> None:
    """ConfigError where a precision needs calibration frames, and there are none or those of
    another policy.
    """
    if not PRECISIONS[precision].calibrated:
        return
    if calibration is None:
        raise ConfigError(f"expected calibration frames for {precision}, got none")
    check_calibration(calibration, cfg)
