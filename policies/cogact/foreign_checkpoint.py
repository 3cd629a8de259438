"""A `.pt` file from elsewhere -> named weights: only tensors are ever unpickled, and what a file is
not is explained.

Takes the official nesting `{"model": {group: {key: tensor}}}` and what tools make of it: the same
without `model` or under `state_dict`, names flattened to `group.key`, and the `module.` that
data-parallel training puts in front. Knows groups of the official layout; which weights a policy
needs is `checkpoint`'s.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimvla.policies.cogact.layout import GROUPS, UNUSED_GROUPS
from trimvla.runtime.errors import CheckpointError
from trimvla.runtime.text_files import pointer_in

WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which tools put the weights
PARALLEL = "module."  # put in front of every name by torch's data-parallel wrappers
KNOWN = (*GROUPS, *UNUSED_GROUPS)


def read_groups(path: Path) -> dict[str, Tensor]:
    """The weights of a file as {"group.key": tensor}, mapped, without the unused groups.

    Raises:
        CheckpointError: the file is a pointer, no checkpoint, holds other objects than weights, or
            other groups.
    """
    check_pointer(path, "a torch checkpoint")
    groups = _grouped(_unwrapped(_read(path), path), path)
    _check_groups(path, groups)
    weights = {}
    for group in GROUPS:
        for key, value in _without_prefix(groups[group]).items():
            name = f"{group}.{key}"
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise CheckpointError(
                    f"{path}: expected floating-point weights, got {got} for '{name}'"
                )
            weights[name] = value
    return weights


def check_pointer(path: Path, what: str) -> None:
    """CheckpointError where a file is only a Git LFS pointer; what is no file is the reader's to
    report.
    """
    pointer = pointer_in(path)
    if pointer is not None:
        raise CheckpointError(f"{path}: expected {what}, got {pointer}")


def _read(path: Path) -> object:
    """Unpickle tensors and plain containers; anything else in the file would be code to run, and is
    refused.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_foreign(error)}") from None
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        old = "mmap" in str(error) and "zip" in str(error)
        hint = ": written by an old torch; load it and save it again with torch.save" if old else ""
        raise CheckpointError(
            f"{path}: expected a torch checkpoint, got: {_first_line(error)}{hint}"
        ) from error


def _foreign(error: Exception) -> str:
    """torch advises to switch its check off, or to trust the objects; neither is for a file from
    elsewhere.
    """
    text = str(error)
    marker = "GLOBAL "
    if marker in text:
        name = text.split(marker, 1)[1].split(maxsplit=1)[0]
        return (
            f"expected weights only, got an object of '{name}' beside them: load the file where it"
            " was made and save its weights alone, torch.save({'model': checkpoint['model']},"
            " ...)"
        )
    return f"expected a torch checkpoint, got: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _unwrapped(content: object, path: Path) -> Mapping[str, Any]:
    """What stands under a wrapper's key, or the content itself where it is the weights."""
    for _ in range(2):  # {"model": {"state_dict": ...}} exists
        if not isinstance(content, dict):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        got = "an empty dict" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: expected a dict with 'model', got {got}")
    return {str(key): value for key, value in content.items()}


def _grouped(content: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """{group: {key: value}}, of nested or of flat names."""
    content = _without_prefix(content)
    nested = {key: dict(value) for key, value in content.items() if isinstance(value, dict)}
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    for name, value in flat.items():
        group, _, key = name.partition(".")
        if not key:
            if group in KNOWN or isinstance(value, Tensor):
                raise CheckpointError(
                    f"{path}: expected a dict of weights for '{name}', got {type(value).__name__}"
                )
            continue  # an epoch, a step: no weights
        nested.setdefault(group, {})[key] = value
    return nested


def _without_prefix(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Names without the data-parallel prefix, where all of them have it."""
    names = list(weights)
    if not names or not all(name.startswith(PARALLEL) for name in names):
        return dict(weights)
    return {name.removeprefix(PARALLEL): value for name, value in weights.items()}


def _check_groups(path: Path, groups: Mapping[str, Any]) -> None:
    missing = sorted(set(GROUPS) - set(groups))
    unexpected = sorted(set(groups) - set(KNOWN))
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            shown = ", ".join(f"'{name}'" for name in names[:5])
            more = ", ..." if len(names) > 5 else ""
            raise CheckpointError(f"{path}: {len(names)} {problem} weight(s): {shown}{more}")
