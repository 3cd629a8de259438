"""What recovery looks at: images, several instructions each, and which of them are held out.

Knows tensors and their file; where images come from is its maker's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, calibration_of
from trimvla.runtime.errors import ConfigError

EXPERT = 0
OWN = 1
HELD_OUT = 2


@dataclass(frozen=True)
class Frames:
    """n images of one policy with k instructions each."""

    images: Tensor
    """uint8[n, S, S, 3], RGB, already resized."""
    input_ids: Tensor
    """int64[n, k, L], BOS first, padded on the right."""
    last: Tensor
    """int64[n, k], index of EOS in the ids."""
    kind: Tensor
    """uint8[n]: `EXPERT`, `OWN` (reached by the trimmed policy) or `HELD_OUT`."""

    def rows(self, *kinds: int) -> Tensor:
        """int64[m]: the images of these kinds."""
        return torch.isin(self.kind, torch.tensor(kinds, dtype=torch.uint8)).nonzero()[:, 0]

    def save(self, path: Path) -> None:
        """Write a safetensors file in one move."""
        beside = path.with_suffix(".part")
        save_file(dict(vars(self)), beside)
        beside.replace(path)


def load_frames(path: Path) -> Frames:
    """What `Frames.save` wrote."""
    return Frames(**load_file(path))


@dataclass(frozen=True)
class Drawn:
    """Images of one kind with their instructions: uint8[n, S, S, 3] and n tuples of k texts."""

    images: np.ndarray
    texts: Sequence[Sequence[str]]
    kind: int


def frames_of(drawn: Sequence[Drawn], cfg: PolicyConfig, tokenizer: Tokenizer) -> Frames:
    """Images and texts as one policy's tensors; k is the least number of texts of an image."""
    count = min(len(row) for part in drawn for row in part.texts)
    texts = [text for part in drawn for row in part.texts for text in row[:count]]
    images = np.concatenate([part.images for part in drawn])
    data = calibration_of(cfg, np.zeros((0,), np.uint8), texts, tokenizer)
    return Frames(
        torch.from_numpy(images),
        torch.from_numpy(data.input_ids.reshape(len(images), count, -1)),
        torch.from_numpy(data.last.reshape(len(images), count)),
        torch.cat(
            [torch.full((len(part.images),), part.kind, dtype=torch.uint8) for part in drawn]
        ),
    )


def frames_from_calibration(data: Calibration, held_out: int, sentences: int, seed: int) -> Frames:
    """Calibration frames, each with its own instruction and others drawn from those of all; the
    last ones are held out, for neighbours are of one episode.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    images = len(data.last)
    if images <= held_out:
        raise ConfigError(f"expected more frames than the {held_out} of --held-out, got {images}")
    pool = np.unique(np.column_stack([data.last, data.input_ids]), axis=0)
    rng = np.random.default_rng(seed)
    others = pool[rng.integers(len(pool), size=(images, min(sentences, len(pool)) - 1))]
    ids = np.concatenate([data.input_ids[:, None], others[..., 1:]], axis=1)
    last = np.concatenate([data.last[:, None], others[..., 0]], axis=1)
    kind = torch.full((images,), EXPERT, dtype=torch.uint8)
    kind[images - held_out :] = HELD_OUT
    return Frames(
        torch.from_numpy(data.images), torch.from_numpy(ids), torch.from_numpy(last), kind
    )


def digest_of(frames: Frames) -> str:
    """sha256 of everything, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in vars(frames).items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
