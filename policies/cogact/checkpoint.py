"""Checkpoints: the official directory layout, and our own single safetensors file.

Both loaders are strict: a missing, unknown or wrongly shaped weight is a `CheckpointError` that
names it. Both build the policy on the meta device and then put mapped tensors in place, so weights
are never held twice: without a change of dtype they stay views of the file, paged in when used.
Knows files; names and shapes are in `layout`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimvla.policies.cogact.foreign_checkpoint import check_pointer, read_groups
from trimvla.policies.cogact.layout import build_meta, dead_weights, live_weights
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.errors import CheckpointError
from trimvla.runtime.text_files import parse_json

CONFIG_KEY = "trimvla.policy"
NAMES_SHOWN = 5


def load_official(
    directory: Path | str,
    cfg: PolicyConfig,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
) -> CogAct:
    """Load `directory/checkpoints/<one>.pt` as the public code writes it.

    Args:
        directory: the official layout: `config.json`, `dataset_statistics.json`,
            `checkpoints/<one>.pt`.
        cfg: sizes of the policy; the file does not hold them.
        dtype: weights are converted to it one at a time.
        name: of the file, where there are several.

    Raises:
        CheckpointError: no single checkpoint, an unreadable one, or one that does not fit `cfg`.
    """
    return _assign(build_meta(cfg), open_official(directory, cfg, name), dtype)


def open_official(
    directory: Path | str, cfg: PolicyConfig, name: str | None = None
) -> dict[str, Tensor]:
    """The weights of an official checkpoint by our names and in our shapes: views of the mapped
    file, checked.

    Raises:
        CheckpointError: as `load_official`.
    """
    path = single_checkpoint(directory, name)
    weights = read_groups(path)
    live = live_weights(cfg)
    dead = dead_weights(cfg)
    _check_names(path, weights.keys(), live.keys(), dead.keys())
    for key, shape in {**{key: weight.shape for key, weight in live.items()}, **dead}.items():
        if key in weights:
            _check_shape(path, key, weights[key], shape)
    shapes = {name: meta.shape for name, meta in build_meta(cfg).state_dict().items()}
    return {
        weight.target: weights[key].reshape(shapes[weight.target]) for key, weight in live.items()
    }


def save(
    policy: CogAct,
    path: Path | str,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the policy and its config as one safetensors file; the file appears complete or not at
    all.

    Args:
        policy: what to write.
        path: the file.
        metadata: kept beside the config in the file's header.
        dtype: store the weights rounded to it (float16 halves the file); as they are when left out.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in policy.state_dict().items()
    }
    described = {**(metadata or {}), CONFIG_KEY: json.dumps(policy.cfg.to_dict(), sort_keys=True)}
    try:
        save_file(tensors, partial, metadata=described)
        partial.chmod(0o644)  # safetensors makes it private
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(
    path: Path | str, cfg: PolicyConfig | None = None, dtype: torch.dtype = torch.float32
) -> CogAct:
    """Load a file written by `save`.

    Args:
        path: the safetensors file.
        cfg: the sizes to expect; those stored in the file when left out.
        dtype: weights are converted to it one at a time.

    Raises:
        CheckpointError: unreadable, without a config, or not fitting the config.

    Example:
        >>> from trimvla.policies import load_policy
        >>> from trimvla.runtime import find_bundle
        >>> policy = load_policy(find_bundle("tabletop").with_suffix(".safetensors"))
        >>> policy.cfg.name, policy.cfg.language.layers
        ('tabletop', 16)
    """
    path = Path(path)
    check_pointer(path, "a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, got: {error}") from error
    if cfg is None and CONFIG_KEY not in described:
        raise CheckpointError(
            f"{path}: expected a policy config under '{CONFIG_KEY}' in its metadata, got none"
        )
    policy = build_meta(cfg or _described_config(described[CONFIG_KEY], path))
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    _check_names(path, weights.keys(), expected.keys())
    for name, shape in expected.items():
        _check_shape(path, name, weights[name], shape)
    return _assign(policy, weights, dtype)


def single_checkpoint(directory: Path | str, name: str | None = None) -> Path:
    """The .pt file of the official layout that is meant.

    CheckpointError where none is, or several are.
    """
    folder = Path(directory) / "checkpoints"
    found = {path.name: path for path in sorted(folder.glob("*.pt"))}
    names = list(found) or "none"
    if name is not None:
        if name not in found:
            raise CheckpointError(f"expected the checkpoint '{name}' in {folder}, got {names}")
        return found[name]
    if len(found) != 1:
        hint = ": name one with --checkpoint" if found else ""
        raise CheckpointError(f"expected exactly one .pt file in {folder}, got {names}{hint}")
    return next(iter(found.values()))


def _described_config(text: str, path: Path) -> PolicyConfig:
    """The config in a file's header, checked like any text from elsewhere."""
    data = parse_json(text.encode(), path, "a policy config in its metadata", error=CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: expected a policy config in its metadata, got {type(data).__name__}"
        )
    return PolicyConfig.from_dict(data)


def _check_names(
    path: Path, found: Iterable[str], required: Iterable[str], allowed: Iterable[str] = ()
) -> None:
    found = set(found)
    required = set(required)
    for problem, names in (
        ("missing", required - found),
        ("unexpected", found - required - set(allowed)),
    ):
        if names:
            raise CheckpointError(f"{path}: {len(names)} {problem} weight(s): {_some(names)}")


def _some(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:NAMES_SHOWN])
    return shown + (", ..." if len(names) > NAMES_SHOWN else "")


def _check_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{path}: expected {list(shape)}, got {list(tensor.shape)} for '{name}'"
        )


def _assign(policy: CogAct, weights: Mapping[str, Tensor], dtype: torch.dtype) -> CogAct:
    """Put the weights into the meta-built policy, one at a time, in its own shapes."""
    state = {
        name: weights[name].reshape(meta.shape).to(dtype)
        for name, meta in policy.state_dict().items()
    }
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()
