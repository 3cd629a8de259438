"""The original SimplerEnv package behind our episodes: its grids, its protocol, its actions, and its traps.

`test_the_contract` runs unchanged against the real package where that is installed; elsewhere the fake stands in.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

import numpy as np
import pytest

from tests import fake_simpler_env
from tests.fake_simpler_env import Inner
from trimvla.runtime.errors import ConfigError
from trimvla.sim.episodes import Task, make_task
from trimvla.sim.evaluation.virtual_time import Pace, Pilot
from trimvla.sim.simpler.grids import ORIGINALS, SETS, official

INSTALLED = importlib.util.find_spec("simpler_env") is not None
OFFICIAL = {  # SIMPLER's own counts: visual matching, variant aggregation
    "google_robot_pick_coke_can": (300, 675),
    "google_robot_move_near": (240, 480),
    "google_robot_open_drawer": (108, 189),
    "google_robot_close_drawer": (108, 189),
    "google_robot_place_apple_in_closed_top_drawer": (108, 189),
    "google_robot_pick_object": (0, 0),
}
HOLD, RIGHT = np.array([0.0] * 6 + [1.0]), np.array([1.0] + [0.0] * 6)
APPLE, STACK = "simpler_env:google_robot_place_apple_in_closed_top_drawer", "simpler_env:widowx_stack_cube"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Inner]:
    fake_simpler_env.install(monkeypatch)
    return Inner


@pytest.fixture(params=["fake", pytest.param("installed", marks=pytest.mark.skipif(
    not INSTALLED, reason="the original simpler_env is not installed: it is on no registry"))])  # fmt: skip
def stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    if request.param == "fake":
        fake_simpler_env.install(monkeypatch)
    task = make_task(STACK)
    yield task
    task.close()


def test_the_contract(stack: Task) -> None:
    """What every task of the original package must keep, whatever is behind it."""
    assert (stack.control_hz, stack.limit, stack.official) == (5.0, 60, 24)
    pictures = []
    for _ in range(2):
        episode = stack.episode(3, official=True)
        assert episode.image.dtype == np.uint8
        assert episode.image.ndim == 3
        assert episode.instruction
        first, over, steps = episode.image.copy(), False, 0
        while not over:
            over = episode.step(HOLD + 0.01 * RIGHT)
            steps += 1
        assert steps == stack.limit
        assert not episode.success
        pictures.append(first)
        episode.close()
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("task", ORIGINALS)
def test_official_episodes_are_as_many_as_simplers_and_all_differ(task: str) -> None:
    counts = tuple(len(official(task, which)) for which in SETS)
    assert counts == OFFICIAL.get(task, (24, 0))
    for which in SETS:
        cells = [repr(cell) for cell in official(task, which)]
        assert len(set(cells)) == len(cells)


def test_a_cell_is_built_and_reset_as_the_evaluator_does(fake: type[Inner]) -> None:
    task = make_task("simpler_env:google_robot_open_drawer")
    task.episode(35, official=True)  # 27 a colour, 9 a drawer: the second colour, the top drawer, place c2
    (env,) = fake.made
    assert env.env_id == "OpenTopDrawerCustomInScene-v0"
    assert env.options["urdf_version"] == "recolor_tabletop_visual_matching_1"
    assert env.options["shader_dir"] == "rt"
    assert env.options["rgb_overlay_path"] == "/assets/real_inpainting/open_drawer_c2.png"
    assert env.options["rgb_overlay_cameras"] == ["overhead_camera"]
    assert (env.options["control_freq"], env.options["sim_freq"]) == (3, 513)
    assert (env.options["max_episode_steps"], env.options["scene_name"]) == (113, "dummy_drawer")
    (reset,) = env.resets
    assert reset["reconfigure"]
    robot = reset["robot_init_options"]
    assert robot["init_xy"].tolist() == [0.865, 0.222]
    # half a turn about z, then the yaw of -0.025: quaternions multiply
    assert robot["init_rot_quat"] == pytest.approx([math.sin(0.0125), 0, 0, math.cos(0.0125)])
    assert reset["obj_init_options"]["init_xy"].tolist() == [0.0, 0.0]


def test_variants_have_no_photograph_and_other_seeds_are_prepackaged(fake: type[Inner]) -> None:
    make_task("simpler_env:google_robot_pick_coke_can:variants").episode(674, official=True)
    make_task(STACK).episode(77, official=False)
    last, prepackaged = fake.made
    assert last.options["rgb_overlay_path"] is None
    assert last.options["slightly_brighter_lighting"]
    assert last.options["laid_vertically"]
    assert prepackaged.options == {"prepackaged_config": True}
    assert prepackaged.resets == [{"reconfigure": True, "seed": 77}]


def test_the_score_is_of_the_last_step_and_success_ends_nothing(fake: type[Inner]) -> None:
    episode = make_task(STACK).episode(0, official=True)
    close = HOLD * 0
    assert [episode.step(action) for action in (HOLD, close, HOLD)] == [False] * 3
    assert not episode.success
    episode.step(close)
    assert episode.success
    episode.close()
    assert fake.made[0].closed == 1


def test_an_episode_of_its_own_begins_anew_whatever_was_played(fake: type[Inner]) -> None:
    task = make_task(STACK)
    for _ in range(2):
        episode = task.episode(5, official=True)
        assert not episode.image.any(), "a drive target has survived"
        episode.step(HOLD + 0.4 * RIGHT)
        assert episode.image.any()


def test_sub_tasks_advance_by_time_or_when_the_policy_says_so(fake: type[Inner]) -> None:
    task = make_task(APPLE)
    episode = task.episode(0, official=True)
    for _ in range(100):
        assert episode.instruction == "open top drawer"
        episode.step(HOLD)
    assert episode.instruction == "place apple into top drawer"
    episode = task.episode(0, official=True)
    assert not episode.step(np.append(HOLD, 1.0)), "there is another sub-task"
    assert episode.instruction == "place apple into top drawer"
    assert episode.step(np.append(HOLD, 1.0)), "that was the last one"


@pytest.mark.parametrize(("task", "robot"), [(APPLE, "google_robot"), (STACK, "widowx_bridge")])
@pytest.mark.parametrize("variant", ["ensemble_binary", "ensemble_continuous", "ensemble_binary_reset19"])
def test_actions_are_those_of_the_public_adapter(fake, fixture_dir, task: str, robot: str, variant: str) -> None:
    """Chunks through the evaluation's own path, one a step: what reaches the environment is what CogACT's sends."""
    arrays = np.load(fixture_dir / "reference.npz")
    chunks = arrays[f"simpler/chunks_{variant.split('_')[1]}_gripper"]
    made = make_task(task)
    episode = made.episode(0, official=True)
    pace = Pace(execute=1, votes=made.votes)  # pyright: ignore[reportAttributeAccessIssue]
    pilot = Pilot(lambda tick, known: chunks[tick], made.control_hz, pace)
    for tick in range(len(chunks)):
        if variant.endswith("reset19") and tick == 18:
            fake.made[0].sentence = "another task"  # read after this step
        episode.step(pilot.act(tick, episode.instruction))
    sent = np.stack(fake.made[0].commands)
    for name, columns in (("world_vector", slice(0, 3)), ("rot_axangle", slice(3, 6)), ("gripper", slice(6, 7))):
        expected = arrays[f"simpler/{robot}/{variant}/{name}"].reshape(len(chunks), -1)
        np.testing.assert_allclose(sent[:, columns], expected, atol=1e-9, err_msg=name)


def test_what_is_missing_or_unknown_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INSTALLED:
        with pytest.raises(ConfigError, match="expected the original SimplerEnv package"):
            make_task(STACK)
    fake_simpler_env.install(monkeypatch)
    with pytest.raises(ConfigError, match=r"expected one of .* for 'simpler_env:', got 'widowx_dance'"):
        make_task("simpler_env:widowx_dance")
    with pytest.raises(ConfigError, match="after 'simpler_env:widowx_stack_cube:', got 'aggregation'"):
        make_task("simpler_env:widowx_stack_cube:aggregation")
    with pytest.raises(ConfigError, match="below 24"):
        make_task(STACK).episode(24, official=True)
