"""The adaptive ensemble and the SIMPLER adapter agree with the public evaluation code in every
stored array.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble, blend
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.simpler_adapter import (
    Robot,
    SimplerAdapter,
    StickyGripper,
    euler_to_axis_angle,
)

RAW = {
    "raw_world_vector": "world_vector",
    "raw_rotation_delta": "rotation_delta",
    "raw_open_gripper": "open_gripper",
}


@pytest.fixture(scope="module")
def arrays(fixture_dir: Path) -> dict[str, np.ndarray]:
    with np.load(fixture_dir / "reference.npz") as stored:
        return {
            key: stored[key] for key in stored.files if key.startswith(("ensemble/", "simpler/"))
        }


@pytest.mark.parametrize("horizon", [2, 7])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_ensemble_equals_the_official_one(
    arrays: dict[str, np.ndarray], horizon: int, alpha: float
) -> None:
    ensemble = AdaptiveEnsemble(horizon, alpha)
    blended = [ensemble.step(chunk) for chunk in arrays["ensemble/chunks"]]
    np.testing.assert_allclose(
        blended, arrays[f"ensemble/h{horizon}_alpha{alpha}"], atol=1e-9, rtol=0
    )


def test_blend_by_hand() -> None:
    same = np.array([3.0, 4.0])
    opposite = np.array([-3.0, -4.0])
    np.testing.assert_allclose(blend(np.stack([same, same])), same)
    weight = np.exp(0.1) / (np.exp(0.1) + np.exp(-0.1))
    np.testing.assert_allclose(
        blend(np.stack([opposite, same])), (2 * weight - 1) * same, rtol=1e-7
    )
    np.testing.assert_array_equal(blend(np.zeros((3, 2))), [0, 0])


@pytest.mark.parametrize("robot", ["google_robot", "widowx_bridge"])
@pytest.mark.parametrize(
    ("mode", "kind", "reset"),
    [
        ("ensemble", "binary", None),
        ("ensemble", "binary", 19),
        ("ensemble", "continuous", None),
        ("first", "binary", None),
        ("first", "continuous", None),
    ],
)
def test_adapter_equals_the_official_one(
    arrays: dict[str, np.ndarray], robot: Robot, mode: str, kind: str, reset: int | None
) -> None:
    prefix = f"simpler/{robot}/{mode}_{kind}" + (f"_reset{reset}" if reset else "")
    stored = {
        key.removeprefix(f"{prefix}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{prefix}/")
    }
    adapter = SimplerAdapter(robot, ensemble=mode == "ensemble")
    for step, chunk in enumerate(arrays[f"simpler/chunks_{kind}_gripper"]):
        if step == reset:
            adapter.reset()
        raw, action = adapter.step(chunk)
        got = action | {name: raw[field] for name, field in RAW.items()}
        assert got.keys() == stored.keys()
        for name, value in got.items():
            atol = 1e-7 if name == "rot_axangle" else 1e-9
            np.testing.assert_allclose(
                value, stored[name][step], atol=atol, rtol=0, err_msg=f"{name}, step {step}"
            )


def test_rotation_by_hand() -> None:
    np.testing.assert_array_equal(euler_to_axis_angle(np.zeros(3)), np.zeros(3))
    for axis in np.eye(3):
        np.testing.assert_allclose(euler_to_axis_angle(0.3 * axis), 0.3 * axis, atol=1e-15)


def test_a_change_of_the_gripper_sticks_for_ten_steps() -> None:
    gripper = StickyGripper()
    commands = [float(gripper.step(np.array([opening]))[0]) for opening in [1.0, 1.0, *[0.0] * 12]]
    assert commands == [0.0, 0.0, *[1.0] * 10, 0.0, 0.0]


def test_an_unknown_robot_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'spot' for 'robot'"):
        SimplerAdapter("spot")  # pyright: ignore[reportArgumentType]
