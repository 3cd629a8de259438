"""Normalisation statistics of a checkpoint, from any of the files that people have, in one form.

    LeRobot   policy_preprocessor_step_<n>_normalizer_processor.safetensors:
              `<feature>.<statistic>`, or grouped by data set, `<data
              set>.buffer.<feature>.<statistic>`; up to 0.3 in the weights:
              `normalize_inputs.buffer_...`
    openpi    assets/<id>/norm_stats.json: {"norm_stats": {"state": {"mean": [...], ...}, "actions":
              {...}}}
    OpenVLA   dataset_statistics.json, norm_stats.json: {data set: {"action": {"q01": [...], ...},
              "proprio": ...}}

Features become "action" and "state". The public code normalises by the identity, in silence, where
a key is missing; here that is an error that lists what there is. Knows no family; needs safetensors
for LeRobot's files, never torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.policies.checkpoint import FeatureStatistics
from trimvla.runtime.bundle.inputs_and_output import Statistics as Mode
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import pointer_in, read_json

PROCESSORS = "policy_preprocessor.json"
NORMALIZER = "normalizer_processor"
NORMALIZERS = f"policy_preprocessor_step_*_{NORMALIZER}.safetensors"
POSTPROCESSOR = "policy_postprocessor_step_*_unnormalizer_processor.safetensors"
WEIGHTS = "model.safetensors"
FEATURES = {
    "action": "action",
    "actions": "action",
    "state": "state",
    "observation.state": "state",
    "proprio": "state",
}
"""Name in a file -> ours."""
STATISTICS = ("mean", "std", "min", "max", "q01", "q99", "q10", "q90", "mask")
MODES: dict[str, Mode] = {
    "MEAN_STD": "mean_std",
    "MIN_MAX": "min_max",
    "QUANTILES": "quantiles",
    "IDENTITY": "none",
}
"""LeRobot's normalisation modes -> ours."""
UNNAMED = "default"
OLD_BUFFER = re.compile(
    r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.(?:(?P<group>.+)[._])?"
    r"buffer_(?P<feature>\w+)\.(?P<statistic>\w+)"
)


@dataclass(frozen=True)
class Statistics:
    """One data set's statistics. `where` is the file, for error messages."""

    key: str
    """The data set's name; "default" where the file has a single one without a name."""
    features: FeatureStatistics
    where: str

    def array(self, feature: str, statistic: str) -> np.ndarray:
        """float64[dim]. CheckpointError lists what there is."""
        if feature not in self.features:
            raise CheckpointError(
                f"{self.where}: expected statistics of '{feature}' for data set '{self.key}', got"
                f" those of {sorted(self.features)}"
            )
        if statistic not in self.features[feature]:
            got = sorted(self.features[feature])
            raise CheckpointError(f"{self.where}: expected '{statistic}' of '{feature}', got {got}")
        return self.features[feature][statistic]


def read_lerobot(
    directory: Path, key: str | None = None, more: Mapping[str, str] | None = None
) -> Statistics:
    """The statistics of a LeRobot checkpoint; `key` chooses the data set where the file is grouped
    by data set. `more`: further features, LeRobot's name -> ours.

    Raises:
        CheckpointError: no file, none of the statistics in it, or not readable.
        ConfigError: grouped by data set and no key, or one that is not there.
    """
    path = _normalizer_file(directory)
    known = {**FEATURES, **(more or {})}
    tensors = _read_safetensors(path, known)
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        found = _parse_name(name, known)
        if found is not None:
            group, feature, statistic = found
            flat = np.atleast_1d(np.asarray(array, np.float64)).reshape(-1)
            groups.setdefault(group, {}).setdefault(feature, {})[statistic] = flat
    if not groups:
        shown = sorted(tensors)[:8]
        raise CheckpointError(
            f"{path}: expected statistics of 'action' (action.mean, ...), got {shown}"
        )
    return _chosen(groups, key, path)


def lerobot_modes(directory: Path) -> dict[str, Mode]:
    """How a LeRobot checkpoint normalises: {"state": mode, "action": mode}. See `lerobot_mode`."""
    return {
        ours: lerobot_mode(directory, theirs)
        for theirs, ours in (("STATE", "state"), ("ACTION", "action"))
    }


