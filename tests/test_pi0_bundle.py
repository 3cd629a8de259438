"""From a LeRobot checkpoint of pi0 to a bundle that acts: the public code's actions, camera by
camera and with the robot's state, and what the runtime refuses.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import shared_exports
from trimvla.runtime.errors import ObservationError, PromptError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

CAMERAS = ("base", "wrist")


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / "pi0_tiny_a"


@pytest.fixture(scope="module")
def stored(fixture: Path) -> dict[str, np.ndarray]:
    with np.load(fixture / "reference.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def policy(fixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(shared_exports.exported(fixture, tmp_path_factory))


@pytest.fixture
def observation(fixture: Path, stored: dict[str, np.ndarray]) -> Observation:
    instruction = json.loads((fixture / "made.json").read_text())["sizes"]["text"]
    images = {name: stored[f"in/observation.images.{name}"] for name in CAMERAS}
    return Observation(images, instruction, stored["in/observation.state"])


def test_the_bundle_gives_the_public_codes_actions(
    policy: Policy, observation: Observation, stored: dict[str, np.ndarray]
) -> None:
    actions = policy.infer(observation, noise=stored["in/noise"][0]).actions
    np.testing.assert_allclose(actions, stored["current/unnormalized"][0], rtol=1e-5, atol=1e-4)


def test_the_state_reaches_the_actions(
    policy: Policy, observation: Observation, stored: dict[str, np.ndarray]
) -> None:
    state = stored["in/observation.state"] + stored["in/observation.state"].std()
    moved = Observation(observation.images, observation.instruction, state)
    actions = policy.infer(moved, noise=stored["in/noise"][0]).actions
    assert np.abs(actions - stored["current/unnormalized"][0]).max() > 1e-2


def test_what_does_not_fit_is_refused(policy: Policy, observation: Observation) -> None:
    images = observation.images
    instruction = observation.instruction
    state = observation.state
    assert state is not None
    alone = {"base": images["base"]}
    more = {**images, "top": images["base"]}
    for wrong, error, words in (
        (Observation(alone, instruction, state), ObservationError, "wrist"),
        (Observation(more, instruction, state), ObservationError, "top"),
        (Observation(images, instruction), ObservationError, "state"),
        (Observation(images, instruction, state[:5]), ObservationError, "6 numbers"),
        (Observation(images, "put it there " * 9, state), PromptError, "at most 24 tokens"),
    ):
        with pytest.raises(error, match=words):
            policy.infer(wrong)
