"""SimplerEnv's four WidowX tasks as data: ManiSkill's names, limits, jobs, places of further
states.

Knows numbers; knows no simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trimvla.sim.simpler.expert import Job

NEAR = 0.01  # a drawn state is not this close to an official one [m]


@dataclass(frozen=True)
class Twin:
    """One task: ManiSkill's name, the limit, how the expert does it, and where further initial
    states are drawn.
    """

    env: str
    limit: int
    job: Job
    margin: tuple[float, float]
    """How far beyond the official grid positions are drawn, x and y [m]."""
    turn: float
    """How far from an official orientation the object is turned [rad]."""
    apart: float
    """The least distance between object and target [m]."""


TWINS = {
    "widowx_carrot_on_plate": Twin(
        "PutCarrotOnPlateInScene-v1",
        60,
        Job(0.016, math.pi, 0.030, 0.09, 0.020, 0.886),
        (0.01, 0.01),
        0.15,
        0.11,
    ),
    "widowx_spoon_on_towel": Twin(
        "PutSpoonOnTableClothInScene-v1",
        60,
        Job(0.012, math.pi, 0.022, 0.08, 0.020, 0.888),
        (0.01, 0.01),
        0.15,
        0.11,
    ),
    "widowx_stack_cube": Twin(
        "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        60,
        Job(0.015, math.pi / 2, 0.034, 0.075, 0.006, 0.885),
        (0.01, 0.01),
        0.10,
        0.07,
    ),
    "widowx_put_eggplant_in_basket": Twin(
        "PutEggplantInBasketScene-v1",
        120,
        Job(0.02, math.pi, 0.055, 0.11, 0.020, 0.925),
        (0.005, 0.01),
        0.35,
        0.0,
    ),
}


def draw(
    twin: Twin, xyz: np.ndarray, quat: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A further initial state: positions float[2, 3] and quaternions float[2, 4] of object and
    target.

    Positions are uniform in the box of the official ones with a margin (the eggplant's basket
    stays), orientations are an official one turned about the vertical. Never within `NEAR` of an
    official pair of positions.

    Args:
        twin: the task.
        xyz: float[n, 2, 3], the official positions.
        quat: float[m, 2, 4], the official orientations.
        rng: decides.
    """
    low = xyz.min(axis=0)
    high = xyz.max(axis=0)
    margin = np.array([*twin.margin, 0.0])
    fixed = np.isclose(low, high).all(axis=1, keepdims=True)
    low = np.where(fixed, low, low - margin)
    high = np.where(fixed, high, high + margin)
    while True:
        place = rng.uniform(low, high)
        nearest = np.abs(place - xyz).max(axis=(1, 2)).min()
        if (
            nearest > NEAR * (0.2 if fixed.any() else 1.0)
            and math.dist(place[0, :2], place[1, :2]) > twin.apart
        ):
            break
    turned = quat[rng.integers(len(quat))].astype(np.float64).copy()
    turned[0] = times_yaw(rng.uniform(-twin.turn, twin.turn), turned[0])
    return place, turned


def times_yaw(angle: float, q: np.ndarray) -> np.ndarray:
    """Turn a quaternion (w, x, y, z) about the world's z."""
    c = math.cos(angle / 2)
    s = math.sin(angle / 2)
    w, x, y, z = q
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])
