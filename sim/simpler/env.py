"""SimplerEnv's four WidowX tasks in ManiSkill 3, by the official protocol: fresh state, last-step
success, 5 Hz.

Official episodes begin as SimplerEnv's do: its places, its turns, dropped as it drops them.
ManiSkill's own states, the same but for the eggplant, are further ones, as are those drawn around
them. Actions are in the robot's base frame, which is the world's turned by half a turn about z.
Knows ManiSkill (imported when a task is made); knows no policy. Assets come from ManiSkill's own
download or from `MS_ASSET_DIR`; they are CC BY-NC 4.0 and no part of this project.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.simpler_adapter import GRIPPER_OPEN, euler_to_axis_angle
from trimvla.sim.actor import KINDS
from trimvla.sim.simpler import expert as simpler_expert
from trimvla.sim.simpler.drop import CONTACTS, Drop
from trimvla.sim.simpler.expert import Job, State
from trimvla.sim.simpler.files import check_files, twin_files_of
from trimvla.sim.simpler.grids import Release, releases
from trimvla.sim.simpler.install import DOWNLOAD, missing
from trimvla.sim.simpler.twins import TWINS, draw
from trimvla.sim.simpler.view import HEIGHT, WIDTH, WORKSPACE, View, whole

if TYPE_CHECKING:
    from torch import Tensor

CAMERA = "3rd_view_camera"
OFFICIAL = whole()
CONTROL_HZ = 5.0
OWN = "maniskill"  # after a task's name: ManiSkill's own numbered states in place of SimplerEnv's
CLOSE = "window"  # after a task's name: the window of the workspace in place of the whole picture
FINGERS = (0.015, 0.037)  # a finger's travel, closed and open [m]
SETTLED = 0.03  # so far an object may move while it comes to rest [m]
BASE = "mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env"


class SimplerTask:
    """Episodes of one task in one ManiSkill environment, rebuilt for each of them; see
    `episodes.Task`.
    """

    control_hz = CONTROL_HZ
    dim = len(KINDS)
    kinds: tuple[ActionKind, ...] | None = KINDS

    def __init__(self, name: str, *, view: View = OFFICIAL, own: bool = False) -> None:
        """Make the environment.

        Args:
            name: of the task.
            view: what is rendered of the official picture, and how finely.
            own: whether the numbered episodes are all of ManiSkill's own instead of SimplerEnv's.
        """
        close = view == WORKSPACE
        self.name = f"simpler:{name}" + f":{OWN}" * own + f":{CLOSE}" * close
        self.twin = TWINS[name]
        self.view = view
        self.limit = self.twin.limit
        self._env = _make(self.twin.env, view)
        self._settle = self._env._settle
        self._contacts = {key: getattr(self._env.sim_config.scene_config, key) for key in CONTACTS}
        self._grid = self._env.xyz_configs.clone(), self._env.quat_configs.clone()
        self._releases = None if own else releases(name)
        self.official = (
            len(self._grid[0]) * len(self._grid[1])
            if self._releases is None
            else len(self._releases)
        )

    def episode(self, index: int, *, official: bool) -> SimplerEpisode:
        """Start official episode `index`, or one from a state drawn with `index` as seed."""
        if not official:
            return self._draw(np.random.default_rng(index))
        if not 0 <= index < self.official:
            raise ConfigError(
                f"expected an official episode from 0 to {self.official - 1}, got {index} for"
                f" {self.name!r}"
            )
        return (
            self._lay(*self._grid, index)
            if self._releases is None
            else self._drop(self._releases[index])
        )

    def _draw(self, rng: np.random.Generator) -> SimplerEpisode:
        """Draw until the object stays where it is put: at the sink's wall it may be thrown out."""
        import torch

        while True:
            xyz, quat = self.drawn(rng)
            episode = self._lay(
                torch.from_numpy(xyz[None]).float(), torch.from_numpy(quat[None]).float(), 0
            )
            if math.dist(episode.state().thing, xyz[0]) < SETTLED:
                return episode

    def _drop(self, release: Release) -> SimplerEpisode:
        """Rebuild the scene with SimplerEnv's contacts and let object and target fall, as it
        does.
        """
        import torch

        place = torch.tensor([release.positions]), torch.tensor([release.quaternions])
        return self._start(*place, 0, Drop(self._env), CONTACTS)

    def _lay(self, xyz: Tensor, quat: Tensor, index: int) -> SimplerEpisode:
        """Rebuild the scene with object and target laid down in configuration `index` of these, as
        ManiSkill does.
        """
        return self._start(xyz, quat, index, self._settle, self._contacts)

    def _start(
        self,
        xyz: Tensor,
        quat: Tensor,
        index: int,
        settle: Callable[[float], None],
        contacts: Mapping[str, Any],
    ) -> SimplerEpisode:
        self._env._settle = settle
        for key, value in contacts.items():
            setattr(self._env.sim_config.scene_config, key, value)
        self._env.xyz_configs = xyz
        self._env.quat_configs = quat
        self._env.reset(seed=0, options={"reconfigure": True, "episode_id": index})
        return SimplerEpisode(self)

    def drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions float[2, 3] and quaternions float[2, 4] of object and target as further states
        have them.
        """
        return draw(self.twin, self._grid[0].numpy(), self._grid[1].numpy(), rng)

    def reaches(self, place: np.ndarray) -> bool:
        """Whether a place float[>= 2] is in the box in which further states have their object, or
        near it.
        """
        xyz = self._grid[0][:, 0, :2].numpy()
        margin = 2 * np.array(self.twin.margin)
        return bool(
            (xyz.min(axis=0) - margin <= place[:2]).all()
            and (place[:2] <= xyz.max(axis=0) + margin).all()
        )

    @property
    def background(self) -> np.ndarray:
        """What is behind everything that moves, uint8[h, w, 3] at the view's size."""
        return self._env._rgb_overlay_images[CAMERA].numpy()

    @property
    def env(self) -> Any:  # noqa: ANN401 (ManiSkill's classes are known only once it is imported)
        """ManiSkill's environment, without wrappers."""
        return self._env

    def close(self) -> None:
        """Free the scene and the renderer."""
        self._env.close()


