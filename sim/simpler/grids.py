"""SIMPLER's official episodes as tables: what the public evaluation scripts of the original
`simpler_env` play.

Visual matching lays a photograph behind the robot and varies its colours; variant aggregation
varies scene, light, distractors, table and cabinet. Every cell is one episode: which environment is
built, and how it is reset. Facts from simpler-env/SimplerEnv, `scripts/*.sh`; the cameras that
those scripts also vary count in no official score (`tools/calc_metrics.py`). WidowX's initial
states, which the package makes from an episode's number, are `releases`: ManiSkill 3 numbers the
same ones, but for the eggplant, whose 64 are its own. Knows names and numbers; imports nothing of
SimplerEnv.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any, Literal

from trimvla.runtime.inference.simpler_adapter import Robot

Set = Literal["matching", "variants"]
SETS: tuple[Set, ...] = ("matching", "variants")


@dataclass(frozen=True)
class Original:
    """A task of the original package: its robot, the rate of its control and the most steps of an
    episode.
    """

    robot: Robot
    hz: float
    limit: int


GOOGLE_HZ = 3.0
WIDOWX_HZ = 5.0
ORIGINALS = {
    "google_robot_pick_coke_can": Original("google_robot", GOOGLE_HZ, 80),
    "google_robot_pick_object": Original("google_robot", GOOGLE_HZ, 80),
    "google_robot_move_near": Original("google_robot", GOOGLE_HZ, 80),
    "google_robot_open_drawer": Original("google_robot", GOOGLE_HZ, 113),
    "google_robot_close_drawer": Original("google_robot", GOOGLE_HZ, 113),
    "google_robot_place_apple_in_closed_top_drawer": Original("google_robot", GOOGLE_HZ, 200),
    "widowx_spoon_on_towel": Original("widowx_bridge", WIDOWX_HZ, 60),
    "widowx_carrot_on_plate": Original("widowx_bridge", WIDOWX_HZ, 60),
    "widowx_stack_cube": Original("widowx_bridge", WIDOWX_HZ, 60),
    "widowx_put_eggplant_in_basket": Original("widowx_bridge", WIDOWX_HZ, 120),
}


@dataclass(frozen=True)
class Cell:
    """One official episode.

    `robot_at`: x, y [m] and yaw [rad]; the object by its place [m] or an episode's number.
    """

    env_id: str
    scene: str
    robot: str
    robot_at: tuple[float, float, float]
    object_at: tuple[float, float] | None = None
    episode: int | None = None
    overlay: str | None = None
    """File under `real_inpainting`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the environment's making."""
    kind: str = ""
    """By what outcomes are grouped."""

    @property
    def init_options(self) -> dict[str, Any]:
        """What `reset` takes. The quaternion (w, x, y, z) is the yaw after half a turn."""
        x, y, yaw = self.robot_at
        quaternion = (-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2))
        thing = (
            {"episode_id": self.episode} if self.object_at is None else {"init_xy": self.object_at}
        )
        return {
            "robot_init_options": {"init_xy": (x, y), "init_rot_quat": quaternion},
            "obj_init_options": thing,
        }


@dataclass(frozen=True)
class Release:
    """Where an official WidowX episode lets go of its object and of the target, both `RELEASE_Z`
    above the ground.
    """

    thing: tuple[float, float]
    """The object's x, y [m]."""
    target: tuple[float, float]
    """The target's x, y [m]; it is not turned."""
    yaw: float
    """The object's turn about the vertical [rad]."""

    @property
    def positions(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """x, y, z of object and target [m]."""
        return (*self.thing, RELEASE_Z), (*self.target, RELEASE_Z)

    @property
    def quaternions(
        self,
    ) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float]]:
        """w, x, y, z of object and target."""
        return (math.cos(self.yaw / 2), 0.0, 0.0, math.sin(self.yaw / 2)), (1.0, 0.0, 0.0, 0.0)


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """So many numbers from low to high."""
    return tuple(low + (high - low) * i / max(1, count - 1) for i in range(count))


