"""The original SimplerEnv package (ManiSkill2_real2sim) as tasks of an evaluation; imported only
when a task is made.

The protocol is that of its own evaluator: an environment is built anew for every episode (drive
targets survive a reset) and reset once, for building its scene once more moves the spoon by 0.03
mm; the score is the `done` of the last step, an episode goes on until its limit, the instruction is
read again at every step, and the robot's adapter starts anew with every new instruction, as that of
CogACT does. Not on a registry: users clone it (docs/guides/simpler-original.md). What it prints
goes to stderr. Knows its documented API and the grids; knows no policy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.chunks.ensemble import HORIZONS
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.simpler_adapter import SimplerAdapter
from trimvla.sim.actor import KINDS
from trimvla.sim.simpler.files import PICKED, check_files, files_of
from trimvla.sim.simpler.grids import ORIGINALS, SETS, Cell, Original, Set, official
from trimvla.sim.simpler.install import NO_VULKAN, ORIGINAL, PAGE, installed, unfit, versions

SIM_HZ = {"google_robot": 513, "widowx_bridge": 500}
ASSETS = "clone it with its submodule and set MS2_ASSET_DIR to its ManiSkill2_real2sim/data"
VULKAN_WORDS = ("vk::", "vulkan", "render")  # of a RuntimeError where there is no driver
TERMINATE = 7  # an eighth number above 0 means that the sub-task is done; CogACT never sends one


@dataclass(frozen=True)
class Package:
    """What is used of SimplerEnv."""

    make: Any
    """`make(task)`: the prepackaged visual matching."""
    build: Any
    """`build_maniskill2_env(env_id, **options)`."""
    control_mode: Any
    """`get_robot_control_mode(robot, policy)`."""
    image: Any
    """`get_image_from_maniskill2_obs_dict(env, observation)`."""
    data: Path
    """Its assets: scenes, models, photographs."""
    robots: Path
    """Its robots and what else travels inside the package."""

    @classmethod
    def load(cls) -> Package:
        """Import it; ConfigError where it is not installed, or beside versions with which it cannot
        work.
        """
        if all(map(installed, ORIGINAL)) and (problem := unfit(versions(), sys.version_info[:2])):
            raise ConfigError(problem)
        try:
            root = import_module("mani_skill2_real2sim")
            builder = import_module("simpler_env.utils.env.env_builder")
            return cls(
                import_module("simpler_env").make,
                builder.build_maniskill2_env,
                builder.get_robot_control_mode,
                import_module(
                    "simpler_env.utils.env.observation_utils"
                ).get_image_from_maniskill2_obs_dict,
                Path(root.ASSET_DIR),
                Path(root.PACKAGE_ASSET_DIR),
            )
        except ImportError as error:
            raise ConfigError(
                f"expected the original SimplerEnv package for 'simpler_env:': {error}; clone"
                f" simpler-env/SimplerEnv with its submodule and install both as {PAGE} says"
                " (without it, WidowX tasks run as 'simpler:widowx_...')"
            ) from None


class OriginalEpisode:
    """One episode in an environment of its own; see `episodes.Episode`."""

    def __init__(
        self,
        package: Package,
        env: Any,  # noqa: ANN401 - an env of gymnasium
        observation: Any,  # noqa: ANN401
        original: Original,
        kind: str,
    ) -> None:
        self._package = package
        self._env = env
        self._original = original
        self._adapter = SimplerAdapter(original.robot, ensemble=False)
        self._steps = 0
        self.success = False
        self.stats: dict[str, Any] = {}
        """The environment's own `episode_stats`."""
        self.instruction: str = self._env.unwrapped.get_language_instruction()
        self.kind = kind or self.instruction.split()[0]
        self.image = self._image(observation)

    def step(self, action: np.ndarray) -> bool:
        """See `episodes.Episode`; an eighth number above 0 ends the sub-task, and with the last one
        the episode.
        """
        action = np.asarray(action, np.float64)
        inner = self._env.unwrapped
        ends = len(action) > TERMINATE and bool(action[TERMINATE] > 0)
        final = bool(inner.is_final_subtask())
        if ends and not final:
            inner.advance_to_next_subtask()
        _, parts = self._adapter.step(action[None, :TERMINATE])
        command = np.concatenate([parts["world_vector"], parts["rot_axangle"], parts["gripper"]])
        with stdout_to_stderr():
            observation, _, done, truncated, info = self._env.step(command)
        self._steps += 1
        self.success = bool(done)
        self.stats = dict(info.get("episode_stats", {}))
        self.image = self._image(observation)
        self._set_instruction(inner.get_language_instruction())
        return bool(truncated) or (ends and final) or self._steps >= self._original.limit

    def expert(self) -> np.ndarray:
        """See `episodes.Episode`."""
        raise ConfigError(
            "expected a policy for 'simpler_env:': the original package has no scripted expert"
        )

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _set_instruction(self, instruction: str) -> None:
        if instruction != self.instruction:
            self.instruction = instruction
            self._adapter.reset()

    def _image(self, observation: Any) -> np.ndarray:  # noqa: ANN401
        image = np.ascontiguousarray(self._package.image(self._env.unwrapped, observation))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ConfigError(
                "expected uint8[h, w, 3] from SimplerEnv's camera, got"
                f" {image.dtype}{list(image.shape)}"
            )
        return image


