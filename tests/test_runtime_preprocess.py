"""Pixels, ids and units agree with the public code to the number; wrong inputs are refused by
name.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import BOS, BUCKETS, EMPTY, EOS, PAD, manifest, write_bundle

from trimvla.runtime.bundle.action_statistics import load_statistics
from trimvla.runtime.bundle.manifest import PromptSpec
from trimvla.runtime.bundle.scale import Scale, binarise, unnormalise
from trimvla.runtime.errors import BundleError, ObservationError, PromptError
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.preprocess.prompts import Prompter

RUNS = ("ddim10_cfg1.5", "ddim5_cfg1.5", "ddim10_cfg1.0", "ddim10_cfg3.0", "ddim1_cfg1.5")
KEYS = ("fractal20220817_data", "bridge_orig")


@pytest.fixture(scope="module")
def arrays(fixture_dir: Path) -> dict[str, np.ndarray]:
    with np.load(fixture_dir / "reference.npz") as stored:
        return {
            key: stored[key] for key in stored.files if key.startswith(("in/", "action/", "bi/"))
        }


def prompt_spec() -> PromptSpec:
    spec = manifest().prompt
    assert spec is not None
    return spec


@pytest.fixture(scope="module")
def prompter(tmp_path_factory: pytest.TempPathFactory) -> Prompter:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle"))
    return Prompter.load(bundle / "tokenizer.json", prompt_spec())


def test_pixels_equal_the_official_transform(
    arrays: dict[str, np.ndarray], fixture_dir: Path
) -> None:
    architecture = json.loads((fixture_dir / "architecture.json").read_text())
    unit = resize(arrays["in/image"], architecture["image_size"]).astype(np.float32) / np.float32(
        255
    )
    for encoder in ("dino", "siglip"):
        mean, std = (np.array(architecture[encoder][name], np.float32) for name in ("mean", "std"))
        pixels = ((unit - mean) / std).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(pixels, arrays[f"in/pixel_{encoder}"], atol=1e-6, rtol=0)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(resize(picture, 8), picture)


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32\[8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8\[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8\[8, 8, 4\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"uint8\[1, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]"),
    ],
)
def test_a_picture_of_another_shape_or_dtype_is_refused(picture: np.ndarray, got: str) -> None:
    with pytest.raises(ObservationError, match=f"'image', got .*{got}"):
        resize(picture, 8)


def test_ids_equal_the_official_prompts(arrays: dict[str, np.ndarray], fixture_dir: Path) -> None:
    template = "In: What action should the robot take to {instruction}?\nOut:"
    prompter = Prompter.load(
        fixture_dir / "tokenizer.json", PromptSpec(template, 1, (312, 2), 480, (24,))
    )
    ids, last = prompter.ids("pick up the red Coke can")
    assert ids.shape == (1, 24)
    np.testing.assert_array_equal(ids[0, : last[0] + 1], arrays["in/input_ids"])
    assert set(ids[0, last[0] + 1 :]) == {480}


def test_a_prompt_takes_the_smallest_bucket_that_holds_it(prompter: Prompter) -> None:
    ids, last = prompter.ids("pick up the cube")  # BOS, 4 of the template, 4 words, EMPTY, EOS
    assert ids.shape == (1, 12) and last == [10]
    assert [ids[0, 0], *ids[0, 9:]] == [BOS, EMPTY, EOS, PAD]
    for words, bucket in ((5, 12), (6, 16), (9, 16)):
        assert prompter.ids(" ".join(["red"] * words))[0].shape == (1, bucket)


def test_ids_are_remembered_and_cannot_be_changed(prompter: Prompter) -> None:
    ids, _ = prompter.ids("stack the blue cube")
    assert prompter.ids("stack the blue cube")[0] is ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0, 0] = 0


@pytest.mark.parametrize("instruction", ["", " ", "\n\t"])
def test_an_empty_instruction_is_refused(prompter: Prompter, instruction: str) -> None:
    with pytest.raises(PromptError, match="expected an instruction, got"):
        prompter.ids(instruction)


def test_an_instruction_longer_than_the_largest_bucket_is_refused(prompter: Prompter) -> None:
    with pytest.raises(PromptError, match="expected at most 16 tokens for the prompt, got 27"):
        prompter.ids(" ".join(["red"] * 20))


def test_a_template_is_no_format_string(prompter: Prompter) -> None:
    ids, _ = prompter.ids("{0} {instruction!r}")
    assert ids.shape[1] in BUCKETS


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: no tokenizer"):
        Prompter.load(tmp_path / "tokenizer.json", prompt_spec())


@pytest.mark.parametrize("run", RUNS)
def test_units_equal_the_official_ones(
    arrays: dict[str, np.ndarray], fixture_dir: Path, run: str
) -> None:
    normalized = binarise(arrays[f"action/{run}/x"][-1])
    np.testing.assert_array_equal(normalized, arrays[f"action/normalized/{run}"])
    assert normalized.dtype == np.float32
    for key in KEYS:
        actions = unnormalise(
            normalized, load_statistics(fixture_dir / "dataset_statistics.json", key)
        )
        np.testing.assert_array_equal(actions, arrays[f"action/unnormalized/{run}/{key}"])
        assert actions.dtype == np.float64


def test_units_by_hand() -> None:
    statistics = Scale(low=(-2.0, -2.0, 0.0), high=(2.0, 4.0, 1.0), mask=(True, True, False))
    normalized = binarise(np.array([[-3.0, 0.0, 0.5], [0.5, 1.0, 0.49]], np.float32), gripper=(2,))
    np.testing.assert_array_equal(normalized, np.array([[-1, 0, 1], [0.5, 1, 0]], np.float32))
    np.testing.assert_array_equal(unnormalise(normalized, statistics), [[-2, 1, 1], [1, 4, 0]])


def test_without_a_mask_every_dimension_is_scaled() -> None:
    np.testing.assert_array_equal(
        unnormalise(np.ones((1, 2), np.float32), Scale((0, 0), (3, 5))), [[3, 5]]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"other": {"action": {"q01": [0], "q99": [1]}}}',
            r"expected the key 'tiny', got \['other'\]",
        ),
        (
            '{"tiny": {"action": {"q01": [0], "q99": [1, 2]}}}',
            r"expected 1 numbers.* for 'tiny\.action\.q99', got 2",
        ),
        ('{"tiny": {"action": {"q01": [0]}}}', "q99"),
        ("{", "cut off"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=message):
        load_statistics(path, "tiny")


@pytest.mark.parametrize(
    ("instruction", "got"),
    [
        (np.array(["pick up"]), r"str\d+\[1\]"),
        (np.zeros((2, 3), np.float32), r"float32\[2, 3\]"),
        (b"pick up", "bytes"),
        (None, "NoneType"),
        (["pick up"], "list"),
        (3, "int"),
        ("pick \udcff up", "Unicode"),
    ],
)
def test_an_instruction_that_is_no_text_names_the_field(
    prompter: Prompter, instruction: object, got: str
) -> None:
    for call in (prompter.ids, prompter.tokens):
        with pytest.raises(PromptError, match=rf"'instruction'.*{got}|{got}.*'instruction'"):
            call(instruction)  # type: ignore[arg-type]
