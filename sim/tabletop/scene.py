"""What lies on the table and what is asked: kinds, colours, goals, instructions, placement, visual
variants.

Knows the vocabulary of the task and how a scene is drawn at random from a seed. Knows nothing of
physics, rendering or robots. Metres and radians; x to the right in the image, y away from the
camera, z up, table top at z = 0.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.62, 0.15),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.95, 0.83, 0.08),
    "purple": (0.55, 0.12, 0.72),
}
OBJECT_KINDS = ("cube", "can")
TARGET_KINDS = ("plate", "mat")

# Half height of an object, thickness of a target; how far from the middle an object still counts as
# on it [m].
HALF_HEIGHT = {"cube": 0.023, "can": 0.028}
THICKNESS = {"plate": 0.006, "mat": 0.004}
ON_RADIUS = {"plate": 0.055, "mat": 0.055, "cube": 0.028}
OBJECT_HALF_WIDTH = 0.023

VERBS = {"pick": 0.3, "put": 0.5, "stack": 0.2}
TEMPLATES = {
    "pick": "pick up the {object}",
    "put": "put the {object} on the {target}",
    "stack": "stack the {object} on the {target}",
}

# Where things may lie, and the ellipse around an object that the open gripper needs free [m].
AREA_X = (-0.165, 0.165)
AREA_Y = (-0.125, 0.135)
CLEAR_X = 0.105
CLEAR_Y = 0.088
TARGET_CLEAR = 0.120

VARIANTS = ("default", "lighting", "texture", "camera", "distractors", "all")


@dataclass(frozen=True)
class Item:
    """One thing on the table: `kind` of OBJECT_KINDS or TARGET_KINDS, `color` of COLORS, position
    [m] and yaw [rad].
    """

    kind: str
    color: str
    x: float
    y: float
    yaw: float = 0.0

    @property
    def name(self) -> str:
        """As the instruction names it, for example `red cube`."""
        return f"{self.color} {self.kind}"


Items = tuple[tuple[Item, ...], tuple[Item, ...]]  # objects, targets


@dataclass(frozen=True)
class Goal:
    """What is asked: `verb` of VERBS, the object's index, and that of what it goes on (for `stack`:
    another object).
    """

    verb: str
    object: int
    target: int = -1


@dataclass(frozen=True)
class Look:
    """What a visual variant changes: light, table texture and camera offset (defaults: as
    trained).
    """

    light: tuple[float, float, float] = (0.0, 0.0, 1.0)  # x, y of the lamp [m], brightness factor
    texture: int = 0
    camera: tuple[float, float, float] = (0.0, 0.0, 0.0)  # offset of the camera's position [m]


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to build the same table again: items, goal, look and where the tool
    starts [m].
    """

    objects: tuple[Item, ...]
    targets: tuple[Item, ...]
    goal: Goal
    look: Look
    tool: tuple[float, float, float]

    def instruction(self, goal: Goal | None = None) -> str:
        """The instruction for `goal` (default: the scene's own)."""
        goal = goal or self.goal
        target = self.objects if goal.verb == "stack" else self.targets
        name = target[goal.target].name if goal.target >= 0 else ""
        return TEMPLATES[goal.verb].format(object=self.objects[goal.object].name, target=name)

    def goals(self) -> list[Goal]:
        """Every goal that can be asked of this table."""
        picks = [Goal("pick", i) for i in range(len(self.objects))]
        puts = [
            Goal("put", i, j) for i in range(len(self.objects)) for j in range(len(self.targets))
        ]
        stacks = [
            Goal("stack", i, j)
            for i, j in itertools.permutations(range(len(self.objects)), 2)
            if self.objects[j].kind == "cube"
        ]
        return picks + puts + stacks

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Scene:
        """Inverse of `to_dict`."""
        look = data["look"]
        return Scene(
            objects=tuple(Item(**item) for item in data["objects"]),
            targets=tuple(Item(**item) for item in data["targets"]),
            goal=Goal(**data["goal"]),
            look=Look(tuple(look["light"]), look["texture"], tuple(look["camera"])),
            tool=tuple(data["tool"]),
        )


def all_instructions() -> list[str]:
    """Every instruction that a scene can ask, in a fixed order (the tokenizer is made from
    them).
    """
    objects = [f"{color} {kind}" for color in COLORS for kind in OBJECT_KINDS]
    targets = [f"{color} {kind}" for color in COLORS for kind in TARGET_KINDS]
    cubes = [f"{color} cube" for color in COLORS]
    picks = [TEMPLATES["pick"].format(object=o) for o in objects]
    puts = [TEMPLATES["put"].format(object=o, target=t) for o in objects for t in targets]
    stacks = [
        TEMPLATES["stack"].format(object=o, target=c) for o in objects for c in cubes if o != c
    ]
    return picks + puts + stacks


