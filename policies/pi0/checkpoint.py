"""Weights of pi0 and pi0.5 from LeRobot's files or openpi's PyTorch ones: read one by one, by our
names.

Strict: a missing, unknown or wrongly shaped weight is an error, and so are names of an older
LeRobot. Knows files; what of a file becomes what is in `layout`, and sizes come in as a config
(`source`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.layout import (
    HEAD,
    TABLE,
    build_meta,
    dead_names,
    sources,
    stored_shapes,
)
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.weight_names import check_names
from trimvla.runtime.errors import CheckpointError

LEROBOT = "model."  # in front of openpi's names
OLD = re.compile(
    r"(?:model\.)?paligemma_with_expert\.paligemma\.(?:language_model\.model|vision_tower)\."
)


class StoredWeights(Mapping[str, Tensor]):
    """Our weights by name, each made from its file when it is asked for."""

    def __init__(self, files: SafetensorsFiles, cfg: Pi0Config, names: Mapping[str, str]) -> None:
        """`names` are those in the files of openpi's."""
        self._files = files
        self._names = names
        self._sources = sources(cfg)
        self._shapes = {
            name: tuple(meta.shape) for name, meta in build_meta(cfg).state_dict().items()
        }

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        return source.of(self._files[self._names[source.name]], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def build(cfg: Pi0Config, weights: Mapping[str, Tensor]) -> Pi0:
    """The policy in float32, weights put in place one at a time; without a change of type they stay
    mapped.
    """
    policy = build_meta(cfg)
    state = {name: weights[name].to(torch.float32) for name in policy.state_dict()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()


def open_weights(directory: Path, cfg: Pi0Config) -> StoredWeights:
    """The weights of a checkpoint, checked against a config.

    Raises:
        CheckpointError: no weights, a missing, unknown or wrongly shaped one, or names of an older
            LeRobot.
    """
    files = SafetensorsFiles(directory)
    names = openpi_names(files)
    prefix = prefix_of(files)
    shapes = stored_shapes(cfg)
    required = {names.get(name, prefix + name): shape for name, shape in shapes.items()}
    dead = {names.get(name, prefix + name) for name in dead_names(cfg)}
    check_names(files.place, files, required, dead)
    for name, shape in required.items():
        if files.shape(name) != shape:
            got = list(files.shape(name))
            raise CheckpointError(f"{files.place}: expected {list(shape)}, got {got} for '{name}'")
    return StoredWeights(files, cfg, names)


def openpi_names(files: SafetensorsFiles) -> dict[str, str]:
    """openpi's name of every stored tensor -> its name in the file; the tied table under either of
    its names.
    """
    old = next((name for name in files if OLD.match(name)), None)
    if old is not None:
        raise CheckpointError(
            f"{files.place}: expected names as LeRobot 0.4 and later, or openpi, write them, got"
            f" {old!r}: LeRobot 0.3.3 and earlier wrote this file; convert it with the LeRobot that"
            " you run it with"
        )
    prefix = prefix_of(files)
    names = {name.removeprefix(prefix): name for name in files}
    if TABLE not in names and HEAD in names:
        names[TABLE] = names[HEAD]
    return names


def prefix_of(files: SafetensorsFiles) -> str:
    """What stands in front of openpi's names: LeRobot's `model.`, or nothing."""
    return LEROBOT if any(name.startswith(LEROBOT) for name in files) else ""
