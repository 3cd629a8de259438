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

from trimvla.export.graphs.stages import stage_spec
from trimvla.export.precision.ranges import CalibrationFrames
from trimvla.export.precision.table import PRECISIONS
from trimvla.policies.families import Family, family_of
from trimvla.policies.trimming.calibrate import Calibration, check_calibration
from trimvla.runtime.bundle import action_statistics
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import (
    ActionKind,
    InputsAndOutput,
    Manifest,
    PromptSpec,
    StageSpec,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import WHAT, check_vocabulary, parse_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_text

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


def with_action(
    described: InputsAndOutput,
    control_hz: float | None = None,
    kinds: Sequence[ActionKind] = (),
    names: Sequence[str] = (),
    units: Sequence[str] = (),
) -> InputsAndOutput:
    """The same with another rate [Hz] and other kinds, names and units of action dimensions, where
    they are given.

    Raises:
        ConfigError: the rate is none, or there are too few kinds, names or units, or too many.
    """
    action = described.action
    rate = action.control_hz if control_hz is None else control_hz
    chosen = tuple(kinds) or action.kinds
    if not (math.isfinite(rate) and 0 < rate <= MAX_HZ):
        limits = f"a rate above 0 and of at most {MAX_HZ:g} Hz"
        raise ConfigError(f"expected {limits} for 'control_hz', got {rate}")
    if len(chosen) != action.dim:
        raise ConfigError(f"expected {action.dim} entries for 'kinds', got {len(chosen)}")
    for field, given in (("names", names), ("units", units)):
        if given and len(given) != action.dim:
            raise ConfigError(f"expected {action.dim} entries for '{field}', got {len(given)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"expected names that differ for 'names', got {list(names)}")
    changed = msgspec.structs.replace(
        action,
        control_hz=float(rate),
        kinds=chosen,
        names=tuple(names) or action.names,
        units=tuple(units) or action.units,
    )
    return msgspec.structs.replace(described, action=changed)


def read_tokenizer(
    path: Path | None, prompt: PromptSpec, family: Family, *, beside: Path | None = None
) -> str:
    """A tokenizer's text, if it is one of this policy; `beside`: the folder where it was looked
    for.

    Raises ConfigError, which names the place where users have it.
    """
    if path is None or not path.exists():
        place = "beside the checkpoint" if beside is None else f"in {beside}"
        where = f"{place}, or under --tokenizer" if path is None else f"at {path}"
        got = f"got no file; {family.tokenizer_hint}"
        raise ConfigError(f"expected the policy's tokenizer {where}, {got}")
    text = read_text(path, WHAT)
    check_tokenizer(text, prompt, path)
    return text


def check_tokenizer(text: str, prompt: PromptSpec, where: Path | str) -> None:
    """ConfigError where a tokenizer's text is none, or gives ids that the policy has no embedding
    for.
    """
    tokenizer = parse_tokenizer(text, where, error=ConfigError)
    if prompt.vocabulary is not None:
        first = () if prompt.bos_id is None else (prompt.bos_id,)
        special = (*first, *prompt.suffix_ids, prompt.pad_id)
        check_vocabulary(tokenizer, prompt.vocabulary, special, where)


def statistics_text(
    statistics: Mapping[str, Any], described: InputsAndOutput, where: str = "statistics"
) -> str:
    """What a bundle's `statistics.json` holds of a table: the chosen data set, checked against
    actions and state.

    Raises:
        BundleError: see `action_statistics.chosen`.
    """
    action = described.action
    key = action.statistics_key
    action_statistics.chosen(statistics, key, action, where=where)
    features = [action_statistics.ACTION]
    if described.state is not None:
        action_statistics.chosen_state(statistics, key, described.state, where=where)
        features.append(action_statistics.STATE)
    kept = action_statistics.only(statistics, key, features)
    return json.dumps(kept, indent=1, sort_keys=True, allow_nan=False) + "\n"


def stage_specs(cfg: Any, plan: Plan, guided: bool = False) -> dict[str, StageSpec]:  # noqa: ANN401
    """The stages as the manifest describes them."""
    stages = family_of(cfg).stages(cfg, plan, guided)
    return {stage.name: stage_spec(cfg, stage, f"{stage.name}.onnx", plan) for stage in stages}


def check_manifest(manifest: Manifest) -> None:
    """Raise BundleError where the runtime would refuse this manifest, whatever its files hold."""
    empty = bundles.FileSpec("0" * 64, 1)
    needed = [*manifest.texts, *(stage.file for stage in manifest.stages.values())]
    bundles.check(msgspec.structs.replace(manifest, files=dict.fromkeys(needed, empty)))


def check_frames(
    precision: str,
    calibration: CalibrationFrames | None,
    cfg: Any,  # noqa: ANN401
) -> None:
    """ConfigError where a precision needs calibration frames, and there are none or those of
    another policy.
    """
    if not PRECISIONS[precision].calibrated:
        return
    if calibration is None or (not isinstance(calibration, Calibration) and not calibration):
        raise ConfigError(f"expected calibration frames for {precision}, got none")
    if isinstance(calibration, Calibration):
        check_calibration(calibration, cfg)
