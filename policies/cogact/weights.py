"""Dense weights, one at a time: from an official checkpoint that stays on the disk, or random ones
made when asked for.

For whatever must never hold a whole policy. A weight is lent: after the block that borrows it, its
memory is given back, mapped pages included. Knows names and shapes of the dense policy; no plan and
no precision.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.policies.cogact.checkpoint import open_official, single_checkpoint
from trimvla.policies.cogact.layout import build_meta
from trimvla.policies.sizes.config import PolicyConfig

BLOCK = 1 << 22  # random numbers made at a time
# from so many on they are held in half precision: a table of words of pi0 has twice as many
LARGE = 1 << 28
MADV_PAGEOUT = 21  # Linux 5.4: unmap clean pages of a file; they come back when they are read


class Weights(Protocol):
    """Dense weights by our names."""

    @property
    def identity(self) -> dict[str, object]:
        """What identifies these weights; JSON-able."""
        ...

    def lend(self, name: str) -> AbstractContextManager[Tensor]:
        """The weight in our shape and in its own precision, for the length of a `with` block."""
        ...


class CheckpointWeights:
    """The weights of an official checkpoint, mapped."""

    def __init__(self, directory: Path, cfg: PolicyConfig, name: str | None = None) -> None:
        """Map the file and check names and shapes.

        Arguments and errors as of `checkpoint.load_official`.
        """
        self._path = single_checkpoint(directory, name)
        self._weights = open_official(directory, cfg, name)

    @property
    def identity(self) -> dict[str, object]:
        """See `Weights`."""
        state = self._path.stat()
        return {
            "checkpoint": str(self._path.resolve()),
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
        }

    @contextmanager
    def lend(self, name: str) -> Iterator[Tensor]:
        """See `Weights`."""
        weight = self._weights[name]
        try:
            yield weight
        finally:
            page_out(weight)


class RandomWeights:
    """Random weights that keep a signal's size: the same for the same seed and name, whatever was
    made before.

    Matrices are uniform with a variance of 1 / inputs, biases 0, factors of norms 1: no activation
    of a deep policy overflows in half precision, and none dies out.
    """

    def __init__(self, cfg: PolicyConfig, seed: int = 0, dense: nn.Module | None = None) -> None:
        """Nothing is made before it is lent. `dense`: another family's policy of these names and
        shapes.
        """
        policy = build_meta(cfg) if dense is None else dense
        self._shapes = {name: tuple(weight.shape) for name, weight in policy.state_dict().items()}
        self._seed = seed

    @property
    def identity(self) -> dict[str, object]:
        """See `Weights`."""
        return {"random": self._seed}

    @contextmanager
    def lend(self, name: str) -> Iterator[Tensor]:
        """See `Weights`; float32, or float16 of very many numbers."""
        shape = self._shapes[name]
        if len(shape) == 1:
            yield torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            yield torch.from_numpy(
                self._draw(name, math.prod(shape), math.sqrt(3.0 / shape[-1]))
            ).reshape(shape)

    def _draw(self, name: str, count: int, limit: float) -> np.ndarray:
        """float32[count], or float16 of very many, uniform in [-limit, limit]."""
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
        made = np.empty(count, np.float32 if count < LARGE else np.float16)
        for start in range(0, count, BLOCK):
            block = generator.random(min(BLOCK, count - start), dtype=np.float32)
            block *= 2 * limit
            block -= limit
            made[start : start + len(block)] = block
        return made


def page_out(tensor: Tensor) -> None:
    """Let go of a mapped tensor's pages.

    Only memory is saved by it: where the system cannot, nothing is lost.
    """
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - start
    libc = ctypes.CDLL(None)
    if hasattr(libc, "madvise"):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_PAGEOUT)
