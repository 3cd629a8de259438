"""Calibration frames from a LeRobot data set: what a policy sees in rows drawn from all episodes.

Knows data sets and calibration data; decides nothing about a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trimvla.launch.datasets.dataset import DataSet
from trimvla.launch.datasets.views import drawn_observations, find_views
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, calibration_of
from trimvla.runtime.bundle.inputs_and_output import CameraSpec, InputsAndOutput
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.preprocess.observation import Observation

MAIN_CAMERA = CameraSpec("image")  # of CogACT's policies


def calibration_from_data_set(
    root: Path, cfg: PolicyConfig, tokenizer: Tokenizer, frames: int, seed: int
) -> Calibration:
    """Frames for a policy with one camera and no state.

    Raises ConfigError for a data set that is damaged, or has several cameras and none that is
    called as a main one.
    """
    data = DataSet(root)
    views = find_views(data, [MAIN_CAMERA], None)
    images: list[np.ndarray] = []
    instructions: list[str] = []
    for seen in drawn_observations(data, views, frames, seed):
        images.append(resize(seen.images[MAIN_CAMERA.name], cfg.image_size))
        instructions.append(seen.instruction)
    return calibration_of(cfg, np.stack(images), instructions, tokenizer)


def observations_from_data_set(
    root: Path, described: InputsAndOutput, frames: int, seed: int
) -> Iterator[Observation]:
    """Frames for a policy with any cameras and a state. Raises ConfigError where they do not
    fit.
    """
    data = DataSet(root)
    views = find_views(data, described.images.cameras, described.state)
    return drawn_observations(data, views, frames, seed)