class OriginalTask:
    """A task of the original package, with one of its official sets of episodes; see
    `episodes.Task`.
    """

    execute = 1  # CogACT's evaluation looks at every step
    dim = len(KINDS)
    kinds: tuple[ActionKind, ...] | None = KINDS

    def __init__(self, name: str, which: Set) -> None:
        self.name = f"simpler_env:{name}:{which}"
        self._task = name
        self._original = ORIGINALS[name]
        with stdout_to_stderr():
            self._package = Package.load()
        self._cells = official(name, which)
        self.control_hz = self._original.hz
        self.limit = self._original.limit
        self.official = len(self._cells)
        self.votes = HORIZONS[self._original.robot]

    def episode(self, index: int, *, official: bool) -> OriginalEpisode:
        """See `episodes.Task`; other episodes than the official ones are the prepackaged task's, by
        seed.

        What the package draws by a seed are new places for cans, objects and apples. For WidowX,
        moves and drawers it is one of the official states again, with replacement.
        """
        self.check((index,), official=official)
        cell = self._cell(index) if official else None
        with stdout_to_stderr(), driver_named():
            env = self._package.make(self._task) if cell is None else self._build(cell)
            observation, _ = (
                env.reset(seed=index)
                if cell is None
                else env.reset(options=arrays(cell.init_options))
            )
            return OriginalEpisode(
                self._package, env, observation, self._original, "" if cell is None else cell.kind
            )

    def check(self, indices: Iterable[int], *, official: bool) -> None:
        """Raise ConfigError where a scene or mesh of these episodes is missing; see
        `sim.simpler.files`.

        By a seed the package may draw any of its places, so what visual matching loads must be
        there.
        """
        cells = map(self._cell, indices) if official else _prepackaged(self._task)
        files = (
            file
            for cell in cells
            for file in files_of(cell, self._package.data, self._package.robots)
        )
        check_files(files, self.name, ASSETS)

    def close(self) -> None:
        """Nothing: environments are the episodes'."""

    def _cell(self, index: int) -> Cell:
        if not 0 <= index < self.official:
            raise ConfigError(
                f"expected an official episode below {self.official} of '{self.name}', got {index}"
            )
        return self._cells[index]

    def _build(self, cell: Cell) -> Any:  # noqa: ANN401 - an env of gymnasium
        """As SimplerEnv's evaluator builds it."""
        overlay = (
            None
            if cell.overlay is None
            else str(self._package.data / "real_inpainting" / cell.overlay)
        )
        return self._package.build(
            cell.env_id,
            **cell.options,
            obs_mode="rgbd",
            robot=cell.robot,
            sim_freq=SIM_HZ[self._original.robot],
            control_mode=self._package.control_mode(cell.robot, "cogact"),
            control_freq=int(self._original.hz),
            max_episode_steps=self._original.limit,
            scene_name=cell.scene,
            camera_cfgs={"add_segmentation": True},
            rgb_overlay_path=overlay,
        )


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What the package prints ("Control mode: ...") goes to stderr: stdout is for results."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def driver_named() -> Iterator[None]:
    """A missing Vulkan driver or asset as ConfigError; other errors as they are."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in VULKAN_WORDS):
            raise
        raise ConfigError(
            f"expected a Vulkan driver for SimplerEnv's pictures, got: {error}; {NO_VULKAN}"
        ) from None
    except FileNotFoundError as error:
        raise ConfigError(f"expected all of SimplerEnv's assets, got: {error}; {ASSETS}") from None


def _prepackaged(task: str) -> list[Cell]:
    """Cells that load all of what the package may draw from by a seed."""
    if task != "google_robot_pick_object":
        return official(task, "matching")
    cell = official("google_robot_pick_coke_can", "matching")[0]
    return [replace(cell, options={"model_ids": name}) for name in PICKED]


def arrays(options: dict[str, Any]) -> dict[str, Any]:
    """Tuples as arrays, as the environments expect places and quaternions."""
    if all(not isinstance(value, dict) for value in options.values()):
        return {
            key: np.array(value) if isinstance(value, tuple) else value
            for key, value in options.items()
        }
    return {key: arrays(value) for key, value in options.items()}


def make(words: str) -> OriginalTask:
    """`google_robot_pick_coke_can` (visual matching) or `google_robot_pick_coke_can:variants`."""
    name, _, rest = words.partition(":")
    if name not in ORIGINALS:
        raise ConfigError(f"expected one of {sorted(ORIGINALS)} for 'simpler_env:', got {name!r}")
    for which in SETS:
        if which == (rest or "matching"):
            return OriginalTask(name, which)
    raise ConfigError(f"expected one of {list(SETS)} after 'simpler_env:{name}:', got {rest!r}")
