"""Checkpoints: the official directory layout, and our own single safetensors file.

Both loaders are strict: a missing, unknown or wrongly shaped weight is a `CheckpointError` that names it. Both build
the policy on the meta device and then put mapped tensors in place, so weights are never held twice: without a change
of dtype they stay views of the file, paged in when used. Knows files; names and shapes are in `layout`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimvla.policies.cogact import CogAct
from trimvla.policies.config import PolicyConfig
from trimvla.policies.layout import GROUPS, UNUSED_GROUPS, build_meta, dead_weights, live_weights
from trimvla.runtime.errors import CheckpointError

CONFIG_KEY = "trimvla.policy"
NAMES_SHOWN = 5


def load_official(directory: Path | str, cfg: PolicyConfig, dtype: torch.dtype = torch.float32) -> CogAct:
    """Load `directory/checkpoints/<one>.pt` as the public code writes it.

    Args:
        directory: the official layout: `config.json`, `dataset_statistics.json`, `checkpoints/<one>.pt`.
        cfg: sizes of the policy; the file does not hold them.
        dtype: weights are converted to it one at a time.

    Raises:
        CheckpointError: no single checkpoint, an unreadable one, or one that does not fit `cfg`.
    """
    return _assign(build_meta(cfg), open_official(directory, cfg), dtype)


def open_official(directory: Path | str, cfg: PolicyConfig) -> dict[str, Tensor]:
    """The weights of an official checkpoint by our names and in our shapes: views of the mapped file, checked.

    Raises:
        CheckpointError: as `load_official`.
    """
    path = single_checkpoint(directory)
    weights = _flatten(_read_pickle(path), path)
    live, dead = live_weights(cfg), dead_weights(cfg)
    _check_names(path, weights.keys(), live.keys(), dead.keys())
    for name, shape in {**{name: weight.shape for name, weight in live.items()}, **dead}.items():
        if name in weights:
            _check_shape(path, name, weights[name], shape)
    shapes = {name: meta.shape for name, meta in build_meta(cfg).state_dict().items()}
    return {weight.target: weights[name].reshape(shapes[weight.target]) for name, weight in live.items()}


def save(
    policy: CogAct, path: Path | str, metadata: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write the policy and its config as one safetensors file; the file appears complete or not at all.

    Args:
        policy: what to write.
        path: the file.
        metadata: kept beside the config in the file's header.
        dtype: store the weights rounded to it (float16 halves the file); as they are when left out.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in policy.state_dict().items()}
    described = {**(metadata or {}), CONFIG_KEY: json.dumps(policy.cfg.to_dict(), sort_keys=True)}
    try:
        save_file(tensors, partial, metadata=described)
        partial.chmod(0o644)  # safetensors makes it private
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(path: Path | str, cfg: PolicyConfig | None = None, dtype: torch.dtype = torch.float32) -> CogAct:
    """Load a file written by `save`.

    Args:
        path: the safetensors file.
        cfg: the sizes to expect; those stored in the file when left out.
        dtype: weights are converted to it one at a time.

    Raises:
        CheckpointError: unreadable, without a config, or not fitting the config.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            described, weights = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got: {error}") from error
    if cfg is None and CONFIG_KEY not in described:
        raise CheckpointError(f"{path}: expected a policy config under '{CONFIG_KEY}' in its metadata, got none")
    policy = build_meta(cfg or PolicyConfig.from_dict(json.loads(described[CONFIG_KEY])))
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    _check_names(path, weights.keys(), expected.keys())
    for name, shape in expected.items():
        _check_shape(path, name, weights[name], shape)
    return _assign(policy, weights, dtype)


def single_checkpoint(directory: Path | str) -> Path:
    """The one .pt file of the official layout. CheckpointError where there is none, or several."""
    folder = Path(directory) / "checkpoints"
    found = sorted(folder.glob("*.pt"))
    if len(found) != 1:
        names = [path.name for path in found] or "none"
        raise CheckpointError(f"expected exactly one .pt file in {folder}, got {names}")
    return found[0]


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: expected a torch checkpoint, got: {error}") from error


def _flatten(content: object, path: Path) -> dict[str, Tensor]:
    """{"model": {group: {key: tensor}}} -> {"group.key": tensor}, without the unused groups."""
    groups = content.get("model") if isinstance(content, dict) else None
    if not isinstance(groups, dict):
        raise CheckpointError(f"{path}: expected a dict with 'model', got {type(content).__name__}")
    _check_names(path, groups.keys(), GROUPS, UNUSED_GROUPS)
    return {f"{group}.{key}": tensor for group in GROUPS for key, tensor in groups[group].items()}


def _check_names(path: Path, found: Iterable[str], required: Iterable[str], allowed: Iterable[str] = ()) -> None:
    found, required = set(found), set(required)
    for problem, names in (("missing", required - found), ("unexpected", found - required - set(allowed))):
        if names:
            raise CheckpointError(f"{path}: {len(names)} {problem} weight(s): {_some(names)}")


def _some(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:NAMES_SHOWN])
    return shown + (", ..." if len(names) > NAMES_SHOWN else "")


def _check_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{path}: expected {list(shape)}, got {list(tensor.shape)} for '{name}'")


def _assign(policy: CogAct, weights: Mapping[str, Tensor], dtype: torch.dtype) -> CogAct:
    """Put the weights into the meta-built policy, one at a time, in its own shapes."""
    state = {name: weights[name].reshape(meta.shape).to(dtype) for name, meta in policy.state_dict().items()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()
