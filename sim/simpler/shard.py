"""A shard of pictures from a camera that stands still: one background, and of every picture the
pixels that differ.

Nothing is lost, and a picture takes a tenth of its size, so that pictures may be kept finer than
today's policy looks: another size or window can be tried without the simulator.
`policies/training/pictures.py` reads what is written here. Knows arrays and the file; knows no
simulator.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

SPEED = 3  # of zlib: higher levels are a few per cent smaller and several times as slow


class Shard:
    """Collects labelled pictures of one background and writes them as one npz.

    Of n pictures it holds `background` uint8[h, w, 3]; `foreground` uint8[bytes], the pictures'
    pieces one after another, and `ends` int64[n], where each piece ends; a piece is, squeezed by
    zlib, one bit for every pixel, whether it differs from the background (`numpy.packbits`), and
    the values of those that do. Labels are float32: `chunks` [n, 1, H, A], `aux` [n, 1, X],
    `points` [n, 1, 2, 2], `joints` [n, 8] (six of the arm [rad], two of the fingers [m]), `tool`
    [n, 7] (position [m] and quaternion w, x, y, z in the robot's base); `texts` str[n, 1].
    `states` float64[n, 17] is all that the expert received, its `State`'s numbers in order, so that
    another expert can label the same pictures.
    """

    def __init__(self, background: np.ndarray) -> None:
        self.background = background
        self.pieces: list[bytes] = []
        self.chunks: list[np.ndarray] = []
        self.aux: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.joints: list[np.ndarray] = []
        self.tool: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.texts: list[list[str]] = []

    def __len__(self) -> int:
        return len(self.pieces)

    def add_picture(self, picture: np.ndarray) -> None:
        """Keep what of uint8[h, w, 3] differs from the background."""
        differs = (picture != self.background).any(axis=-1)
        whole = np.packbits(differs).tobytes() + picture[differs].tobytes()
        self.pieces.append(zlib.compress(whole, SPEED))

    def save(self, path: Path) -> None:
        """Write beside and rename: a shard is complete or absent."""
        partial = path.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            np.savez(
                file,
                background=self.background,
                foreground=np.frombuffer(b"".join(self.pieces), np.uint8),
                ends=np.cumsum([len(piece) for piece in self.pieces]),
                chunks=np.stack(self.chunks),
                aux=np.stack(self.aux),
                points=np.stack(self.points),
                joints=np.stack(self.joints),
                tool=np.stack(self.tool),
                states=np.stack(self.states),
                texts=np.array(self.texts),
            )
        partial.rename(path)
