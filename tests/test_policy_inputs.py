"""What stands before the network for every family: images, state and prompt, against the public
code's arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from trimvla.policies.statistics import read_lerobot
from trimvla.runtime.bundle.inputs_and_output import (
    Aspect,
    CameraSpec,
    ImagesSpec,
    PromptSpec,
    StateSpec,
    Statistics,
)
from trimvla.runtime.bundle.scale import LISTS, Scale, binarise, normalise, unnormalise
from trimvla.runtime.errors import ObservationError, PromptError
from trimvla.runtime.preprocess.letterbox import fit, images_tensor, resize_bilinear
from trimvla.runtime.preprocess.prompts import Prompter, prompt_text
from trimvla.runtime.preprocess.state import (
    check_state,
    check_state_names,
    state_text,
    state_vector,
)


@dataclass(frozen=True)
class Public:
    """What a public class does, as its fixture has it."""

    fixture: str
    aspect: Aspect
    pad: float
    pixels: str
    mode: Statistics


LEROBOT = (
    Public("smolvla_tiny_a", "pad-left-top", -1.0, "pixels", "mean_std"),
    Public("pi0_tiny_a", "pad-centre", -3.0, "pixels", "mean_std"),
    Public("pi0_tiny_a", "pad-centre", -1.0, "pixels_openpi", "mean_std"),
    Public("pi05_tiny_a", "pad-centre", -3.0, "pixels", "quantiles"),
    Public("pi05_tiny_a", "pad-centre", -1.0, "pixels_openpi", "quantiles"),
)


@pytest.fixture(params=LEROBOT, ids=lambda public: f"{public.fixture}-{public.pixels}")
def public(request: pytest.FixtureRequest) -> Public:
    return request.param


@pytest.fixture
def arrays(public: Public, shared_dir: Path) -> dict[str, np.ndarray]:
    with np.load(shared_dir / "fixtures" / public.fixture / "reference.npz") as stored:
        return dict(stored)


def spec_of(public: Public, size: int, *cameras: str) -> ImagesSpec:
    return ImagesSpec(
        cameras=tuple(CameraSpec(name) for name in cameras),
        size=size,
        resize="bilinear",
        aspect=public.aspect,
        pad_value=(public.pad, public.pad, public.pad),
        dtype="float32",
        scale=(-1.0, 1.0),
    )


def test_images_are_those_of_the_public_code(public: Public, arrays: dict[str, np.ndarray]) -> None:
    keys = [k for k in arrays if k.startswith(f"{public.pixels}/") and not k.endswith("_mask")]
    cameras = [key.removeprefix(f"{public.pixels}/") for key in keys]
    assert len(cameras) == 2
    images = {camera: arrays[f"in/{camera}"] for camera in cameras}
    got = images_tensor(images, spec_of(public, arrays[keys[0]].shape[-1], *cameras))
    expected = np.concatenate([arrays[key] for key in keys]).transpose(0, 2, 3, 1)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_the_state_is_that_of_the_public_code(
    public: Public, arrays: dict[str, np.ndarray], shared_dir: Path
) -> None:
    statistics = read_lerobot(shared_dir / "fixtures" / public.fixture)
    low, high = (tuple(statistics.array("state", name)) for name in LISTS[public.mode])
    scale = Scale(low, high, None, public.mode, 1e-8)
    spec = StateSpec(names=(), dim=6, padded=12, statistics=public.mode, epsilon=1e-8)
    state = check_state(arrays["in/observation.state"], spec)
    assert state is not None
    vector = state_vector(state, spec, scale)
    np.testing.assert_array_equal(vector[:6], arrays["in/state_normalized"][0])
    assert not vector[6:].any()


@pytest.mark.parametrize(("key", "padded"), [("in/input_ids", 12), ("current/input_ids", 6)])
def test_the_state_becomes_the_text_of_pi05(shared_dir: Path, key: str, padded: int) -> None:
    directory = shared_dir / "fixtures" / "pi05_tiny_a"
    arrays = np.load(directory / "reference.npz")
    statistics = read_lerobot(directory)
    low, high = (tuple(statistics.array("state", name)) for name in LISTS["quantiles"])
    spec = StateSpec(
        names=(), dim=6, padded=padded, statistics="quantiles", epsilon=1e-8, bins=256, into="text"
    )
    state = arrays["in/observation.state"].astype(np.float32)
    text = state_text(state_vector(state, spec, Scale(low, high, None, "quantiles", 1e-8)), 256)
    ids = arrays[key][0]
    prompt = PromptSpec(
        "Task: {instruction}, State: {state};\nAction: ",
        2,
        (),
        0,
        (128,),
        lowercase=False,
        strip=True,
        underscores=True,
        trim_end=False,
    )
    prompter = Prompter(
        Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json")), prompt
    )
    got, last = prompter.ids(" put_the green block on the blue plate\n", text)
    np.testing.assert_array_equal(got[0], ids)
    assert last[0] == np.flatnonzero(ids)[-1]


def test_a_prompt_that_is_too_long_raises(shared_dir: Path) -> None:
    path = shared_dir / "fixtures" / "pi05_tiny_a" / "tokenizer" / "tokenizer.json"
    spec = PromptSpec("{instruction}{state}", None, (), 0, (8, 16))
    prompter = Prompter(Tokenizer.from_file(str(path)), spec)
    with pytest.raises(PromptError, match="at most 16 tokens"):
        prompter.ids("pick", "1 " * 40)


def test_prompts_differ_as_their_specs_say() -> None:
    spec = PromptSpec(
        "{instruction}", None, (), 0, (8,), lowercase=False, newline=True, trim_end=False
    )
    assert prompt_text(spec, "Pick up ") == "Pick up \n"
    assert prompt_text(spec, "Pick up\n") == "Pick up\n"
    braces = msgspec.structs.replace(spec, template="{instruction} at {state}", newline=False)
    assert prompt_text(braces, "a {state}", "1 2") == "a {state} at 1 2"


def test_a_square_is_padded_before_it_is_resized_as_dexbotic_does_it(shared_dir: Path) -> None:
    arrays = np.load(shared_dir / "fixtures" / "dbcogact_tiny_a" / "reference.npz")
    spec = ImagesSpec(
        cameras=(CameraSpec("image"),),
        size=56,
        aspect="square-centre",
        pad_value=(122.0, 116.0, 104.0),
    )
    got = fit(arrays["in/image"], spec).astype(np.float64) / 255
    mean = [0.48145466, 0.4578275, 0.40821073]
    std = [0.26862954, 0.26130258, 0.27577711]
    expected = arrays["in/pixel_clip"][0].transpose(1, 2, 0)
    np.testing.assert_allclose((got - mean) / std, expected, rtol=0, atol=1e-6)


def test_bilinear_without_antialias_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for (height, width), target in (((7, 11), (20, 5)), ((480, 640), (224, 298)), ((1, 3), (4, 4))):
        image = rng.random((height, width, 3), np.float32)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(
            tensor, target, mode="bilinear", align_corners=False
        )
        got = resize_bilinear(image, *target)
        np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-6)


def test_openpis_letterbox_is_pillows_on_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    spec = ImagesSpec(
        cameras=(CameraSpec("base"),),
        size=20,
        resize="bilinear-antialias",
        aspect="pad-centre",
        pad_value=(-1.0, -1.0, -1.0),
        dtype="float32",
        scale=(-1.0, 1.0),
    )
    resized = np.asarray(Image.fromarray(image).resize((20, 14), Image.Resampling.BILINEAR))
    expected = np.full((20, 20, 3), -1.0)
    expected[3:17] = resized / 255.0 * 2 - 1
    np.testing.assert_allclose(fit(image, spec), expected, atol=1e-6)


BLACK = np.zeros((4, 6, 3), np.uint8)
TWO = ImagesSpec(
    cameras=(CameraSpec("front"), CameraSpec("wrist", required=False)),
    size=4,
    pad_value=(9.0, 9.0, 9.0),
)


def test_an_optional_camera_may_be_absent_and_is_all_padding() -> None:
    got = images_tensor({"front": BLACK}, TWO)
    assert got.shape == (2, 4, 4, 3)
    assert (got[1] == 9).all()


def test_a_missing_and_an_unknown_camera_are_refused_with_the_names() -> None:
    with pytest.raises(
        ObservationError,
        match=r"cameras \['front', 'wrist'\], got \['wrist'\]: missing \['front'\]",
    ):
        images_tensor({"wrist": BLACK}, TWO)
    with pytest.raises(ObservationError, match=r"\['top'\] too many"):
        images_tensor({"front": BLACK, "top": BLACK}, TWO)
    with pytest.raises(ObservationError, match=r"'front'.*float64"):
        images_tensor({"front": BLACK.astype(float)}, TWO)


SPEC = StateSpec(names=("a", "b"), dim=2, padded=4, statistics="mean_std")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, r"2 numbers of \['a', 'b'\], got none"),
        ([1.0], r"for 'state', got shape \[1\]"),
        ([1.0, np.nan], "finite numbers"),
        (["x", "y"], "got list"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: object, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        check_state(state, SPEC)


def test_the_order_of_a_states_names_counts() -> None:
    check_state_names(("a", "b"), SPEC)
    check_state_names((), SPEC)
    with pytest.raises(ObservationError, match=r"\['a', 'b'\], in this order, got \['b', 'a'\]"):
        check_state_names(("b", "a"), SPEC)


@pytest.mark.parametrize("mode", ["quantiles", "min_max", "mean_std", "none"])
def test_normalise_undoes_unnormalise(mode: Statistics) -> None:
    scale = Scale((-0.1, 2.0), (0.3, 5.0), (True, False), mode, 1e-6)
    sample = np.array([[0.5, 0.25], [-1.0, 3.0]], np.float32)
    np.testing.assert_allclose(normalise(unnormalise(sample, scale), scale), sample, atol=1e-6)


def test_a_flow_policys_sample_is_neither_clipped_nor_binarised() -> None:
    sample = np.array([[1.5, 0.7]], np.float32)
    assert binarise(sample, (), clip=False).tolist() == sample.tolist()
    assert binarise(sample, (1,)).tolist() == [[1.0, 1.0]]
