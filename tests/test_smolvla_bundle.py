"""A LeRobot folder, exported: images, an instruction and the state in, its actions out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import shared_exports
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

INSTRUCTION = "put the green block on the blue plate"


@pytest.mark.slow
def test_the_bundle_of_a_folder_gives_the_actions_that_lerobot_gave(
    shared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = shared_dir / "fixtures" / "smolvla_tiny_a"
    if not folder.is_dir():
        pytest.skip("the reference fixture smolvla_tiny_a is not here")
    bundle = shared_exports.exported(folder, tmp_path_factory)
    with np.load(folder / "reference.npz") as stored:
        images = {
            name.rpartition(".")[2]: stored[name]
            for name in stored.files
            if name.startswith("in/observation.images.")
        }
        observation = Observation(images, INSTRUCTION, stored["in/observation.state"])
        result = Policy.load(bundle).infer(observation, noise=stored["in/noise"][0])
        expected = stored["action/unnormalized"][0]
    assert np.abs(result.actions - expected).max() < 1e-4
