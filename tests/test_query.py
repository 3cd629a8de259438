"""Observations in four conventions become one question, or one clear error; hostile msgpack costs
nothing.
"""

from __future__ import annotations

import io
import tracemalloc

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.fuzz import OBSERVATIONS, PICTURE
from trimvla.runtime.errors import ObservationError, WireError
from trimvla.runtime.servers.packing import (
    MAX_BYTES,
    MAX_OBJECTS,
    Form,
    count_objects,
    pack,
    unpack,
)
from trimvla.runtime.servers.query import normalise

FORMS: tuple[Form, ...] = ("groot", "openpi", "vla-eval")


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_convention_in_every_form_of_arrays(name, form):
    query = normalise(unpack(pack(OBSERVATIONS[name], form)))
    assert (query.image == PICTURE).all() and query.image.flags.c_contiguous
    assert query.instruction == "pick up the red cube"
    assert query.state is not None and query.state.dtype == np.float32 and query.state.shape == (8,)


def test_the_policys_camera_is_chosen_or_asked_for():
    other = np.zeros_like(PICTURE)
    openpi = {"observation/image": PICTURE, "observation/wrist_image": other, "prompt": "go"}
    assert (normalise(openpi).image == PICTURE).all() and (
        normalise(openpi, "wrist_image").image == other
    ).all()
    lerobot = {"observation.images.left": PICTURE, "observation.images.right": other, "task": "go"}
    assert (normalise(lerobot, "right").image == other).all()
    with pytest.raises(
        ObservationError,
        match=r"expected one image, or one called image, .* got \['left', 'right'\]",
    ):
        normalise(lerobot)
    with pytest.raises(
        ObservationError, match=r"expected an image of the camera 'front', got \['left', 'right'\]"
    ):
        normalise(lerobot, "front")


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ([], "expected a map for 'observation', got list"),
        (
            {"pixels": PICTURE},
            "expected the observation keys of LeRobot, openpi, GR00T or vla-eval, got pixels",
        ),
        (
            {"images": PICTURE, "prompt": "go"},
            r"expected a map of images for 'images', got uint8\[6, 8, 3\]",
        ),
        (
            {"images": {"a": PICTURE[..., :1]}, "prompt": "go"},
            r"expected uint8\[h, w, 3\] for 'a', got uint8\[6, 8, 1\]",
        ),
        ({"images": {"a": PICTURE[:0]}, "prompt": "go"}, r"got uint8\[0, 8, 3\]"),
        ({"images": {"a": PICTURE}}, "expected an instruction for 'task_description', got None"),
        (
            {"images": {"a": PICTURE}, "prompt": "x" * 5000},
            "at most 4096 characters for 'prompt', got 5000",
        ),
        (
            {"images": {"a": PICTURE}, "prompt": "go", "states": "x"},
            r"expected float32\[n\] for 'states', got 'x'",
        ),
        (
            {"images": {"a": PICTURE}, "prompt": "go", "states": [1.0, float("inf")]},
            "finite numbers for 'states'",
        ),
        ({"images": {"a": PICTURE}, "prompt": "go", "seq": -1}, "for 'seq', got -1"),
        (
            {"images": {"a": PICTURE}, "prompt": "go", "deadline_ns": 1.5},
            "for 'deadline_ns', got 1.5",
        ),
        (
            {"video": {"a": np.stack([PICTURE[None]] * 2)}, "language": {"t": [["go"]]}},
            r"got uint8\[2, 1, 6, 8, 3\]",
        ),
        (
            {"video": {"a": PICTURE[None, None]}},
            "expected a map with an instruction for 'language', got None",
        ),
        (
            {"observation/image": [1], "prompt": "go"},
            r"expected uint8\[h, w, 3\] for 'image', got list",
        ),
    ],
)
def test_an_error_names_the_field_what_was_expected_and_what_came(observation, words):
    with pytest.raises(ObservationError, match=words):
        normalise(observation)


