"""The embedded simulator: gymnasium's contract, determinism, judging, the expert and its kinematic
labels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Dict
from gymnasium.utils.env_checker import check_env

from trimvla.sim import TABLETOP, register
from trimvla.sim.tabletop import expert
from trimvla.sim.tabletop.env import MAX_STEPS, STATE, TabletopEnv
from trimvla.sim.tabletop.model import CAMERAS, ROBOT_JOINTS, TabletopRenderer, project
from trimvla.sim.tabletop.scene import VARIANTS, Goal, Scene, all_instructions, sample_scene
from trimvla.sim.tabletop.task import TabletopTask


@pytest.fixture
def env():
    env = TabletopEnv()
    yield env
    env.close()


@pytest.fixture(scope="module")
def blind():
    """The same physics without images."""
    return TabletopEnv(observe=False)


def expert_action(env: TabletopEnv, goal: Goal | None = None) -> np.ndarray:
    dx, dy, dz, dyaw, gripper = expert.act(env.scene(), env.state(), goal or env.scene().goal)
    return np.array([dx, dy, dz, 0, 0, dyaw, gripper], np.float32)


def play(env: TabletopEnv, seed: int, verb: str | None = None) -> tuple[bool, int]:
    env.reset(seed=seed, options={"verb": verb} if verb else None)
    for step in range(MAX_STEPS):
        _, reward, done, cut, info = env.step(expert_action(env))
        assert reward == float(done) == float(info["success"])
        if done or cut:
            return done, step + 1
    return False, MAX_STEPS


def test_gymnasium_accepts_the_environment() -> None:
    register()
    register()
    env = gymnasium.make(TABLETOP)
    check_env(env.unwrapped, skip_render_check=False)
    env.close()


def test_the_same_seed_gives_the_same_episode_bit_for_bit() -> None:
    def record() -> list[np.ndarray]:
        env = TabletopEnv()
        frames = [env.reset(seed=7)[0]["image"]]
        for _ in range(6):
            frames.append(env.step(expert_action(env))[0]["image"])
        state = env.qpos()
        env.close()
        return [*frames, state]

    for first, second in zip(record(), record(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_different_seeds_give_different_tables(env: TabletopEnv) -> None:
    first, _ = env.reset(seed=1)
    second, _ = env.reset(seed=2)
    assert (first["image"] != second["image"]).any()


@pytest.mark.parametrize("verb", ["pick", "put", "stack"])
def test_the_expert_succeeds(blind: TabletopEnv, verb: str) -> None:
    results = [play(blind, seed, verb) for seed in range(40)]
    assert sum(done for done, _ in results) >= 38, f"{verb}: {results}"


def test_distractors_are_always_there() -> None:
    for seed in range(50):
        scene = sample_scene(np.random.default_rng(seed))
        assert len(scene.objects) >= 3
        assert len(scene.targets) >= 2
        assert len({item.name for item in scene.objects}) == len(scene.objects), (
            "every object can be named"
        )
        assert scene.instruction() in all_instructions()


def test_the_swapped_instruction_names_another_object(blind: TabletopEnv) -> None:
    for seed in range(30):
        blind.reset(seed=seed)
        scene = blind.scene()
        swapped = blind.swapped_instruction()
        assert swapped != blind.instruction
        assert swapped == blind.swapped_instruction()
        goal = next(goal for goal in scene.goals() if scene.instruction(goal) == swapped)
        assert goal.object != scene.goal.object


def test_following_the_swapped_instruction_is_no_success(blind: TabletopEnv) -> None:
    for seed in range(10):
        blind.reset(seed=seed, options={"verb": "pick"})
        scene = blind.scene()
        swapped = blind.swapped_instruction()
        goal = next(goal for goal in scene.goals() if scene.instruction(goal) == swapped)
        for _ in range(15):
            assert not blind.step(expert_action(blind, goal))[4]["success"]
        assert blind.succeeded(goal)


def test_success_needs_the_gripper_to_let_go(blind: TabletopEnv) -> None:
    blind.reset(seed=3, options={"verb": "put"})
    scene = blind.scene()
    state = blind.state()
    x, y, top = expert.support(scene, state, scene.goal)
    half = 0.023 if scene.objects[scene.goal.object].kind == "cube" else 0.028
    objects = list(state.objects)
    objects[scene.goal.object] = (x, y, top + half)
    placed = replace(state, objects=tuple(objects))
    assert expert.is_done(scene, placed, scene.goal)
    assert not expert.is_done(scene, replace(placed, held=scene.goal.object), scene.goal)
    objects[scene.goal.object] = (x + 0.08, y, top + half)
    assert not expert.is_done(scene, replace(state, objects=tuple(objects)), scene.goal)


def test_the_kinematic_model_predicts_the_physics(blind: TabletopEnv) -> None:
    errors = []
    for seed in range(10):
        blind.reset(seed=seed)
        for _ in range(12):
            state = blind.state()
            action = expert.act(blind.scene(), state, blind.scene().goal)
            predicted = expert.step(blind.scene(), state, action)
            _, _, done, _, _ = blind.step(np.array([*action[:3], 0, 0, *action[3:]], np.float32))
            after = blind.state()
            assert after.held == predicted.held
            errors.append(np.abs(np.subtract(after.objects, predicted.objects)).max())
            if done:
                break
    assert max(errors) < 0.012, "labels are within about a centimetre of what physics does"


def test_a_label_chunk_repeats_the_expert(blind: TabletopEnv) -> None:
    blind.reset(seed=5)
    chunk = expert.chunk(blind.scene(), blind.state(), blind.scene().goal)
    assert chunk.shape == (16, 7)
    assert chunk.dtype == np.float32
    np.testing.assert_allclose(chunk[0], expert_action(blind), atol=1e-7)
    assert {0.0, 1.0} == set(np.unique(chunk[:, 6])), "it closes within the chunk"


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_variants_change_the_picture(variant: str) -> None:
    scene = sample_scene(np.random.default_rng(0), variant)
    renderer = TabletopRenderer(scene)
    plain = TabletopRenderer(sample_scene(np.random.default_rng(0)))
    state = renderer.data.qpos.copy()
    assert (renderer.render(state) != plain.render(plain.data.qpos.copy())).mean() > 0.02
    renderer.close()
    plain.close()


def test_unknown_options_are_named(env: TabletopEnv) -> None:
    with pytest.raises(ValueError, match="'variant'"):
        env.reset(seed=0, options={"variant": "dark"})
    with pytest.raises(ValueError, match="'verb'"):
        env.reset(seed=0, options={"verb": "throw"})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'action'"):
        env.step(np.full(7, np.nan, np.float32))


def test_a_scene_survives_json_and_renders_the_same(env: TabletopEnv) -> None:
    picture = env.reset(seed=11, options={"variant": "all"})[0]["image"]
    scene = json.loads(json.dumps(env.scene().to_dict()))
    assert Scene.from_dict(scene) == env.scene()
    renderer = TabletopRenderer(scene)
    np.testing.assert_array_equal(renderer.render(env.qpos()), picture)
    renderer.close()


@pytest.mark.parametrize(("axis", "joint", "limit"), [(0, 5, 0.5), (1, 4, 0.5), (2, 3, 1.5)])
def test_rotations_reach_the_wrist_and_are_limited(
    blind: TabletopEnv, axis: int, joint: int, limit: float
) -> None:
    blind.reset(seed=0)
    action = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    action[3 + axis] = 0.2
    blind.step(action)
    assert blind.qpos()[joint] == pytest.approx(0.2, abs=0.02)
    for _ in range(10):
        blind.step(action)
    assert blind.qpos()[joint] == pytest.approx(limit, abs=0.05)


def test_points_project_onto_the_picture(env: TabletopEnv) -> None:
    """The brightest change between an empty place and a coloured thing lies where `project`
    says.
    """
    env.reset(seed=4)
    scene = env.scene()
    picture = env.reset(seed=4)[0]["image"].astype(int)
    for target in scene.targets:
        x, y = project(np.array([[target.x, target.y, 0.005]]), scene.look)[0] * 128
        pixel = picture[int(y), int(x)]
        assert pixel.max() - pixel.min() > 60, f"{target.name} at {x:.0f}, {y:.0f} is grey: {pixel}"


def in_a_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Python without the renderer that this test process has chosen."""
    chosen = ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM")
    bare = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=bare | environ, capture_output=True, text=True, timeout=120, check=False
    )


