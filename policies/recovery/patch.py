"""The patch: recovered weights of one dense policy under one plan, in one safetensors file.

Tensors have the trimmed policy's own names and shapes, in float16 or float32; metadata names which
policy and plan they belong to and how they were made (`Recovery`). All of it is checked before a
policy gets any of them. Knows a file and modules; trains nothing.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trimvla.policies.families import FAMILIES, family_of, find_family
from trimvla.runtime.bundle.manifest import sha256_of
from trimvla.runtime.bundle.manifest_types import PatchSpec, Recovery
from trimvla.runtime.bundle.plan import DISTILLED, Plan, plan_digest
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import convert, parse_json, pointer_in

KEY = "trimvla.patch"
WHAT = "a patch of recovered weights"
STORED = {"F16": torch.float16, "F32": torch.float32}
NAMES_SHOWN = 3
MAX_METADATA = 1 << 20  # characters


@dataclass(frozen=True)
class Patch:
    """A patch file, read."""

    path: Path
    spec: PatchSpec
    tensors: Mapping[str, Tensor]
    """By the trimmed policy's names, in the file's precision."""


def weights_digest(policy: nn.Module) -> str:
    """sha256 of a policy's weights by name, shape and value in float32, in hexadecimal; whatever
    file they came from.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(policy.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_patch(
    path: Path, tensors: Mapping[str, Tensor], recovery: Recovery, dtype: torch.dtype
) -> None:
    """Write a patch; the file appears complete or not at all."""
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(stored, beside, metadata={KEY: msgspec.json.encode(recovery).decode()})
        Path(beside).chmod(0o644)  # safetensors makes it private
        Path(beside).replace(path)
    finally:
        Path(beside).unlink(missing_ok=True)


def read_patch(path: Path) -> Patch:
    """A patch file.

    Raises:
        CheckpointError: no such file, no safetensors file, without a record, or tensors of another
            type than float16 and float32 or with numbers that are not finite.
    """
    pointer = pointer_in(path)
    if pointer is not None:
        raise CheckpointError(f"{path}: expected {WHAT}, got {pointer}")
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            names = list(file.keys())
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            wrong = sorted(name for name, kind in kinds.items() if kind not in STORED)
            tensors = {} if wrong else {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected {WHAT}, got: {error}") from None
    recovery = _recovery(described, path)
    if wrong:
        raise CheckpointError(
            f"{path}: expected float16 or float32 for '{wrong[0]}', got {kinds[wrong[0]]}"
        )
    if not tensors:
        raise CheckpointError(f"{path}: expected {WHAT}, got a file without tensors")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: expected finite numbers in '{name}', got others")
    return Patch(path, PatchSpec(sha256=sha256_of(path), recovery=recovery), tensors)


def _recovery(described: Mapping[str, str], path: Path) -> Recovery:
    text = described.get(KEY)
    if text is None or len(text) > MAX_METADATA:
        got = "none" if text is None else f"{len(text)} characters"
        raise CheckpointError(f"{path}: expected {WHAT}, with its record under '{KEY}', got {got}")
    data = parse_json(text.encode(), path, "the record of a patch", error=CheckpointError)
    return convert(data, Recovery, path, error=CheckpointError)


def under_patch(dense: nn.Module, plan: Plan, patch: Patch | None) -> nn.Module:
    """The dense policy under a plan, with the recovered weights in place of its own.

    The dense policy stays as it is; what the patch does not hold is shared with it.

    Raises:
        ConfigError: the plan does not fit, or policies of this family are not recovered.
        CheckpointError: the patch is for another policy or plan, or does not fit.
    """
    cfg: Any = dense.cfg
    trimmed = family_of(cfg).trim(dense, plan)
    if patch is None:
        return trimmed
    check_family(cfg)
    check_patch(patch, dense, plan, trimmed)
    return with_weights(trimmed, {name: each.float() for name, each in patch.tensors.items()})


def check_family(cfg: Any) -> None:  # noqa: ANN401
    """ConfigError where policies of this family are not recovered, with those that are."""
    if not family_of(cfg).calibrates:
        known = [name for name in FAMILIES if find_family(name).calibrates]
        raise ConfigError(
            f"expected a policy of a family whose weights are recovered ({', '.join(known)}), got"
            f" one of '{family_of(cfg).name}'"
        )


def check_patch(patch: Patch, dense: nn.Module, plan: Plan, trimmed: nn.Module) -> None:
    """Refuse a patch that was made for something else.

    Args:
        patch: what would be put in.
        dense: the dense policy.
        plan: what is kept of it.
        trimmed: the dense policy under the plan.

    Raises:
        CheckpointError: names what differs.
    """
    check_record(patch, dense.cfg, plan)
    path = patch.path
    digest = weights_digest(dense)
    made_for = patch.spec.recovery.weights
    if made_for != digest:
        raise CheckpointError(
            f"{path}: expected a patch for the dense weights {digest[:12]}, got one for other"
            f" weights, {made_for[:12]}"
        )
    shapes = {name: tuple(weight.shape) for name, weight in trimmed.state_dict().items()}
    if unknown := sorted(patch.tensors.keys() - shapes.keys()):
        shown = ", ".join(f"'{name}'" for name in unknown[:NAMES_SHOWN])
        raise CheckpointError(
            f"{path}: expected weights of the trimmed policy, got {len(unknown)} that it does not"
            f" have: {shown}"
        )
    for name, tensor in patch.tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{path}: expected {list(shapes[name])} for '{name}', got {list(tensor.shape)}"
            )


def check_distilled(plan: Plan, patch: Patch | None) -> None:
    """Refuse to make a bundle of a plan whose guidance is distilled without the head that it was
    distilled into: the dense head without guidance is not what the plan means.

    Raises:
        ConfigError: says what to do, and what turning guidance off costs.
    """
    if plan.guidance != DISTILLED:
        return
    if patch is not None and any(name.startswith("head.") for name in patch.tensors):
        return
    got = "none" if patch is None else f"{patch.path}, which has no head"
    raise ConfigError(
        f"expected a patch with a head, for the plan's 'guidance' is '{DISTILLED}' (`trimvla"
        f" recover --parts head`), got {got}: the dense head without guidance is a plan with"
        " 'guidance' 1, which cost 8 to 11 points of success on the tabletop"
    )


def check_record(patch: Patch, cfg: Any, plan: Plan) -> None:  # noqa: ANN401
    """The part of `check_patch` for which no weight is read."""
    record = patch.spec.recovery
    if record.policy != cfg.fingerprint:
        raise CheckpointError(
            f"{patch.path}: expected a patch for policy '{cfg.name}' ({cfg.fingerprint}), got one"
            f" for {record.policy}"
        )
    if record.plan != plan_digest(plan):
        raise CheckpointError(
            f"{patch.path}: expected a patch for this plan ({plan_digest(plan)[:12]}), got one for"
            f" another, {record.plan[:12]}"
        )


def with_weights(policy: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the policy with some weights replaced; all others are shared with it."""
    named = dict(policy.named_parameters())
    memo: dict[int, Any] = {id(each): each for each in (*named.values(), *policy.buffers())}
    for name, value in weights.items():
        memo[id(named[name])] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(policy, memo)
