"""Frames of demonstrations as a policy's stages take them: what int8 learns its ranges from.

Any family's that reads cameras, prompt and state as its manifest describes them. Knows the
runtime's preprocessing; knows no graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trimvla.launch.exporting.demonstration_frames import Reader, Sample, draw_frames
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import family_of
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput, PromptSpec
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.prompts import Prompter

StageInputs = dict[str, np.ndarray]


def stage_frames(
    opened: Checkpoint,
    plan: Plan,
    shards: list[Path],
    count: int,
    seed: int,
) -> tuple[StageInputs, ...]:
    """`count` frames of shards, drawn evenly; the noise of the n-th is drawn from n.

    Raises:
        ConfigError: no tokenizer, no shards, or one that lacks a camera or the state.
    """
    if opened.tokenizer is None:
        hint = family_of(opened.cfg).tokenizer_hint
        raise ConfigError(f"{opened.directory}: expected tokenizer.json, got none: {hint}")
    described = family_of(opened.cfg).describe(opened, plan)
    prompter = Prompter(load_tokenizer(opened.tokenizer, error=ConfigError), described.prompt)
    drawn = draw_frames(Reader(opened, described, prompter), shards, count, seed)
    noise = family_of(opened.cfg).tensor_specs(opened.cfg, plan)["noise"].shape
    chunk = tuple(map(int, noise))
    return tuple(_inputs(drawn.samples, described, chunk))


def _inputs(
    samples: tuple[Sample, ...], described: InputsAndOutput, chunk: tuple[int, ...]
) -> Iterator[StageInputs]:
    for index, sample in enumerate(samples):
        length = int(sample["length"][0])
        generator = np.random.default_rng(index)
        made = {
            described.images.tensor: sample["images"].numpy(),
            "input_ids": padded(sample["input_ids"].numpy(), described.prompt),
            "last": np.array([length - 1], np.int64),
            "noise": generator.standard_normal(chunk, dtype=np.float32),
        }
        if "state" in sample:
            made["state"] = sample["state"].numpy()
        yield made


def padded(ids: np.ndarray, prompt: PromptSpec) -> np.ndarray:
    """int64[1, L] -> the same up to the length of the smallest bucket that takes it."""
    bucket = next(length for length in prompt.buckets if length >= ids.shape[1])
    made = np.full((1, bucket), prompt.pad_id, np.int64)
    made[:, : ids.shape[1]] = ids
    return made
