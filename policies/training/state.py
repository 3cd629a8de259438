"""What a training run was begun with, compared with what would go on: a run is of one recipe and
one beginning.

Only `steps` may change, by which a run is made longer, and `compile`, which changes its speed and
not its result. Knows the state's description; tensors are the trainer's.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trimvla.runtime.bundle.manifest import sha256_of
from trimvla.runtime.errors import ConfigError

FREE = ("steps", "compile")  # of a recipe: may differ from the one that a run was begun with
Origin = dict[str, str]
"""Weights that a run starts from: their file's `name` and `sha256`."""


def origin_of(weights: Path) -> Origin:
    """What identifies these weights."""
    return {"name": weights.name, "sha256": sha256_of(weights)}


def read_state(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """A run's state, its tensors on a device, or mapped and unread; ConfigError where the file is
    none.
    """
    try:
        state = torch.load(
            path, weights_only=True, map_location=device or "cpu", mmap=device is None
        )
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: expected the state of a run, got: {reason}") from None
    if not isinstance(state, dict) or "recipe" not in state:
        raise ConfigError(f"{path}: expected the state of a run, got one without a recipe")
    return state


def check_same_run(
    state: Mapping[str, Any], path: Path, recipe: Mapping[str, Any], origin: Origin | None
) -> None:
    """Refuse to go on with a run under another recipe, or from other weights.

    Args:
        state: of the run, as `read_state` gives it.
        path: its file, for the error's words.
        recipe: what would go on.
        origin: the weights that were asked for; None goes on from whatever the run was begun with.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    begun, now = (json.loads(json.dumps(dict(one))) for one in (state["recipe"], recipe))
    other = [
        name for name in begun.keys() & now.keys() if name not in FREE and begun[name] != now[name]
    ]
    differences = [f"{name} {begun[name]} there and {now[name]} now" for name in sorted(other)]
    if origin is not None and "origin" in state and state["origin"] != origin:
        there = state["origin"]["name"] if state["origin"] else "none"
        differences.append(
            f"--weights {there} there and {origin['name']} (sha256 {origin['sha256'][:12]}) now"
        )
    if differences:
        raise ConfigError(
            f"{path}: expected the recipe that the run was begun with, got another:"
            f" {'; '.join(differences)}: give another --run, or remove this file to begin anew"
        )
