"""Demonstration shards in memory: pictures, prompts and normalised action chunks, in batches.

A shard is an npz with pictures (`pictures` decodes them), `chunks` float32[n, g, H, A], `aux`
float32[n, g, X], `points` float32[n, g, 2, 2] and `texts` str[n, g]: g sentences a picture, the
first the one that was being pursued. Knows arrays; knows no simulator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.cogact.tokenizer import build_tokenizer, prompt_ids
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.training.pictures import Stack, pictures_of
from trimvla.runtime.bundle.scale import Scale, normalise
from trimvla.runtime.errors import ConfigError

YAW = 5  # of an action's dimensions


@dataclass(frozen=True)
class Batch:
    """b pictures with k sentences each.

    `image` uint8[b, S, S, 3]; `ids` int64[b, k, L] right-padded; `last` int64[b, k], where EOS
    stands; `nouns` int64[b, k, 2], where the object and what it goes on have been named; `actions`
    float32[b, k, H, A], normalised; `aux` float32[b, k, X + 1], the last of it the turn that the
    chunk makes [rad]; `points` float32[b, k, 2, 2], where object and target are in the picture (x,
    y in 0..1).
    """

    image: Tensor
    ids: Tensor
    last: Tensor
    nouns: Tensor
    actions: Tensor
    aux: Tensor
    points: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def action_statistics(chunks: np.ndarray, *, symmetric: bool = False) -> dict[str, Any]:
    """q01, q99 and mask over float32[..., H, A] chunks, in the official layout; the gripper (last)
    is not scaled.

    `symmetric`: the wider side counts for both. Where demonstrations turn one way only, a policy
    could not turn back.
    """
    flat = chunks.reshape(-1, chunks.shape[-1]).astype(np.float64)
    low, high = np.quantile(flat, (0.01, 0.99), axis=0)
    mask = [True] * (flat.shape[1] - 1) + [False]
    if symmetric:
        bound = np.maximum(np.abs(low), np.abs(high))
        low = np.where(mask, -bound, low)
        high = np.where(mask, bound, high)
    return {"action": {"q01": low.tolist(), "q99": high.tolist(), "mask": mask}}


def within_bounds(chunks: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """Actions to [-1, 1], clipped, where the mask is set; dimensions without spread become 0.

    The runtime undoes it.
    """
    action = statistics["action"]
    mask = tuple(action["mask"])
    scaled = normalise(chunks, Scale(tuple(action["q01"]), tuple(action["q99"]), mask))
    return np.where(mask, np.clip(scaled, -1.0, 1.0), scaled)


class Demonstrations:
    """All shards, ready to draw from."""

    def __init__(
        self,
        shards: Iterable[Path],
        cfg: PolicyConfig,
        tokenizer: Tokenizer,
        *,
        nouns: Iterable[str],
        statistics: dict[str, Any] | None = None,
        symmetric: bool = False,
    ) -> None:
        """Load shards; `nouns` are the words that name things.

        `statistics` None means: take them from these shards, `symmetric` or not
        (`action_statistics`).
        """
        loaded = [read_shard(path) for path in shards]
        if not loaded:
            raise ConfigError("expected at least one shard of demonstrations, got none")
        self.images = Stack([pictures_of(shard, cfg.image_size) for shard in loaded])
        chunks = np.concatenate([shard["chunks"] for shard in loaded])
        self.statistics = statistics or action_statistics(chunks[:, 0], symmetric=symmetric)
        self.actions = within_bounds(chunks, self.statistics)
        turns = chunks[..., YAW].sum(axis=-1, keepdims=True)
        self.aux = np.concatenate(
            [np.concatenate([shard["aux"] for shard in loaded]), turns], axis=-1
        )
        self.points = np.concatenate([shard["points"] for shard in loaded])
        texts, places = np.unique(
            np.concatenate([shard["texts"] for shard in loaded]), return_inverse=True
        )
        ids = [prompt_ids(tokenizer, cfg.prompt, str(text)) for text in texts]
        self._last = np.array([len(row) - 1 for row in ids])
        width = max(map(len, ids))
        self._ids = np.array([row + [cfg.prompt.pad_id] * (width - len(row)) for row in ids])
        names = {tokenizer.encode(noun, add_special_tokens=False).ids[-1] for noun in nouns}
        self._nouns = np.array([noun_places(row, names) for row in ids])
        self._text = places.reshape(len(self.images), -1)

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rng: np.random.Generator, pictures: int, sentences: int) -> Batch:
        """A random batch: for each picture the pursued sentence and `sentences - 1` others."""
        rows = rng.integers(len(self), size=pictures)
        goals = self._text.shape[1]
        others = np.argsort(rng.random((pictures, goals - 1)), axis=1)[:, : sentences - 1] + 1
        columns = np.concatenate([np.zeros((pictures, 1), int), others], axis=1)
        text = self._text[rows[:, None], columns]
        return Batch(
            image=torch.from_numpy(self.images[rows]),
            ids=torch.from_numpy(self._ids[text]),
            last=torch.from_numpy(self._last[text]),
            nouns=torch.from_numpy(self._nouns[text]),
            actions=torch.from_numpy(self.actions[rows[:, None], columns]),
            aux=torch.from_numpy(self.aux[rows[:, None], columns]),
            points=torch.from_numpy(self.points[rows[:, None], columns]),
        )


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """Its arrays, by name."""
    with np.load(path) as shard:
        return {name: shard[name] for name in shard.files}


def noun_places(ids: list[int], names: set[int]) -> tuple[int, int]:
    """Where the first and the last noun stand; a sentence without one counts as named at its
    end.
    """
    places = [place for place, token in enumerate(ids) if token in names] or [len(ids) - 1]
    return places[0], places[-1]


def make_tokenizer(cfg: PolicyConfig, instructions: Iterable[str]) -> Tokenizer:
    """The tokenizer for a policy whose corpus is these instructions."""
    return build_tokenizer(
        (cfg.prompt.template.format(instruction=text) for text in instructions), cfg.language.vocab
    )
