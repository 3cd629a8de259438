"""What a family's reference checks are made of: groups of stored arrays, and how a directory of
them is opened.

One `ReferenceFamily` a family, named in its row (`policies.families.Family.reference`). Knows no
family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimvla.export.compare import Value

Values = Iterator[tuple[str, Value]]
"""Key of a stored array, and what we computed for it."""


class StoredArrays(Protocol):
    """A reference directory, opened."""

    @property
    def keys(self) -> Sequence[str]:
        """Stored arrays that may be compared."""
        ...

    @property
    def backend(self) -> str:
        """What runs the stages, for the report: "torch 2.6", "onnxruntime"."""
        ...

    def array(self, key: str) -> np.ndarray:
        """The stored array. ConfigError where there is none."""
        ...


@dataclass(frozen=True)
class Group:
    """Arrays that are compared together.

    `keys` are shell patterns: every stored array that they match must be computed by `compute` and
    lie within `tolerance` (largest absolute difference). A `required` group must match something.
    """

    name: str
    keys: tuple[str, ...]
    tolerance: float
    compute: Callable[[Any], Values]
    """The opened directory -> what we compute."""
    required: bool = False
    # computed by the stages of a bundle, so that exported graphs can take torch's place
    staged: bool = False

    def covers(self, key: str) -> bool:
        """Whether the key belongs to this group."""
        return any(fnmatchcase(key, pattern) for pattern in self.keys)


@dataclass(frozen=True)
class ReferenceFamily:
    """How one family's reference directories are opened and what is compared."""

    groups: tuple[Group, ...]
    open: Callable[[Path], Any]
    """directory -> `StoredArrays` with the policy in torch. ConfigError or CheckpointError."""
    exported: Callable[[Any, Path, bool], Any]
    """(opened in torch, an empty directory for graphs, every plan?) -> the same with its stages
    exported and run.
    """
