"""Our own checkpoint: one safetensors file with any family's weights by our names, and its config
in the header.

What `trimvla train` writes and what lies beside a bundle. Strict where it is built: `Family.build`
refuses weights that are missing or unknown. Knows a file; the table of families knows the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trimvla.policies.families import family_of, parse_config
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import parse_json, pointer_in

NAMES_SHOWN = 5
CONFIG_KEY = "trimvla.policy"
WHAT = "a policy config in its metadata"


class OwnWeights(Mapping[str, Tensor]):
    """The file's weights, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header. CheckpointError where it is no safetensors file."""
        self._path = path
        pointer = pointer_in(path)
        if pointer is not None:
            raise CheckpointError(f"{path}: expected a safetensors file, got {pointer}")
        try:
            self._file = safe_open(path, framework="pt").__enter__()
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self._names = tuple(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: expected a safetensors file, got: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_own(path: Path) -> tuple[Any, OwnWeights]:
    """The config and the weights. CheckpointError or ConfigError where the file is none of ours."""
    weights = OwnWeights(path)
    text = weights.metadata.get(CONFIG_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: expected a policy config under '{CONFIG_KEY}' in its metadata, got none"
        )
    data = parse_json(text.encode(), path, WHAT, error=CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected {WHAT}, got {type(data).__name__}")
    return parse_config(data), weights


def load_own(path: Path) -> nn.Module:
    """The dense policy, in float32 on the CPU.

    Raises:
        CheckpointError: unreadable, without a config, or weights that do not fit it.
    """
    try:
        cfg, weights = open_own(path)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return build_own(cfg, weights, path)


def build_own(cfg: Any, weights: OwnWeights, path: Path) -> nn.Module:  # noqa: ANN401
    """The dense policy of an opened file.

    CheckpointError where the weights are not those of the config.
    """
    family = family_of(cfg)
    wanted = set(family.layout(cfg)[0].values())
    for problem, names in (
        ("missing", wanted - set(weights)),
        ("unexpected", set(weights) - wanted),
    ):
        if names:
            shown = ", ".join(f"'{name}'" for name in sorted(names)[:NAMES_SHOWN])
            raise CheckpointError(f"{path}: {len(names)} {problem} weight(s): {shown}")
    try:
        return family.build(cfg, weights)
    except RuntimeError as error:  # torch's, for weights of other shapes
        lines = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: expected the weights of '{cfg.name}', got: {lines[-1].strip()}"
        ) from None