def sample_scene(
    rng: np.random.Generator, variant: str = "default", verb: str | None = None
) -> Scene:
    """A random table: three objects (four with `distractors`), two targets, and one goal among all
    that it offers.
    """
    if variant not in VARIANTS:
        raise ValueError(f"expected one of {VARIANTS}, got {variant!r} for 'variant'")
    verb = verb or str(rng.choice(list(VERBS), p=list(VERBS.values())))
    if verb not in VERBS:
        raise ValueError(f"expected one of {tuple(VERBS)}, got {verb!r} for 'verb'")
    extra = variant in ("distractors", "all")
    objects, targets = _items(rng, 4 if extra else 3, 2, need_cube=verb == "stack")
    scene = Scene(objects, targets, Goal("pick", 0), sample_look(rng, variant), _tool(rng))
    goals = [goal for goal in scene.goals() if goal.verb == verb]
    goal = goals[int(rng.integers(len(goals)))]
    return Scene(objects, targets, goal, scene.look, scene.tool)


def sample_look(rng: np.random.Generator, variant: str) -> Look:
    """The image's conditions: a little light jitter by default, what `variant` names in full."""
    strong = variant in ("lighting", "all")
    reach, dim = (0.5, (0.55, 1.35)) if strong else (0.05, (0.92, 1.08))
    (x, y) = rng.uniform(-reach, reach, 2)
    brightness = rng.uniform(*dim)
    texture = int(rng.integers(1, 4)) if variant in ("texture", "all") else 0
    shift = 0.03 if variant in ("camera", "all") else 0.0
    dx, dy, dz = rng.uniform(-shift, shift, 3)
    return Look((float(x), float(y), float(brightness)), texture, (float(dx), float(dy), float(dz)))


def other_goal(scene: Scene, rng: np.random.Generator) -> Goal:
    """A goal with the scene's verb about another object (and the same target where that is
    possible).
    """
    goals = [
        g for g in scene.goals() if g.verb == scene.goal.verb and g.object != scene.goal.object
    ]
    same = [g for g in goals if g.target == scene.goal.target]
    choice = same or goals or [Goal("pick", (scene.goal.object + 1) % len(scene.objects))]
    return choice[int(rng.integers(len(choice)))]


def _items(rng: np.random.Generator, n_objects: int, n_targets: int, need_cube: bool) -> Items:
    kinds = [(kind, color) for kind in OBJECT_KINDS for color in COLORS]
    while True:
        chosen = [kinds[i] for i in rng.choice(len(kinds), n_objects, replace=False)]
        if not need_cube or any(kind == "cube" for kind, _ in chosen):
            break
    colors = rng.choice(list(COLORS), n_targets, replace=False)
    marks = [(str(rng.choice(TARGET_KINDS)), str(color)) for color in colors]
    places = _places(rng, n_objects, n_targets)
    objects = tuple(
        Item(kind, color, *place, _yaw(rng, kind))
        for (kind, color), place in zip(chosen, places, strict=False)
    )
    targets = tuple(
        Item(kind, color, *place)
        for (kind, color), place in zip(marks, places[n_objects:], strict=True)
    )
    return objects, targets


def _yaw(rng: np.random.Generator, kind: str) -> float:
    return float(rng.uniform(-0.4, 0.4)) if kind == "cube" else 0.0


def _tool(rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = rng.uniform((-0.12, -0.10, 0.12), (0.12, 0.10, 0.20))
    return float(x), float(y), float(z)


def _places(rng: np.random.Generator, n_objects: int, n_targets: int) -> list[tuple[float, float]]:
    """Positions with room between them, objects first; starts anew when a table fills up badly."""
    while True:
        places: list[tuple[float, float]] = []
        for _ in range(200):
            if len(places) == n_objects + n_targets:
                return places
            spot = float(rng.uniform(*AREA_X)), float(rng.uniform(*AREA_Y))
            if all(_apart(spot, other, len(places) >= n_objects) for other in places):
                places.append(spot)


def _apart(a: tuple[float, float], b: tuple[float, float], target: bool) -> bool:
    dx = a[0] - b[0]
    dy = a[1] - b[1]
    if target:
        return math.hypot(dx, dy) > TARGET_CLEAR
    return math.hypot(dx / CLEAR_X, dy / CLEAR_Y) > 1.0