class SimplerEpisode:
    """One episode; pictures are rendered only when they are looked at. See `episodes.Episode`."""

    def __init__(self, task: SimplerTask) -> None:
        self._env = task.env
        self._twin = task.twin
        self._arm = self._env.agent.controller.controllers["arm"]
        self._source = self._env.objs[self._env.source_obj_name]
        self._target = self._env.objs[self._env.target_obj_name]
        self._base = self._env.agent.robot.pose
        self._steps = 0
        self._image: np.ndarray | None = None
        self.success = bool(self._env.evaluate()["success"][0])

    @property
    def job(self) -> Job:
        """What the expert receives about the task."""
        return self._twin.job

    @property
    def instruction(self) -> str:
        """See `episodes.Episode`."""
        return self._env.get_language_instruction()[0]

    @property
    def image(self) -> np.ndarray:
        """See `episodes.Episode`."""
        if self._image is None:
            self._image = np.ascontiguousarray(
                self._env._get_obs_sensor_data()[CAMERA]["rgb"][0].numpy()
            )
        return self._image

    def step(self, action: np.ndarray) -> bool:
        """See `episodes.Episode`; over only at the limit, as in the official loop."""
        action = np.asarray(action, np.float64)
        rotation = euler_to_axis_angle(action[3:6])
        gripper = 1.0 if action[6] > GRIPPER_OPEN else -1.0
        _, _, _, _, info = self._env.step(np.array([*action[:3], *rotation, gripper], np.float32))
        self._steps = self._steps + 1
        self._image = None
        self.success = bool(info["success"][0])
        return self._steps >= self._twin.limit

    def expert(self) -> np.ndarray:
        """See `episodes.Episode`."""
        return self.expert_chunk(1)[0]

    def expert_chunk(self, horizon: int = 16) -> np.ndarray:
        """The expert's next actions as it foresees them, float32[horizon, 7]."""
        chunk = simpler_expert.chunk(self._twin.job, self.state(), horizon)
        chunk[:, :2] *= -1  # the base looks the other way
        return chunk

    def state(self) -> State:
        """Privileged state in the world's frame."""
        tool = self._arm.ee_pose
        command = self._base * self._arm._target_pose
        thing, target = self.poses()
        fingers = float(self._env.agent.robot.get_qpos()[0, -2:].mean())
        return State(
            tool=_xyz(_array(tool.p)),
            command=_xyz(_array(command.p)),
            yaw=_finger_yaw(_array(tool.q)),
            yaw_command=_finger_yaw(_array(command.q)),
            opening=(fingers - FINGERS[0]) / (FINGERS[1] - FINGERS[0]),
            thing=_xyz(thing),
            thing_yaw=long_yaw(thing[3:]),
            target=_xyz(target),
            done=self.success,
        )

    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Object and target: position [m] and quaternion (w, x, y, z), float64[7] each."""
        return _array(self._source.pose.raw_pose), _array(self._target.pose.raw_pose)

    def robot(self) -> tuple[np.ndarray, np.ndarray]:
        """Joints float64[8] (six of the arm, two of the fingers) and the tool's pose float64[7] in
        the robot's base.
        """
        joints = _array(self._env.agent.robot.get_qpos())
        return joints, _array(self._arm.ee_pose_at_base.raw_pose)

    def put(self, thing: np.ndarray, target: np.ndarray) -> None:
        """Put object and target elsewhere, poses as `poses` gives them; speeds stay, nothing
        settles.
        """
        import torch

        for actor, pose in ((self._source, thing), (self._target, target)):
            actor.set_pose(type(actor.pose).create(torch.from_numpy(pose[None]).float()))
        self._image = None

    def close(self) -> None:
        """Nothing: the environment is the task's."""