def grid(xs: Iterable[float], ys: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """All places, x slowest."""
    return tuple(product(xs, ys))


GOOGLE = "google_robot_static"
TABLE = "google_pick_coke_can_1_v4"
COLOURS = (
    None,
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
BACKGROUNDS = (f"{TABLE}_alt_background", f"{TABLE}_alt_background_2")
TABLES = ("Baked_sc1_staging_objaverse_cabinet1_h870", "Baked_sc1_staging_objaverse_cabinet2_h870")
LIGHTS: tuple[dict[str, Any], ...] = (
    {"slightly_darker_lighting": True},
    {"slightly_brighter_lighting": True},
)
Variant = tuple[str, str, dict[str, Any]]  # environment, scene, options

COKE = "GraspSingleOpenedCokeCanInScene-v0"
COKE_AMONG = "GraspSingleOpenedCokeCanDistractorInScene-v0"
LYING = {"horizontal": "lr_switch", "standing": "upright", "vertical": "laid_vertically"}
COKE_AT = grid(spaced(-0.35, -0.12, 5), spaced(-0.02, 0.42, 5))
COKE_VARIANTS: tuple[Variant, ...] = (
    (COKE, TABLE, {}),
    *((COKE, scene, {}) for scene in TABLES),
    (COKE_AMONG, TABLE, {}),
    (COKE_AMONG, TABLE, {"distractor_config": "more"}),
    *((COKE, scene, {}) for scene in BACKGROUNDS),
    *((COKE, TABLE, light) for light in LIGHTS),
)
NEAR = "MoveNearGoogleInScene-v0"
NEAR_FROM = (0.35, 0.21, -0.09)
NEAR_VARIANTS: tuple[Variant, ...] = (
    (NEAR, TABLE, {}),
    (NEAR, TABLE, {"no_distractor": True}),
    *((NEAR, scene, {}) for scene in BACKGROUNDS),
    *((NEAR, TABLE, light) for light in LIGHTS),
    *((NEAR, scene, {}) for scene in TABLES),
)
PLACES = {  # where the robot stands before the drawers, as in the photographs
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
RECOLOURED = {
    "station_name": "mk_station_recolor",
    "light_mode": "simple",
    "disable_bad_material": True,
}
RAYS = {"shader_dir": "rt"}  # the drawers need their shadows
APARTMENT = "frl_apartment_stage_simple"
ROOMS: tuple[tuple[str, dict[str, Any]], ...] = (
    (APARTMENT, {}),
    ("modern_bedroom_no_roof", {}),
    ("modern_office_no_roof", {}),
    (APARTMENT, {"light_mode": "brighter"}),
    (APARTMENT, {"light_mode": "darker"}),
    (APARTMENT, {"station_name": "mk_station2"}),
    (APARTMENT, {"station_name": "mk_station3"}),
)
DRAWERS = ("Top", "Middle", "Bottom")
APPLE = "PlaceIntoClosedTopDrawerCustomInScene-v0"
APPLE_AT = grid(spaced(-0.08, -0.02, 3), spaced(-0.02, 0.08, 3))
COUNTER = ("bridge_table_1_v1", "widowx", (0.147, 0.028, 0.0), "bridge_real_eval_1.png")
SINK = (
    "bridge_table_1_v2",
    "widowx_sink_camera_setup",
    (0.127, 0.06, 0.0),
    "bridge_sink.png",
)
WIDOWX = {
    "widowx_spoon_on_towel": ("PutSpoonOnTableClothInScene-v0", COUNTER),
    "widowx_carrot_on_plate": ("PutCarrotOnPlateInScene-v0", COUNTER),
    "widowx_stack_cube": ("StackGreenCubeOnYellowCubeBakedTexInScene-v0", COUNTER),
    "widowx_put_eggplant_in_basket": ("PutEggplantInBasketScene-v0", SINK),
}

RELEASE_Z = 0.87 + 0.5  # objects fall from half a metre above the table [m]
# middles of the places; basket
AROUND = (-0.16, 0.0)
SINK_AROUND = (-0.105, 0.206)
SINK_TARGET = (-0.125, 0.025)
YAWS = {  # of the object; within a pair of places they come one after the other
    "widowx_spoon_on_towel": (0.0, math.pi / 2),
    "widowx_carrot_on_plate": (math.pi, -math.pi / 2),
    "widowx_stack_cube": (0.0,),
    "widowx_put_eggplant_in_basket": (0.0, math.pi / 4, -math.pi / 4),
}
SQUARES = {  # half the edges of the squares on whose corners object and target lie [m]
    "widowx_spoon_on_towel": (0.075,),
    "widowx_carrot_on_plate": (0.075,),
    "widowx_stack_cube": (0.05, 0.1),
}


def releases(task: str) -> list[Release]:
    """The 24 official initial states of a WidowX task, by the number of the episode."""
    return [Release(thing, target, yaw) for thing, target in _places(task) for yaw in YAWS[task]]


def _places(task: str) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    if task not in SQUARES:
        x, y = SINK_AROUND
        for thing in grid(spaced(x - 0.01, x + 0.01, 2), spaced(y - 0.015, y + 0.015, 4)):
            yield thing, SINK_TARGET
        return
    x, y = AROUND
    for half in SQUARES[task]:
        yield from permutations(grid((x - half, x + half), (y - half, y + half)), 2)


def official(task: str, which: Set) -> list[Cell]:
    """The official episodes, in the scripts' order; none where there are no official ones."""
    if task in WIDOWX:
        return list(_widowx(*WIDOWX[task])) if which == "matching" else []
    maker = MAKERS.get((task, which))
    return list(maker()) if maker else []


def _coke_matching() -> Iterator[Cell]:
    for colour, (kind, lying), at in product(COLOURS, LYING.items(), COKE_AT):
        options = {lying: True, "urdf_version": colour}
        yield Cell(
            COKE,
            TABLE,
            GOOGLE,
            (0.35, 0.20, 0.0),
            at,
            overlay="google_coke_can_real_eval_1.png",
            options=options,
            kind=kind,
        )


def _coke_variants() -> Iterator[Cell]:
    for (env_id, scene, extra), (kind, lying), at in product(COKE_VARIANTS, LYING.items(), COKE_AT):
        yield Cell(
            env_id, scene, GOOGLE, (0.35, 0.20, 0.0), at, options={lying: True, **extra}, kind=kind
        )


def _near_matching() -> Iterator[Cell]:
    for colour, number in product(COLOURS, range(60)):
        yield Cell(
            "MoveNearGoogleBakedTexInScene-v0",
            TABLE,
            GOOGLE,
            NEAR_FROM,
            episode=number,
            kind="move",
            overlay="google_move_near_real_eval_1.png",
            options={"urdf_version": colour},
        )


def _near_variants() -> Iterator[Cell]:
    for (env_id, scene, extra), number in product(NEAR_VARIANTS, range(60)):
        yield Cell(env_id, scene, GOOGLE, NEAR_FROM, episode=number, options=extra, kind="move")


def _drawer_matching(verb: str) -> Callable[[], Iterator[Cell]]:
    def cells() -> Iterator[Cell]:
        for colour, drawer, (place, at) in product(COLOURS, DRAWERS, PLACES.items()):
            yield Cell(
                f"{verb}{drawer}DrawerCustomInScene-v0",
                "dummy_drawer",
                GOOGLE,
                at,
                (0.0, 0.0),
                overlay=f"open_drawer_{place}.png",
                options={**RAYS, **RECOLOURED, "urdf_version": colour},
                kind=f"{verb} {drawer}".lower(),
            )

    return cells


def _drawer_variants(verb: str) -> Callable[[], Iterator[Cell]]:
    standing = grid(spaced(0.65, 0.85, 3), spaced(-0.2, 0.2, 3))

    def cells() -> Iterator[Cell]:
        for (room, extra), drawer, (x, y) in product(ROOMS, DRAWERS, standing):
            yield Cell(
                f"{verb}{drawer}DrawerCustomInScene-v0",
                room,
                GOOGLE,
                (x, y, 0.0),
                (0.0, 0.0),
                options={**RAYS, **extra},
                kind=f"{verb} {drawer}".lower(),
            )

    return cells


def _apple_matching() -> Iterator[Cell]:
    for colour, place, at in product(reversed(COLOURS), ("a0", "b0", "c0"), APPLE_AT):
        yield Cell(
            APPLE,
            "dummy_drawer",
            GOOGLE,
            PLACES[place],
            at,
            overlay=f"open_drawer_{place}.png",
            options={**RAYS, **RECOLOURED, "urdf_version": colour, "model_ids": "baked_apple_v2"},
            kind="place",
        )


def _apple_variants() -> Iterator[Cell]:
    for (room, extra), y, at in product(ROOMS, spaced(-0.2, 0.2, 3), APPLE_AT):
        options = {**RAYS, **extra, "model_ids": "apple"}
        yield Cell(APPLE, room, GOOGLE, (0.65, y, 0.0), at, options=options, kind="place")


def _widowx(env_id: str, place: tuple[str, str, tuple[float, float, float], str]) -> Iterator[Cell]:
    scene, robot, at, overlay = place
    for number in range(24):
        yield Cell(env_id, scene, robot, at, episode=number, overlay=overlay)


MAKERS: dict[tuple[str, Set], Callable[[], Iterator[Cell]]] = {
    ("google_robot_pick_coke_can", "matching"): _coke_matching,
    ("google_robot_pick_coke_can", "variants"): _coke_variants,
    ("google_robot_move_near", "matching"): _near_matching,
    ("google_robot_move_near", "variants"): _near_variants,
    ("google_robot_open_drawer", "matching"): _drawer_matching("Open"),
    ("google_robot_open_drawer", "variants"): _drawer_variants("Open"),
    ("google_robot_close_drawer", "matching"): _drawer_matching("Close"),
    ("google_robot_close_drawer", "variants"): _drawer_variants("Close"),
    ("google_robot_place_apple_in_closed_top_drawer", "matching"): _apple_matching,
    ("google_robot_place_apple_in_closed_top_drawer", "variants"): _apple_variants,
}
