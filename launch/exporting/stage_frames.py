"""Frames of demonstrations as a policy's stages take them: what int8 learns its ranges from.

Any family's that reads cameras, prompt and state as its manifest describes them. Knows what crosses
the stages' borders; knows no graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trimvla.launch.exporting.paired_plan import frames_of
from trimvla.launch.frames.demonstrations import Sample
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import family_of
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput, PromptSpec
from trimvla.runtime.bundle.plan import Plan

StageInputs = dict[str, np.ndarray]


def stage_frames(
    opened: Checkpoint, plan: Plan, named: list[Path], count: int, seed: int
) -> tuple[StageInputs, ...]:
    """`count` frames drawn from what is named (`paired_plan.frames_of`); the noise of the n-th is
    drawn from n.

    Raises:
        ConfigError: no tokenizer, no frames, or some that lack a camera or the state.
    """
    family = family_of(opened.cfg)
    drawn = frames_of(opened, named, count, seed, plan)
    noise = family.tensor_specs(opened.cfg, plan).get("noise")
    chunk = None if noise is None else tuple(map(int, noise.shape))
    return tuple(_inputs(drawn.samples, family.describe(opened, plan), chunk))


def _inputs(
    samples: Sequence[Sample], described: InputsAndOutput, chunk: tuple[int, ...] | None
) -> Iterator[StageInputs]:
    for index, sample in enumerate(samples):
        made = {described.images.tensor: sample["images"].numpy()}
        if described.prompt is not None:
            length = int(sample["length"][0])
            made["input_ids"] = padded(sample["input_ids"].numpy(), described.prompt)
            made["last"] = np.array([length - 1], np.int64)
        if chunk is not None:
            generator = np.random.default_rng(index)
            made["noise"] = generator.standard_normal(chunk, dtype=np.float32)
        if "state" in sample:
            made["state"] = sample["state"].numpy()
        yield made


def padded(ids: np.ndarray, prompt: PromptSpec) -> np.ndarray:
    """int64[1, L] -> the same up to the length of the smallest bucket that takes it."""
    bucket = next(length for length in prompt.buckets if length >= ids.shape[1])
    made = np.full((1, bucket), prompt.pad_id, np.int64)
    made[:, : ids.shape[1]] = ids
    return made
