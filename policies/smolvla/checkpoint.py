"""Weights of a SmolVLA checkpoint: checked against a config, read one by one, by our names.

Strict: a missing, unknown or wrongly shaped weight is an error that names it. Normalisation
buffers, which LeRobot kept among the weights up to 0.3, are no weights of the network and are left
to `policies.statistics`. Knows files; names and shapes are in `layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.layout import dead_names, stored_shapes, theirs
from trimvla.policies.smolvla.model import SmolVla, build_meta
from trimvla.runtime.errors import CheckpointError

BUFFERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
NAMES_SHOWN = 5


class StoredWeights(Mapping[str, Tensor]):
    """Our weights by name, each read from its file, in its precision, when it is asked for."""

    def __init__(self, files: SafetensorsFiles, cfg: SmolVlaConfig) -> None:
        """Of checked files."""
        self._files = files
        self._shapes = {
            name: tuple(meta.shape) for name, meta in build_meta(cfg).state_dict().items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """In our shape."""
        shape = self._shapes[name]
        return self._files[theirs(name)].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        """Our names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """How many weights there are."""
        return len(self._shapes)


def open_weights(directory: Path, cfg: SmolVlaConfig) -> StoredWeights:
    """The weights of a checkpoint, checked against a config.

    Raises:
        CheckpointError: no weights, or one that is missing, unknown or of another shape.
    """
    files = SafetensorsFiles(directory)
    shapes = stored_shapes(cfg)
    found = {name for name in files if not is_buffer(name)}
    _check_names(files.place, "missing", set(shapes) - found)
    _check_names(files.place, "unexpected", found - set(shapes) - dead_names(cfg))
    for name, shape in shapes.items():
        if files.shape(name) != shape:
            got = list(files.shape(name))
            raise CheckpointError(f"{files.place}: expected {list(shape)}, got {got} for '{name}'")
    return StoredWeights(files, cfg)


def is_buffer(name: str) -> bool:
    """Whether a name is one of the normalisation buffers of LeRobot up to 0.3."""
    return name.removeprefix("model.").startswith(BUFFERS)


def build(cfg: SmolVlaConfig, weights: Mapping[str, Tensor]) -> SmolVla:
    """The policy in float32, weights put in place one at a time; without a change of type they stay
    mapped.
    """
    policy = build_meta(cfg)
    shapes = {name: meta.shape for name, meta in policy.state_dict().items()}
    state = {name: weights[name].reshape(shape).to(torch.float32) for name, shape in shapes.items()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()


def _check_names(place: Path, problem: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(f"'{name}'" for name in sorted(names)[:NAMES_SHOWN])
        more = ", ..." if len(names) > NAMES_SHOWN else ""
        raise CheckpointError(f"{place}: {len(names)} {problem} weight(s): {shown}{more}")
