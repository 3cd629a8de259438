"""Calibration frames from a recording: what the policy's camera showed while a task was held, with
its instruction.

Works for recordings of a policy and of a person who drives, as long as `task` was published. Knows
recordings and calibration data; decides nothing about a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trimvla.launch.replay.recorded_policy import recorded_policy
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, calibration_of
from trimvla.runtime.bus.messages import Frame, Task
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.record.recording import Recording

Sample = tuple[np.ndarray, str]
"""uint8[S, S, 3] as the policy sees it, and the instruction."""


def calibration_from_recording(
    path: Path, cfg: PolicyConfig, tokenizer: Tokenizer, frames: int, seed: int
) -> Calibration:
    """Frames drawn evenly at random from a recording; memory holds no more than are drawn.

    Args:
        path: the MCAP file, complete or cut off.
        cfg: of the policy.
        tokenizer: the policy's.
        frames: how many; all, where there are fewer.
        seed: of the draw.

    Raises:
        RecordingError: no recording, or a damaged one.
        ConfigError: no frame of the policy's camera was recorded while a task was held.
    """
    recording = Recording(path)
    camera = recorded_policy(recording).first_camera
    drawn = draw(samples(recording, cfg.image_size, camera), frames, np.random.default_rng(seed))
    if not drawn:
        raise ConfigError(
            f"{path}: expected frames of the camera '{camera}' while a task was held, got none"
        )
    images = np.stack([image for image, _ in drawn])
    return calibration_of(cfg, images, [instruction for _, instruction in drawn], tokenizer)


def samples(recording: Recording, image_size: int, camera: str) -> Iterator[Sample]:
    """Every frame of the camera that came while a task was active, resized as the policy does
    it.
    """
    color = f"{camera}/color"
    instruction = ""
    for entry in recording.entries(lambda name: name in ("task", color)):
        if isinstance(entry.message, Task):
            instruction = entry.message.instruction if entry.message.active else ""
        elif isinstance(entry.message, Frame) and instruction:
            yield resize(entry.message.image, image_size), instruction


def draw(found: Iterator[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    """`count` of them, each with the same chance, in one pass (reservoir sampling)."""
    kept: list[Sample] = []
    for index, sample in enumerate(found):
        if index < count:
            kept.append(sample)
        elif (place := int(rng.integers(index + 1))) < count:
            kept[place] = sample
    return kept
