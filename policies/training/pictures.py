"""Pictures of demonstrations, by number, at the size that a policy looks at.

A shard has them as they are (`images` uint8[n, S, S, 3]) or as one background and the pixels that
differ from it (`background`, `foreground`, `ends`; the layout is defined where the simulator writes
it). The second are kept squeezed in memory and made when a batch is drawn: a few milliseconds each,
beside a hundred for a training step's share. Knows arrays; knows no simulator.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from trimvla.runtime.errors import ConfigError


class Pictures(Protocol):
    """The pictures of one shard."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> np.ndarray:
        """uint8[size, size, 3]."""
        ...


class Plain:
    """Pictures that lie in memory at the policy's size."""

    def __init__(self, images: np.ndarray, size: int) -> None:
        if images.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"expected pictures of {size} x {size} in the shards, got {list(images.shape[1:])}"
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def picture(self, index: int) -> np.ndarray:
        """See `Pictures`."""
        return self._images[index]


class Foregrounds:
    """Pictures of one background; what differs from it is squeezed."""

    def __init__(self, shard: Mapping[str, np.ndarray], size: int) -> None:
        self._background = shard["background"]
        self._ends = shard["ends"]
        self._size = size
        self._bytes = shard["foreground"].tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    def whole(self, index: int) -> np.ndarray:
        """uint8[h, w, 3], as it was rendered."""
        start = int(self._ends[index - 1]) if index else 0
        piece = zlib.decompress(self._bytes[start : int(self._ends[index])])
        height, width = self._background.shape[:2]
        bits = -(-height * width // 8)
        differs = np.unpackbits(np.frombuffer(piece[:bits], np.uint8), count=height * width)
        picture = self._background.copy()
        picture[differs.reshape(height, width).astype(bool)] = np.frombuffer(
            piece[bits:], np.uint8
        ).reshape(-1, 3)
        return picture

    def picture(self, index: int) -> np.ndarray:
        """See `Pictures`; resized as the runtime does."""
        whole = self.whole(index)
        if whole.shape[:2] == (self._size, self._size):
            return whole
        size = (self._size, self._size)
        return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC))


class Stack:
    """The pictures of many shards, one number after the other."""

    def __init__(self, shards: Sequence[Pictures]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8[n, size, size, 3] of int64[n]."""
        made = []
        for row in rows:
            place = int(np.searchsorted(self._ends, row, side="right"))
            made.append(
                self._shards[place].picture(int(row) - (int(self._ends[place - 1]) if place else 0))
            )
        return np.stack(made)


def pictures_of(shard: Mapping[str, np.ndarray], size: int) -> Pictures:
    """The pictures of a shard in either layout."""
    return Foregrounds(shard, size) if "foreground" in shard else Plain(shard["images"], size)
