"""Demonstration shards of several cameras and a state: batches for a flow policy.

A shard is an npz as for `dataset`, with `wrist` uint8[n, S, S, 3] and `state` float32[n, d] beside
`images`. Pictures stay in the files and are mapped: only what a batch draws is read. Knows arrays;
knows no simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.training.dataset import YAW, noun_places
from trimvla.policies.training.mapped_arrays import mapped
from trimvla.runtime.bundle.scale import Scale, normalise
from trimvla.runtime.errors import ConfigError

EPSILON = 1e-8
"""Added to standard deviations, as LeRobot does; dimensions that never move become 0."""
CAMERAS = {"front": "images", "wrist": "wrist"}
"""The camera's name -> its array in a shard."""
Statistics = dict[str, dict[str, list[float]]]
"""Feature -> "mean" and "std" -> a number a dimension."""


@dataclass(frozen=True)
class FlowBatch:
    """b pictures with k instructions each.

    `images` uint8[b, C, S, S, 3]; `ids` int64[b, k, L], padded on the right; `lengths` int64[b, k];
    `nouns` int64[b, k, 2]; `state` float[b, d], normalised; `actions` float[b, k, H, A],
    normalised; `aux` float[b, k, X + 1] and `points` float[b, k, 2, 2] as in `dataset.Batch`.
    """

    images: Tensor
    ids: Tensor
    lengths: Tensor
    nouns: Tensor
    state: Tensor
    actions: Tensor
    aux: Tensor
    points: Tensor

    def to(self, device: torch.device) -> FlowBatch:
        """The same on a device."""
        return FlowBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class FlowDemonstrations:
    """All shards, ready to draw from."""

    def __init__(
        self,
        shards: Iterable[Path],
        cfg: Pi0Config,
        tokenizer: Tokenizer,
        *,
        nouns: Iterable[str],
        statistics: Statistics | None = None,
    ) -> None:
        """Open shards; `nouns` are the words that name things.

        Where `statistics` are none, they are taken from these shards.

        Raises:
            ConfigError: there is none, or one lacks a camera or the state.
        """
        paths = list(shards)
        if not paths:
            raise ConfigError("expected at least one shard of demonstrations, got none")
        self._pictures = [[mapped(path, CAMERAS[name]) for name in cfg.cameras] for path in paths]
        loaded = [np.load(path) for path in paths]
        chunks = np.concatenate([shard["chunks"] for shard in loaded])
        states = np.concatenate([shard["state"] for shard in loaded])
        self.statistics = statistics or {
            "action": describe(chunks[:, 0].reshape(-1, chunks.shape[-1])),
            "state": describe(states),
        }
        self._actions = normalise(chunks, scale_of(self.statistics["action"]))
        self._states = normalise(states, scale_of(self.statistics["state"]))
        turns = chunks[..., YAW].sum(axis=-1, keepdims=True)
        aux = np.concatenate([shard["aux"] for shard in loaded])
        self.aux = np.concatenate([aux, turns], axis=-1)
        self._points = np.concatenate([shard["points"] for shard in loaded])
        every = np.concatenate([shard["texts"] for shard in loaded])
        texts, places = np.unique(every, return_inverse=True)
        ids = [prompt_ids(tokenizer, cfg, str(text)) for text in texts]
        self._lengths = np.array([len(row) for row in ids])
        width = int(self._lengths.max())
        self._ids = np.array([row + [cfg.prompt.pad_id] * (width - len(row)) for row in ids])
        named = {tokenizer.encode(noun, add_special_tokens=False).ids[-1] for noun in nouns}
        self._nouns = np.array([noun_places(row, named) for row in ids])
        self._text = places.reshape(len(chunks), -1)
        counts = [len(pictures[0]) for pictures in self._pictures]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self._text)

    def pictures(self, row: int) -> np.ndarray:
        """uint8[C, S, S, 3]."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return np.stack([images[row - self._starts[shard]] for images in self._pictures[shard]])

    def draw(self, rng: np.random.Generator, pictures: int, sentences: int) -> FlowBatch:
        """A random batch: for each picture the pursued instruction and `sentences - 1` others."""
        rows = rng.integers(len(self), size=pictures)
        goals = self._text.shape[1]
        others = np.argsort(rng.random((pictures, goals - 1)), axis=1)[:, : sentences - 1] + 1
        columns = np.concatenate([np.zeros((pictures, 1), int), others], axis=1)
        text = self._text[rows[:, None], columns]
        return FlowBatch(
            images=torch.from_numpy(np.stack([self.pictures(int(row)) for row in rows])),
            ids=torch.from_numpy(self._ids[text]),
            lengths=torch.from_numpy(self._lengths[text]),
            nouns=torch.from_numpy(self._nouns[text]),
            state=torch.from_numpy(self._states[rows]),
            actions=torch.from_numpy(self._actions[rows[:, None], columns]),
            aux=torch.from_numpy(self.aux[rows[:, None], columns]),
            points=torch.from_numpy(self._points[rows[:, None], columns]),
        )


def describe(values: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of float[n, d]."""
    wide = values.astype(np.float64)
    return {"mean": wide.mean(axis=0).tolist(), "std": wide.std(axis=0).tolist()}


def scale_of(statistics: dict[str, list[float]]) -> Scale:
    """(x - mean) / (std + epsilon), as the runtime is to undo it."""
    mean = tuple(statistics["mean"])
    return Scale(mean, tuple(statistics["std"]), mode="mean_std", epsilon=EPSILON)


def prompt_ids(tokenizer: Tokenizer, cfg: Pi0Config, instruction: str) -> list[int]:
    """BOS, the instruction, a newline; not padded."""
    text = cfg.prompt.template.format(instruction=instruction) + "\n"
    return [cfg.prompt.bos_id, *tokenizer.encode(text, add_special_tokens=False).ids]


def longest_prompt(tokenizer: Tokenizer, cfg: Pi0Config, instructions: Sequence[str]) -> int:
    """Ids of the longest of these prompts."""
    return max(len(prompt_ids(tokenizer, cfg, text)) for text in instructions)
