"""A policy that reads no instruction and draws no noise, over images that are no squares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.promptless_bundle import CAMERAS, DIM, HEIGHT, HORIZON, WIDTH, manifest, write_bundle
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import BundleError, ObservationError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.process import check_instruction
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.observation import Observation


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "promptless")


def images(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for name in CAMERAS}


def test_it_holds_no_tokenizer_and_acts_the_same_under_any_instruction(bundle: Path) -> None:
    assert not (bundle / bundles.TOKENIZER).exists()
    policy = Policy.load(bundle, threads=1)
    state = np.arange(DIM, dtype=np.float64)
    results = [
        policy.infer(Observation(images(), text, state), seed=seed).actions
        for seed, text in enumerate(("lift the cube", "", "word " * 500))
    ]
    assert results[0].shape == (HORIZON, DIM)
    assert np.ptp(results[0]) > 0.1
    assert all(np.array_equal(results[0], other) for other in results)
    policy.close()


def test_an_instruction_is_no_reason_to_refuse_it(bundle: Path) -> None:
    check_instruction(PolicyConfig(bundle=str(bundle)), "any words at all")


def test_state_and_cameras_are_still_checked(bundle: Path) -> None:
    policy = Policy.load(bundle, threads=1)
    with pytest.raises(ObservationError, match="expected 3 numbers for 'state'"):
        policy.infer(Observation(images(), "", np.zeros(DIM + 1)))
    with pytest.raises(ObservationError, match=r"missing \['wrist'\]"):
        policy.infer(Observation({"front": images()["front"]}, "", np.zeros(DIM)))
    policy.close()


def test_an_image_of_the_trained_size_is_left_as_it_is_and_another_is_stretched() -> None:
    spec = manifest().images
    same = images_tensor(images(), spec)
    assert same.shape == (2, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(same[0], images()["front"].astype(np.float32) / np.float32(255))
    large = images(48, 40)
    got = images_tensor(large, spec)
    assert got.shape == same.shape
    resized = Image.fromarray(large["wrist"]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(got[1], np.asarray(resized) / 255.0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["action"].update(noise=True), "expected a tensor 'noise'"),
        (
            lambda d: d["stages"]["action"]["inputs"].append(
                {"name": "noise", "dtype": "float32", "shape": [1, HORIZON, DIM]}
            ),
            "expected 'noise' of stage 'action' from a stage before it or from the runtime",
        ),
        (
            lambda d: d["stages"]["action"]["inputs"].append(
                {"name": "input_ids", "dtype": "int64", "shape": [1, 8]}
            ),
            "expected 'input_ids' of stage 'action' from a stage before it",
        ),
        (lambda d: d["images"].update(width=7), r"expected \[2, 6, 7, 3\] for 'images'"),
        (lambda d: d["images"].update(width=0), "1 to 2048 for 'images.width', got 0"),
        (lambda d: d["images"].update(aspect="pad-centre"), "'stretch' for 'images.aspect'"),
        (lambda d: d["state"].update(into="text", bins=8), r"'\{state\}' in 'prompt.template'"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = bundle / bundles.MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=words):
        bundles.load(bundle)
