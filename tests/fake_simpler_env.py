"""SimplerEnv's documented API without its physics: environments, cameras, sub-tasks, and its traps.

As in the real package, a robot's drive targets survive a reset unless it says `reconfigure`, the
time limit is a wrapper's, a wrapper does not hand on the environment's own methods (gymnasium 1.x),
success can come and go, and it prints to stdout. A missing scene or mesh is no error. `assets`
writes empty-handed files where the package has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from trimvla.sim.simpler.files import files_of
from trimvla.sim.simpler.grids import ORIGINALS, SETS, official

CONTENT = {
    ".glb": b"glTF" + (2).to_bytes(4, "little") + (12).to_bytes(4, "little"),
    ".png": b"\x89PNG\r\n",
}
CAMERAS = {"google_robot_static": "overhead_camera", "widowx": "3rd_view_camera"}
PREPACKAGED = {
    "google_robot_place_apple_in_closed_top_drawer": (
        "PlaceIntoClosedTopDrawerCustomInScene-v0",
        200,
    ),
    "widowx_stack_cube": ("StackGreenCubeOnYellowCubeBakedTexInScene-v0", 60),
}


@dataclass
class Inner:
    """The environment itself.

    Success: the commanded gripper closed (below 0) in the last sub-task.
    """

    made: ClassVar[list[Inner]] = []
    env_id: str
    options: dict[str, Any]
    resets: list[dict[str, Any]] = field(default_factory=list)
    commands: list[np.ndarray] = field(default_factory=list)
    drive_target: float = 0.0
    subtask: int = 0
    closed: int = 0
    sentence: str | None = None
    """Said instead of the environment's own."""

    def __post_init__(self) -> None:
        self.robot_uid = self.options.get(
            "robot", "google_robot_static" if "Drawer" in self.env_id else "widowx"
        )
        self.elapsed = 0
        Inner.made.append(self)

    @property
    def unwrapped(self) -> Inner:
        return self

    def get_language_instruction(self) -> str:
        if self.sentence is not None:
            return self.sentence
        return (
            ("open top drawer", "place apple into top drawer")[self.subtask]
            if self._long
            else "stack the blocks"
        )

    def is_final_subtask(self) -> bool:
        return self.subtask == 1 or not self._long

    def advance_to_next_subtask(self) -> None:
        if not self._long:
            raise NotImplementedError
        self.subtask = 1

    @property
    def _long(self) -> bool:
        return self.env_id.startswith("PlaceInto")

    def observe(self) -> dict[str, Any]:
        camera = CAMERAS["google_robot_static" if "google" in self.robot_uid else "widowx"]
        picture = np.full((6, 8, 3), round(self.drive_target * 10) % 256, np.uint8)
        return {"image": {camera: {"rgb": picture, "Segmentation": None}}}

    def reset(self, options: dict[str, Any]) -> None:
        self.resets.append(options)
        self.elapsed = self.subtask = 0
        if options.get("reconfigure"):
            self.drive_target = 0.0

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        assert action.shape == (7,)
        self.commands.append(action)
        if self._long and self.elapsed >= 100:  # before it counts this step: the 101st advances
            self.advance_to_next_subtask()
        self.elapsed += 1
        self.drive_target += float(action[0])
        success = self.is_final_subtask() and action[6] < 0
        return (
            self.observe(),
            0.0,
            bool(success),
            {"success": success, "episode_stats": {"qpos": self.drive_target}},
        )


class TimeLimit:
    """What `gym.make` returns."""

    def __init__(self, inner: Inner, limit: int) -> None:
        self.unwrapped = inner
        self._limit = limit

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.unwrapped.reset({**(options or {}), "seed": seed})
        return self.unwrapped.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, done, info = self.unwrapped.step(action)
        return observation, reward, done, self.unwrapped.elapsed >= self._limit, info

    def close(self) -> None:
        self.unwrapped.closed += 1


def build_maniskill2_env(env_name: str, **options: Any) -> TimeLimit:
    if options.get("rgb_overlay_path") is not None:
        options.setdefault(
            "rgb_overlay_cameras",
            [CAMERAS["widowx" if "widowx" in options["robot"] else options["robot"]]],
        )
    return TimeLimit(Inner(env_name, options), options["max_episode_steps"])


def make(task_name: str) -> TimeLimit:
    env_id, limit = PREPACKAGED[task_name]
    return TimeLimit(Inner(env_id, {"prepackaged_config": True}), limit)


def get_robot_control_mode(robot_name: str, policy_name: str) -> str:
    print("Control mode: ", robot_name)  # as the package does
    return f"arm of {robot_name}"


def get_image_from_maniskill2_obs_dict(
    env: Inner, obs: dict[str, Any], camera_name: str | None = None
) -> np.ndarray:
    name = camera_name or (
        "overhead_camera" if "google_robot" in env.robot_uid else "3rd_view_camera"
    )
    return obs["image"][name]["rgb"]


def assets(root: Path) -> Path:
    """Files as the package has them, of everything that official episodes load; returns its
    `data`.
    """
    data = root / "data"
    package = root / "package"
    cells = [cell for task in ORIGINALS for which in SETS for cell in official(task, which)]
    for path in {file for cell in cells for file in files_of(cell, data, package)}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT.get(path.suffix, b"o mesh\n"))
    for urdf in (package / "descriptions").rglob("*.urdf"):
        urdf.write_text('<robot><mesh filename="meshes/link.stl"/></robot>')
        (urdf.parent / "meshes").mkdir(exist_ok=True)
        (urdf.parent / "meshes/link.stl").write_text("solid link")
    return data


def install(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """As if it had been cloned and installed, with its assets under `root`."""
    Inner.made.clear()
    data = assets(root)
    modules = {
        "simpler_env": {"make": make},
        "simpler_env.utils": {},
        "simpler_env.utils.env": {},
        "simpler_env.utils.env.env_builder": {
            "build_maniskill2_env": build_maniskill2_env,
            "get_robot_control_mode": get_robot_control_mode,
        },
        "simpler_env.utils.env.observation_utils": {
            "get_image_from_maniskill2_obs_dict": get_image_from_maniskill2_obs_dict
        },
        "mani_skill2_real2sim": {"ASSET_DIR": data, "PACKAGE_ASSET_DIR": root / "package"},
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        module.__dict__.update(SimpleNamespace(**attributes).__dict__)
        monkeypatch.setitem(__import__("sys").modules, name, module)
