"""Environments of the user's own: what is taken from gymnasium's, and what each lack says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.own_envs import SIDE, Reach
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import Reference
from trimvla.sim.own.make import make_own, make_registered
from trimvla.sim.own.options import EnvOptions
from trimvla.sim.own.task import GymnasiumTask


def task_of(env: gym.Env, **options: Any) -> GymnasiumTask:
    return GymnasiumTask("own:make", env, EnvOptions(**options))


def test_an_environment_is_a_task() -> None:
    task = task_of(Reach())
    assert (task.dim, task.kinds) == (3, ("delta", "delta", "gripper"))
    assert (task.control_hz, task.limit, task.official) == (5.0, 1000, 0)
    task.check([1000], official=False)
    episode = task.episode(1000, official=False)
    assert episode.image.shape == (SIDE, SIDE, 3)
    assert episode.instruction == "pick up the red cube"
    steps = 0
    while not episode.step(episode.expert()):
        steps += 1
    assert episode.success
    assert 0 < steps < 60
    assert np.array_equal(
        task.episode(7, official=False).image, task.episode(7, official=False).image
    )
    with pytest.raises(ConfigError, match="no official episodes"):
        task.episode(0, official=True)


def test_wrappers_and_registration_change_nothing() -> None:
    gym.register("tests/Reach-v0", entry_point="tests.own_envs:Reach", max_episode_steps=40)
    try:
        task = make_registered("tests/Reach-v0", EnvOptions())
        assert (task.name, task.dim, task.limit) == ("gymnasium:tests/Reach-v0", 3, 40)
        episode = task.episode(3, official=False)
        assert episode.instruction == "pick up the red cube"
        assert episode.expert().shape == (3,)
        assert make_registered("tests/Reach-v0", EnvOptions(max_steps=5)).limit == 5
    finally:
        del gym.registry["tests/Reach-v0"]


def test_our_own_tabletop_is_one_too() -> None:
    task = make_registered("trimvla/Tabletop-v0", EnvOptions())
    episode = task.episode(1000, official=False)
    assert (task.dim, task.control_hz) == (7, 5.0)
    assert episode.instruction
    assert not episode.success
    task.close()


def test_an_environment_without_images_is_rendered() -> None:
    gym.register("tests/Blind-v0", entry_point="tests.test_own_environment:Blind")
    try:
        for options in (EnvOptions(), EnvOptions(camera="render")):
            episode = make_registered("tests/Blind-v0", options).episode(0, official=False)
            assert episode.image.shape == (SIDE, SIDE, 3)
    finally:
        del gym.registry["tests/Blind-v0"]


def test_gymnasiums_own_environments_say_what_they_lack() -> None:
    with pytest.raises(
        ConfigError, match=r"gymnasium:CartPole-v1: expected an action space Box .* Discrete"
    ):
        make_registered("CartPole-v1", EnvOptions())
    with pytest.raises(
        ConfigError, match=r"--env gymnasium:NoSuch-v0: making it failed: NameNotFound"
    ):
        make_registered("NoSuch-v0", EnvOptions())
    with pytest.raises(
        ConfigError, match=r"--env gymnasium:no_module:X-v0: expected a module 'no_module'"
    ):
        make_registered("no_module:X-v0", EnvOptions())


class Blind(Reach):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.observation_space = gym.spaces.Box(0, 1, (4,), np.float32)

    def observe(self) -> Any:
        return np.zeros(4, np.float32)


class Fails(Reach):
    def step(self, action: np.ndarray) -> Any:
        raise RuntimeError("no physics")


class TwoCameras(Reach):
    def observe(self) -> Any:
        return {"pixels": {"top": self.render(), "wrist": self.render()}, "state": np.zeros(2)}


class Float(Reach):
    def observe(self) -> Any:
        return {"front": self.render() / 255}


class Silent(Reach):
    def tell(self) -> dict[str, Any]:
        return {}


def mute() -> gym.Env:
    env = Reach()
    env.instruction = None  # pyright: ignore[reportAttributeAccessIssue]
    return env


class Vague(Reach):
    def tell(self) -> dict[str, Any]:
        return {"success": "maybe"}


class OldReset(Reach):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldStep(Reach):
    def step(self, action: np.ndarray) -> Any:
        return super().step(action)[:4]


def with_attribute(name: str, value: object) -> Callable[[], gym.Env]:
    def make() -> gym.Env:
        env = Reach()
        setattr(env, name, value)
        return env

    return make


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (TwoCameras, {}, "expected --camera as one of pixels.top, pixels.wrist"),
        (
            TwoCameras,
            {"camera": "front"},
            "observation (pixels.top, pixels.wrist, state), got 'front'",
        ),
        (
            TwoCameras,
            {"camera": "state"},
            "expected uint8[h, w, 3] from the observation's 'state', got float64[2]",
        ),
        (Float, {}, "or render_mode='rgb_array', got {front: float64[32, 32, 3]}"),
        (
            Reach,
            {"camera": "render"},
            "expected render_mode='rgb_array' for --camera render, got None",
        ),
        (mute, {}, "expected words for --instruction, or 'instruction' of the observation"),
        (Silent, {}, "expected 'success' or 'is_success' in info, or --success-reward R"),
        (Vague, {}, "expected true or false for info['success'], got 'maybe'"),
        (OldReset, {}, "expected (observation, info) from reset(), got {front: uint8[32, 32, 3]}"),
        (OldStep, {}, "terminated, truncated, info) from step(), got 4 values"),
        (
            with_attribute("action_space", gym.spaces.Box(0, 1, (3,), np.int64)),
            {},
            "Box of floats in one dimension",
        ),
        (
            with_attribute("action_space", gym.spaces.Box(0, 1, (2, 3))),
            {},
            "Box of floats in one dimension",
        ),
        (
            with_attribute("action_kinds", ("delta",)),
            {},
            "expected 'action_kinds' with 3 of delta, absolute",
        ),
        (
            with_attribute("action_kinds", ("delta", "delta", "grip")),
            {},
            "expected 'action_kinds' with 3 of",
        ),
        (
            with_attribute("control_hz", "fast"),
            {},
            "expected 'control_hz' above 0 of the environment, got 'fast'",
        ),
        (with_attribute("control_hz", None), {}, "nothing says its steps per second"),
        (Fails, {}, "trying one step failed: RuntimeError: no physics"),
        (
            with_attribute("start_action", [0.0, 0.0]),
            {},
            "expected 'start_action' with 3 finite numbers",
        ),
    ],
)
def test_what_is_missing_is_one_error(
    make: Callable[[], gym.Env], options: dict, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(make(), **options).check([0], official=False)
    text = str(caught.value)
    assert text.startswith("own:make: ")
    assert words in text
    assert len(text.splitlines()) == 1


def test_all_that_is_missing_is_said_at_once() -> None:
    class Bare(TwoCameras):
        instruction = None

        def tell(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ConfigError) as caught:
        task_of(Bare()).check([0], official=False)
    for words in ("--camera as one of", "words for --instruction", "--success-reward R"):
        assert words in str(caught.value)
    assert str(caught.value).count("own:make: ") == 1


def test_what_is_missing_can_be_said() -> None:
    task = task_of(TwoCameras(), camera="pixels.wrist")
    task.check([0], official=False)
    assert task_of(mute(), instruction="go").episode(0, official=False).instruction == "go"
    assert task_of(with_attribute("control_hz", None)(), control_hz=3.0).control_hz == 3.0
    task = task_of(Silent(), success_reward=1.0)
    episode = task.episode(0, official=False)
    while not episode.step(episode.expert()):
        assert not episode.success
    assert episode.success, "terminated with a reward of 1"


@pytest.mark.parametrize(
    "options", [{"instruction": " "}, {"max_steps": 0}, {"success_reward": float("nan")}]
)
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        EnvOptions(**options)


def test_what_a_function_may_return() -> None:
    made = make_own(Reference("tests.own_envs", "make"), EnvOptions())
    assert (made.name, made.dim) == ("tests.own_envs:make", 3)
    wide = make_own(Reference("tests.own_envs", "make_wide", "7"), EnvOptions())
    assert (wide.name, wide.dim) == ("tests.own_envs:make_wide:7", 7)
    task = make_own(Reference("tests.own_envs", "Reach"), EnvOptions())
    assert task.dim == 3


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (
            Reference("tests.own_envs", "STEP"),
            "--env tests.own_envs:STEP: expected a function (), got float",
        ),
        (
            Reference("tests.own_envs", "make", "x"),
            "expected a function (words), got 'tests.own_envs:make' with ()",
        ),
        (
            Reference("tests.own_envs", "make_wide"),
            "expected a function (), got 'tests.own_envs:make_wide'",
        ),
        (
            Reference("tests.own_envs", "make_wide", "x"),
            "making it failed: ValueError: invalid literal",
        ),
        (
            Reference("builtins", "dict"),
            "expected a gymnasium.Env, or a task, got {} without name, control_hz",
        ),
    ],
)
def test_what_it_may_not_be(reference: Reference, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_own(reference, EnvOptions())
    assert words in str(caught.value)
