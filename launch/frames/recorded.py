"""Calibration frames from a recording: what the policy's camera showed while a task was held, with
its instruction.

Works for recordings of a policy and of a person who drives, as long as `task` was published. Knows
recordings and calibration data; decides nothing about a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from trimvla.launch.replay.recorded_policy import recorded_policy
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, calibration_of
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.bus.messages import Frame, JointState, Task
from trimvla.runtime.errors import ConfigError, ObservationError
from trimvla.runtime.inference.robot_inputs import state_of
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.preprocess.state import check_state_names
from trimvla.runtime.record.recording import Recording

T = TypeVar("T")
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


def observations_from_recording(
    path: Path, described: InputsAndOutput, count: int, seed: int
) -> list[Observation]:
    """What a policy with several cameras or a state would have seen while a task was held, drawn
    evenly at random; memory holds no more than are drawn.

    Raises:
        RecordingError: no recording, or a damaged one.
        ConfigError: a camera that the policy needs was not recorded, or its state does not fit.
    """
    if count < 1:
        raise ConfigError(f"expected at least 1 frame for --frames, got {count}")
    recording = Recording(path)
    settings = recorded_policy(recording)
    names = described.images.names
    robots = settings.cameras or (
        {names[0]: settings.camera} if len(names) == 1 else {name: name for name in names}
    )
    found = joined(recording, {name: robots.get(name, name) for name in names}, described)
    drawn = draw(found, count, np.random.default_rng(seed))
    if not drawn:
        cameras = sorted(set(robots.values()))
        what = " and 'robot/state'" if described.state is not None else ""
        raise ConfigError(
            f"{path}: expected frames of the cameras {cameras}{what} while a task was held, got"
            " none"
        )
    return drawn


def joined(
    recording: Recording, robots: Mapping[str, str], described: InputsAndOutput
) -> Iterator[Observation]:
    """One observation for every frame of the first camera, with the newest of all others."""
    topics = {f"{camera}/color": view for view, camera in robots.items()}
    first = next(iter(topics))
    images: dict[str, np.ndarray] = {}
    state: JointState | None = None
    instruction = ""
    required = {camera.name for camera in described.images.cameras if camera.required}
    for entry in recording.entries(lambda name: name in (*topics, "task", "robot/state")):
        message = entry.message
        if isinstance(message, Task):
            instruction = message.instruction if message.active else ""
        elif isinstance(message, JointState):
            state = message
        elif isinstance(message, Frame):
            for view, camera in robots.items():
                if camera == message.camera:
                    images[view] = message.image
            known = described.state is None or state is not None
            if entry.topic == first and instruction and known and required <= images.keys():
                yield observation_of(images, instruction, state, described, recording.path)


def observation_of(
    images: Mapping[str, np.ndarray],
    instruction: str,
    state: JointState | None,
    described: InputsAndOutput,
    path: Path,
) -> Observation:
    """What the policy sees. ConfigError where the state does not fit."""
    try:
        numbers, names = state_of(state, described.state)
        check_state_names(names, described.state)
    except ObservationError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Observation(dict(images), instruction, numbers)


def draw(found: Iterator[T], count: int, rng: np.random.Generator) -> list[T]:
    """`count` of them, each with the same chance, in one pass (reservoir sampling)."""
    kept: list[T] = []
    for index, sample in enumerate(found):
        if index < count:
            kept.append(sample)
        elif (place := int(rng.integers(index + 1))) < count:
            kept[place] = sample
    return kept
