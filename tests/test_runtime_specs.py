"""An ArraySpec says what it expected and what came."""

from __future__ import annotations

import numpy as np
import pytest

from trimvla.runtime.errors import SpecError
from trimvla.runtime.specs import ArraySpec

CHUNK = ArraySpec("actions", "float32", (16, 7))


def test_returns_the_very_array() -> None:
    array = np.zeros((16, 7), np.float32)
    assert CHUNK.validate(array) is array


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.zeros((15, 7), np.float32), r"float32\[15, 7\]"),
        (np.zeros((16, 7)), r"float64\[16, 7\]"),
        (np.zeros(16, np.float32), r"float32\[16\]"),
        ([[0.0] * 7] * 16, "list"),
    ],
)
def test_names_the_field_what_was_expected_and_what_came(value: object, got: str) -> None:
    with pytest.raises(SpecError, match=rf"expected float32\[16, 7\] for 'actions', got {got}"):
        CHUNK.validate(value)


def test_a_free_axis_takes_any_length() -> None:
    spec = ArraySpec("image", "uint8", (None, None, 3))
    assert str(spec) == "uint8[?, ?, 3]"
    spec.validate(np.zeros((4, 9, 3), np.uint8))


def test_a_named_axis_has_one_length() -> None:
    spec = ArraySpec("square", "uint8", ("side", "side"))
    spec.validate(np.zeros((4, 4), np.uint8))
    with pytest.raises(SpecError, match="square"):
        spec.validate(np.zeros((4, 5), np.uint8))