def test_plain_python_needs_no_renderer_chosen() -> None:
    code = (
        "from trimvla.sim.tabletop.env import TabletopEnv;"
        " print(TabletopEnv().reset(seed=1)[0]['image'].mean())"
    )
    done = in_a_process(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0


@pytest.mark.parametrize(
    ("first", "environ"),
    [("import mujoco", {}), ("", {"MUJOCO_GL": "glfw"})],
    ids=["mujoco first", "a window"],
)
def test_a_window_without_a_display_is_one_error(first: str, environ: dict[str, str]) -> None:
    draw = "from trimvla.sim.tabletop.env import TabletopEnv\nTabletopEnv().reset(seed=1)"
    done = in_a_process(f"{first}\n{draw}", **environ)
    assert done.returncode == 1, "an abort ends with a signal"
    assert "ConfigError: expected a display, or MUJOCO_GL=egl" in done.stderr


VECTOR = """
import gymnasium as gym
from trimvla.sim.tabletop.env import TabletopEnv
def main(context):
    first = TabletopEnv()
    first.reset(seed=1)  # an image in the parent
    envs = gym.vector.AsyncVectorEnv([TabletopEnv] * 2, context=context)
    print(envs.reset(seed=3)[0]["image"].shape)
    envs.close()
"""


def test_a_vector_environment_that_was_forked_after_a_picture_is_refused() -> None:
    done = in_a_process(VECTOR + "main('fork')")
    assert done.returncode == 1
    assert (
        "ConfigError: expected a process that was not forked after an image was drawn"
        in done.stderr
    )


def test_a_spawned_vector_environment_draws(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(VECTOR + "if __name__ == '__main__':\n    main('spawn')\n")
    done = in_a_process(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert done.stdout.strip() == "(2, 128, 128, 3)", done.stderr[-2000:]


def test_the_wrist_camera_and_the_robots_state_are_seen_where_they_are_asked_for() -> None:
    env = TabletopEnv(wrist=True)
    first, _ = env.reset(seed=3)
    assert isinstance(env.observation_space, Dict)
    assert first.keys() == {"image", "wrist", "state"} == env.observation_space.spaces.keys()
    joints = env.qpos()[: len(ROBOT_JOINTS)]
    assert first["state"].shape == (len(STATE),)
    assert np.allclose(first["state"][:4], joints[:4], atol=1e-6)
    assert first["state"][4] == pytest.approx(1.0, abs=1e-3), "the gripper is open"
    plain = TabletopEnv()
    assert np.array_equal(first["image"], plain.reset(seed=3)[0]["image"])
    low = np.array([0, 0, -0.05, 0, 0, 0, 0], np.float32)
    after = first
    for _ in range(3):
        after, *_ = env.step(low)
    assert after["state"][2] < first["state"][2] - 0.05
    moved = np.abs(after["wrist"].astype(int) - first["wrist"]).mean()
    assert moved > np.abs(after["image"].astype(int) - first["image"]).mean(), (
        "it moves with the gripper"
    )
    env.close()
    plain.close()


def test_an_episode_shows_every_camera_and_where_the_robot_is() -> None:
    task = TabletopTask()
    episode = task.episode(3, official=False)
    assert set(episode.images) == set(CAMERAS)
    assert np.array_equal(episode.images["front"], episode.image)
    before = episode.state
    episode.step(np.array([0.03, 0, 0, 0, 0, 0, 0], np.float32))
    moved = dict(zip(STATE, episode.state - before, strict=True))
    assert moved["x"] == pytest.approx(0.03, abs=1e-6)
    assert moved["gripper"] < -0.1, "it closes"
    task.close()