def lerobot_mode(directory: Path, kind: str) -> Mode:
    """How a LeRobot checkpoint normalises features of a kind: "STATE", "ACTION", "VISUAL", "ENV".

    From the normalizer's `norm_map`, else from config.json's `normalization_mapping`.

    Raises:
        CheckpointError: neither file has it, or the mode is one that is not known here.
    """
    mapping = _norm_map(directory)
    if mapping is None:
        config = read_json(directory / "config.json", "a policy's config", error=CheckpointError)
        mapping = config.get("normalization_mapping") if isinstance(config, dict) else None
    if not isinstance(mapping, dict):
        raise CheckpointError(
            f"{directory}: expected 'norm_map' in {PROCESSORS} or 'normalization_mapping' in "
            "config.json, got neither"
        )
    return _mode(mapping.get(kind), kind, directory)


def lerobot_epsilon(directory: Path) -> float:
    """What a LeRobot checkpoint's normalizer adds to the standard deviation."""
    step = _normalizer_step(directory)
    config = step.get("config") if step else None
    value = config.get("eps") if isinstance(config, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 1e-8


def read_openpi(directory: Path, key: str | None = None) -> Statistics:
    """The statistics of an openpi checkpoint; `key` is the asset's id, needed where there are
    several.

    Raises:
        CheckpointError: no assets/<id>/norm_stats.json, or not readable.
        ConfigError: several and no key, or one that is not there.
    """
    root = directory / "assets"
    paths = {
        path.parent.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("norm_stats.json"))
    }
    if not paths:
        raise CheckpointError(f"{directory}: expected assets/<id>/norm_stats.json, got none")
    chosen = choose_key(paths, key, root)
    table = read_json(paths[chosen], "normalisation statistics", error=CheckpointError)
    inner = table.get("norm_stats") if isinstance(table, dict) else None
    features = _features(inner if isinstance(inner, dict) else table, paths[chosen])
    return Statistics(chosen, features, str(paths[chosen]))


def read_openvla(path: Path, key: str | None = None) -> Statistics:
    """The statistics of an OpenVLA or Dexbotic file; `key` is the data set's name, needed where
    there are several.

    Raises:
        CheckpointError: not readable, or no such lists.
        ConfigError: several data sets and no key, or one that is not there.
    """
    table = read_json(path, "action statistics by data set", error=CheckpointError)
    if isinstance(table, dict) and isinstance(table.get("norm_stats"), dict):
        table = table["norm_stats"]
    if not isinstance(table, dict) or not table:
        raise CheckpointError(
            f"{path}: expected statistics by data set, got {type(table).__name__}"
        )
    chosen = choose_key(table, key, path)
    entry = table[chosen]
    if isinstance(entry, dict) and any(name in entry for name in STATISTICS):
        entry = {"action": entry}
    return Statistics(chosen, _features(entry, path), str(path))


def choose_key(keys: Mapping[str, Any], asked: str | None, where: Path) -> str:
    """The data set that is meant.

    Raises ConfigError where it is unknown, or not named among several.
    """
    names = sorted(keys)
    if asked is None and len(names) == 1:
        return names[0]
    if asked not in keys:
        raise ConfigError(f"{where}: expected --statistics-key as one of {names}, got {asked!r}")
    return str(asked)


def _chosen(groups: Mapping[str, FeatureStatistics], key: str | None, path: Path) -> Statistics:
    if set(groups) == {""}:
        if key not in (None, UNNAMED):
            raise ConfigError(
                f"{path}: expected no --statistics-key, or '{UNNAMED}': it is not grouped by data"
                f" set, got {key!r}"
            )
        return Statistics(UNNAMED, groups[""], str(path))
    named = {name: features for name, features in groups.items() if name}
    chosen = choose_key(named, key.removesuffix(".buffer") if key else key, path)
    return Statistics(chosen, named[chosen], str(path))