def _finger_yaw(q: np.ndarray) -> float:
    """Yaw of the axis along which the fingers open (the tool's -y), 0 where it is the world's y."""
    w, x, y, z = q
    across = 2 * (x * y - w * z)
    along = 1 - 2 * (x * x + z * z)
    return math.atan2(across, -along)


def long_yaw(q: np.ndarray) -> float:
    """Yaw of an object's long axis (its x), which lies about level."""
    w, x, y, z = q
    return math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor[0].numpy().astype(np.float64)


def _xyz(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _make(env: str, view: View) -> Any:  # noqa: ANN401
    """ManiSkill's environment, which does not render on every step."""
    if (problem := missing()) is not None:
        raise ConfigError(f"cannot play {env}: {problem}")
    check_files(twin_files_of(env, Path(import_module("mani_skill").ASSET_DIR)), env, DOWNLOAD)
    logging.getLogger("mani_skill").setLevel(logging.ERROR)
    import gymnasium as gym

    import_module("mani_skill.envs")  # registers the tasks
    robot = import_module(BASE).WidowX250SBridgeDatasetFlatTable
    if not Path(str(robot.urdf_path)).with_suffix(".srdf").exists():
        # The hulls of fingers and gripper bar overlap, and without the list of pairs to ignore the
        # fingers are stuck.
        robot.disable_self_collisions = True
    width, height = view.size
    camera = {"width": width, "height": height, "intrinsic": view.intrinsic}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = gym.make(
            env,
            obs_mode="rgb+segmentation",
            num_envs=1,
            sim_backend="cpu",
            render_backend="cpu",
            sensor_configs={CAMERA: camera},
        ).unwrapped
    made._obs_mode = "none"  # pyright: ignore[reportAttributeAccessIssue]
    made._rgb_overlay_images = dict(made._rgb_overlay_images)  # pyright: ignore # else all environments share one
    if (view.width, view.height) != (WIDTH, HEIGHT):
        made._rgb_overlay_images[CAMERA] = _background(made, view)  # pyright: ignore
    return made


def _background(made: Any, view: View) -> Tensor:  # noqa: ANN401
    """The window of a scene's background, whose whole ManiSkill squeezes into any picture."""
    import cv2
    import torch

    picture = np.asarray(cv2.imread(made.rgb_overlay_paths[CAMERA]))[..., ::-1]
    return torch.from_numpy(view.of(cv2.resize(picture, (WIDTH, HEIGHT))).copy())


def make(words: str) -> SimplerTask:
    """The task `simpler:<name>` with the official picture.

    `<name>:maniskill` numbers ManiSkill's own states; `<name>:window` and `<name>:maniskill:window`
    show the window of the workspace, at the official picture's resolution.
    """
    name, *rest = words.split(":")
    if name not in TWINS:
        raise ConfigError(f"expected a task out of {sorted(TWINS)}, got {name!r} for 'simpler'")
    if rest not in ([], [OWN], [CLOSE], [OWN, CLOSE]):
        raise ConfigError(
            f"expected nothing, {OWN!r}, {CLOSE!r} or '{OWN}:{CLOSE}' after 'simpler:{name}:', got"
            f" {':'.join(rest)!r}"
        )
    return SimplerTask(name, view=WORKSPACE if CLOSE in rest else OFFICIAL, own=OWN in rest)