def test_arrays_come_back_as_they_went():
    for form in FORMS:
        for array in (
            np.arange(6, dtype=">f4").reshape(2, 3),
            np.zeros((0, 3), np.int64),
            np.array(True),
            np.float32(2.5),
        ):
            back = unpack(pack({"a": array}, form))["a"]
            assert np.array_equal(back, array) and np.shape(back) == np.shape(array)
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert np.array_equal(unpack(pack(fortran, "groot")), fortran)
    sink = io.BytesIO()
    Image.fromarray(PICTURE).save(sink, "png")
    png = {
        "__image__": True,
        "format": "png",
        "data": sink.getvalue(),
        "shape": list(PICTURE.shape),
    }
    assert np.array_equal(unpack(msgspec.msgpack.encode(png)), PICTURE)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"__ndarray__": True, "data": bytes(8), "dtype": "O", "shape": [1]},
            "expected numbers for 'dtype', got 'O'",
        ),
        (
            {"__ndarray__": True, "data": bytes(8), "dtype": "<f8", "shape": [2**30]},
            "expected at most 8 lengths",
        ),
        (
            {"__ndarray__": True, "data": bytes(8), "dtype": "<f8", "shape": [2]},
            r"expected 16 bytes .* got 8",
        ),
        (
            {"__ndarray__": True, "data": "x", "dtype": "<f8", "shape": [2]},
            "expected bytes for 'data', got str",
        ),
        (
            {"__ndarray_class__": True, "as_npy": b"\x80\x04K\x01."},
            "expected npy bytes for 'as_npy'",
        ),
        (
            {"__image__": True, "format": "tiff", "data": b""},
            "expected raw, jpeg or png for 'format', got 'tiff'",
        ),
        ({"__image__": True, "format": "png", "data": b"x"}, "expected a png image for 'data'"),
    ],
)
def test_what_only_claims_to_be_an_array_is_refused(value, words):
    with pytest.raises(WireError, match=words):
        unpack(msgspec.msgpack.encode(value))


def test_pickle_is_never_read():
    sink = io.BytesIO()
    np.save(sink, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(WireError, match="expected numbers for 'dtype'"):
        unpack(msgspec.msgpack.encode({"__ndarray_class__": True, "as_npy": sink.getvalue()}))


def test_a_message_that_would_unfold_into_gigabytes_is_refused_before():
    tracemalloc.start()
    for bomb in (
        b"\xdd" + (2**31).to_bytes(4, "big") + bytes(1_000_000),
        b"\xdc\xff\xff" + b"\x80" * 65_535,
        b"\x91" * 1_000_000,
        b"\xdf\xff\xff\xff\xff",
        b"\x92" * (MAX_OBJECTS + 1),
    ):
        with pytest.raises(WireError):
            unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    with pytest.raises(WireError, match="at most 33554432 bytes"):
        unpack(bytes(MAX_BYTES + 1))


def test_objects_are_counted_as_msgpack_means_them():
    for value, count in (
        ({"a": [1, 2.5, None, True, "x" * 300, b"y" * 70_000]}, 9),
        ([-1, -200, -70_000, 2**40, 2**63, 127, 128], 8),
        ([[0] * 20, {str(i): i for i in range(20)}], 1 + 21 + 41),
        (msgspec.msgpack.Ext(5, b"1234"), 1),
        ([msgspec.msgpack.Ext(5, b"x" * 300), 1], 3),
    ):
        assert count_objects(msgspec.msgpack.encode(value)) == count


CAMERAS = ("camera1", "camera2")
SEVERAL = {
    "LeRobot": {"observation.images.camera1": 1, "observation.images.camera2": 2, "task": "go"},
    "openpi": {"observation/camera1": 1, "observation/camera2": 2, "prompt": "go"},
}


@pytest.mark.parametrize("form", SEVERAL)
def test_a_policy_with_several_cameras_gets_each_by_its_name(form: str) -> None:
    observation = {
        key: np.full((4, 4, 3), value, np.uint8) if isinstance(value, int) else value
        for key, value in SEVERAL[form].items()
    }
    separator = "." if form == "LeRobot" else "/"
    observation[f"observation{separator}state"] = np.arange(3, dtype=np.float32)
    seen = normalise(observation, cameras=CAMERAS).observation
    assert {name: int(image[0, 0, 0]) for name, image in seen.images.items()} == {
        "camera1": 1,
        "camera2": 2,
    }
    assert seen.state is not None and seen.state.tolist() == [0.0, 1.0, 2.0]
    del observation[f"observation{separator}{'images.' if form == 'LeRobot' else ''}camera2"]
    with pytest.raises(ObservationError, match=r"cameras \['camera1', 'camera2'\].*missing"):
        normalise(observation, cameras=CAMERAS)