def _parse_name(name: str, features: Mapping[str, str] = FEATURES) -> tuple[str, str, str] | None:
    """`so100.buffer.observation.state.mean` -> ("so100", "state", "mean"); None for other
    tensors.
    """
    old = OLD_BUFFER.fullmatch(name.removeprefix("model."))
    if old is not None and old["statistic"] in STATISTICS:
        buffered = {theirs.replace(".", "_"): ours for theirs, ours in features.items()}
        ours = buffered.get(old["feature"])
        return None if ours is None else (old["group"] or "", ours, old["statistic"])
    rest, _, statistic = name.rpartition(".")
    if statistic not in STATISTICS:
        return None
    for theirs in sorted(features, key=len, reverse=True):
        if rest == theirs:
            return "", features[theirs], statistic
        if rest.endswith(f".{theirs}"):
            return (
                rest.removesuffix(f".{theirs}").removesuffix(".buffer"),
                features[theirs],
                statistic,
            )
    return None


def _normalizer_file(directory: Path) -> Path:
    step = _normalizer_step(directory)
    named = step.get("state_file") if step else None
    if isinstance(named, str):
        path = directory / Path(named).name
        if not path.is_file():
            raise CheckpointError(
                f"{directory / PROCESSORS}: expected its state_file {named!r} there, got no file"
            )
        return path
    for pattern in (NORMALIZERS, POSTPROCESSOR):
        found = sorted(directory.glob(pattern))
        if found:
            return found[0]
    path = directory / WEIGHTS
    if path.is_file() and any(_parse_name(name) for name in _names(path)):
        return path
    raise CheckpointError(
        f"{directory}: expected {NORMALIZERS} (LeRobot 0.4 and later), or normalisation buffers in"
        f" {WEIGHTS} (before), got neither"
    )


def _normalizer_step(directory: Path) -> dict[str, Any] | None:
    path = directory / PROCESSORS
    if not path.is_file():
        return None
    processors = read_json(path, "LeRobot's processors", error=CheckpointError)
    steps = processors.get("steps") if isinstance(processors, dict) else None
    if not isinstance(steps, list):
        raise CheckpointError(f"{path}: expected a list of 'steps', got {type(steps).__name__}")
    found = [
        step for step in steps if isinstance(step, dict) and step.get("registry_name") == NORMALIZER
    ]
    return found[0] if found else None


def _norm_map(directory: Path) -> dict[str, Any] | None:
    step = _normalizer_step(directory)
    config = step.get("config") if step else None
    mapping = config.get("norm_map") if isinstance(config, dict) else None
    return mapping if isinstance(mapping, dict) else None


def _mode(value: object, name: str, directory: Path) -> Mode:
    if value is None:
        return "none"  # LeRobot's own reading of a type that the mapping lacks
    if not isinstance(value, str) or value not in MODES:
        raise CheckpointError(
            f"{directory}: expected {sorted(MODES)} for the normalisation of {name}, got {value!r}"
        )
    return MODES[value]


def _features(table: object, path: Path) -> FeatureStatistics:
    """{feature: {statistic: [numbers]}} of parsed JSON, by our names."""
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: expected statistics by feature, got {type(table).__name__}")
    found = {
        FEATURES[name]: _lists(lists, f"{path}: '{name}'")
        for name, lists in table.items()
        if name in FEATURES
    }
    if not found:
        raise CheckpointError(
            f"{path}: expected statistics of {sorted(FEATURES)}, got {sorted(table)[:8]}"
        )
    return found


def _lists(lists: object, where: str) -> dict[str, np.ndarray]:
    if not isinstance(lists, dict):
        raise CheckpointError(f"{where}: expected lists of numbers, got {type(lists).__name__}")
    found = {}
    for name in STATISTICS:
        if lists.get(name) is not None:
            try:
                kind = np.bool_ if name == "mask" else np.float64
                found[name] = np.atleast_1d(np.asarray(lists[name], kind)).reshape(-1)
            except (TypeError, ValueError):
                raise CheckpointError(
                    f"{where}: expected a list of numbers for '{name}', got another"
                ) from None
    return found


def _read_safetensors(path: Path, features: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The tensors that are statistics, by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            wanted = [name for name in names if _parse_name(name, features)] or names[:8]
            return {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got: {pointer_in(path) or error}"
        ) from None


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got: {pointer_in(path) or error}"
        ) from None
