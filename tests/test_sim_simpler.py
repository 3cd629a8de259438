"""SimplerEnv's WidowX tasks: initial states, protocol, expert and demonstrations; what needs
ManiSkill is marked.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trimvla.policies.training.dataset import read_shard
from trimvla.policies.training.pictures import Foregrounds, pictures_of
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.sim.episodes import make_task
from trimvla.sim.simpler import demonstrations as simpler_demonstrations
from trimvla.sim.simpler import env as simpler
from trimvla.sim.simpler import expert as simpler_expert
from trimvla.sim.simpler.env import SimplerTask
from trimvla.sim.simpler.expert import State
from trimvla.sim.simpler.files import check_files, twin_files_of, with_meshes
from trimvla.sim.simpler.grids import releases
from trimvla.sim.simpler.scatter import Scatter
from trimvla.sim.simpler.shard import Shard
from trimvla.sim.simpler.twins import NEAR, TWINS, draw
from trimvla.sim.simpler.view import WORKSPACE, View, whole
from trimvla.sim.tabletop.demonstrations import AUX

INSTRUCTIONS = dict(zip(TWINS, simpler_demonstrations.INSTRUCTIONS, strict=True))
START = State(
    tool=(-0.145, 0.034, 1.005),
    command=(-0.145, 0.034, 1.005),
    yaw=0.0,
    yaw_command=0.0,
    opening=1.0,
    thing=(-0.21, 0.05, 0.8875),
    thing_yaw=0.3,
    target=(-0.1, -0.05, 0.885),
    done=False,
)
HALF = math.sqrt(0.5)
TURNED = {  # an object's quaternions (w, x, y, z), as SimplerEnv's scripts list them
    "widowx_carrot_on_plate": [(0, 0, 0, 1), (HALF, 0, 0, -HALF)],
    "widowx_spoon_on_towel": [(1, 0, 0, 0), (HALF, 0, 0, HALF)],
    "widowx_stack_cube": [(1, 0, 0, 0)],
    "widowx_put_eggplant_in_basket": [
        (1, 0, 0, 0),
        (0.9238795325, 0, 0, 0.3826834324),
        (0.9238795325, 0, 0, -0.3826834324),
    ],
}
CORNERS = [(-0.235, -0.075), (-0.235, 0.075), (-0.085, -0.075), (-0.085, 0.075)]  # carrot and spoon
# cubes, first and last twelve
INNER = [(-0.21, -0.05), (-0.21, 0.05), (-0.11, -0.05), (-0.11, 0.05)]
OUTER = [(-0.26, -0.1), (-0.26, 0.1), (-0.06, -0.1), (-0.06, 0.1)]
IN_SINK = [(x, y) for x in (-0.115, -0.095) for y in (0.191, 0.201, 0.211, 0.221)]
STRAY_MM = {"widowx_carrot_on_plate": 3, "widowx_spoon_on_towel": 2, "widowx_stack_cube": 1}
OUTCOME = """
import json, sys
from trimvla.sim.simpler.env import SimplerTask
from trimvla.sim.simpler.view import whole
from tests.test_sim_simpler import play
print(json.dumps(play(SimplerTask("widowx_stack_cube", view=whole(64)), 3)))
"""


@pytest.fixture(scope="module")
def assets(shared_dir: Path) -> Iterator[None]:
    """ManiSkill with its assets; skips with the reason where something is missing."""
    os.environ.setdefault("MS_ASSET_DIR", str(shared_dir / "simpler_assets"))
    if (problem := simpler.missing()) is not None:
        pytest.skip(problem)
    yield


@pytest.fixture(scope="module")
def stacking(assets: None) -> Iterator[SimplerTask]:
    """One environment for several tests; what they play must not depend on each other."""
    task = SimplerTask("widowx_stack_cube", view=whole(320))
    yield task
    task.close()


def play(task: SimplerTask, index: int, steps: int = 30) -> list[float]:
    """Where the object is after some steps of the expert, to the last bit."""
    episode = task.episode(index, official=True)
    for _ in range(steps):
        episode.step(episode.expert())
    return [float(episode.success), *episode.state().thing]


@pytest.mark.parametrize("name", TWINS)
def test_the_expert_does_the_job_in_its_own_model(name: str) -> None:
    job = TWINS[name].job
    state = START
    state = State(**{**vars(state), "thing": (*state.thing[:2], max(job.low, state.thing[2]))})
    for _ in range(TWINS[name].limit):
        state = simpler_expert.step(job, state, simpler_expert.act(job, state))
    assert state.done
    assert math.dist(state.thing[:2], state.target[:2]) < 3 * job.radius
    assert state.tool[2] > state.thing[2] + 0.05  # it let go and rose


def test_the_expert_looks_at_the_tool_and_not_at_its_command() -> None:
    elsewhere = State(**{**vars(START), "command": (0.0, 0.0, 1.2), "yaw_command": 1.0})
    job = TWINS["widowx_stack_cube"].job
    assert simpler_expert.act(job, elsewhere) == simpler_expert.act(job, START)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("turned", [0.0, 0.3, 1.2, -0.7, 2.0])
def test_the_expert_turns_about_the_shorter_way_whatever_a_yaw_is_called(
    name: str, turned: float
) -> None:
    job = TWINS[name].job
    turns = {
        round(
            simpler_expert.turn_across(
                job,
                State(
                    **{
                        **vars(START),
                        "thing_yaw": turned + i * job.yaw_period,
                        "yaw": 0.2 + k * job.yaw_period,
                    }
                ),
            ),
            6,
        )
        for i in (-1, 0, 1)
        for k in (-1, 0, 2)
    }
    assert len(turns) == 1
    turn = turns.pop()
    assert abs(turn) <= (0.5 + simpler_expert.LEAN) * job.yaw_period
    assert math.remainder(0.2 + turn - turned, job.yaw_period) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["widowx_carrot_on_plate", "widowx_spoon_on_towel"])
def test_a_quarter_turn_is_made_to_one_side(name: str) -> None:
    job = TWINS[name].job
    turns = [
        simpler_expert.turn_across(job, State(**{**vars(START), "thing_yaw": yaw, "yaw": 0.0}))
        for yaw in np.linspace(-0.3, 0.3, 13) + math.pi / 2
    ]
    assert np.ptp(turns) == pytest.approx(0.6)


def test_a_state_is_its_numbers() -> None:
    for state in (START, State(**{**vars(START), "done": True})):
        assert State.of(state.numbers()) == state


def test_drawn_states_are_fixed_by_the_seed_and_none_is_official() -> None:
    xyz = np.array([[[x, 0.05, 0.88], [-x, -0.05, 0.87]] for x in (-0.1, 0.1)])
    quat = np.array([[[1.0, 0, 0, 0], [1, 0, 0, 0]]])
    twin = TWINS["widowx_stack_cube"]
    for seed in range(50):
        place, turned = draw(twin, xyz, quat, np.random.default_rng(seed))
        again, _ = draw(twin, xyz, quat, np.random.default_rng(seed))
        assert np.array_equal(place, again)
        assert np.abs(place - xyz).max(axis=(1, 2)).min() > NEAR
        assert math.dist(place[0, :2], place[1, :2]) > twin.apart
        assert np.linalg.norm(turned, axis=1) == pytest.approx([1, 1])
        assert place[0, 2] == 0.88


def places(name: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Object and target of SimplerEnv's official episodes, one pair after the other."""
    if name == "widowx_put_eggplant_in_basket":
        return [(at, (-0.125, 0.025)) for at in IN_SINK]
    squares = [INNER, OUTER] if name == "widowx_stack_cube" else [CORNERS]
    return [
        (one, other) for square in squares for one in square for other in square if one != other
    ]


@pytest.mark.parametrize("name", TWINS)
def test_official_states_are_those_of_simplerenv(name: str) -> None:
    """Episode i is pair i // m of the places and turn i mod m; everything falls from 1.37 m."""
    pairs = places(name)
    turns = TURNED[name]
    states = releases(name)
    assert len(states) == len(pairs) * len(turns) == 24
    for number, state in enumerate(states):
        pair = pairs[number // len(turns)]
        turn = turns[number % len(turns)]
        np.testing.assert_allclose(state.positions, [(*at, 1.37) for at in pair], atol=1e-9)
        np.testing.assert_allclose(state.quaternions, [turn, (1, 0, 0, 0)], atol=1e-9)


@pytest.mark.parametrize("name", TWINS)
def test_every_file_of_a_task_is_looked_for(name: str, shared_dir: Path, tmp_path: Path) -> None:
    """Scene, meshes, photograph and robot; all are there in the shared assets, and each is
    missed.
    """
    files = list(twin_files_of(TWINS[name].env, shared_dir / "simpler_assets/data"))
    check_files(files, name, "")
    assert {"wx250s.urdf", "collision.obj"} <= {path.name for path in files}
    assert len([path for path in files if path.suffix == ".png"]) == 1
    assert len(list(with_meshes(files))) >= len(files) + 20  # the robot's own
    gone = list(twin_files_of(TWINS[name].env, tmp_path))
    with pytest.raises(
        ConfigError, match=rf"got {len(gone)} that cannot be loaded: .* is not there; .*; and"
    ):
        check_files(gone, name, "")


def test_an_unknown_task_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"widowx_stack_cube.*'no_such'"):
        make_task("simpler:no_such")
    for rest in ("own", "window:maniskill", "window:window", ""):
        with pytest.raises(
            ConfigError,
            match=f"'maniskill', 'window' or .* after 'simpler:widowx_stack_cube:', got '{rest}'",
        ):
            make_task(f"simpler:widowx_stack_cube:{rest}")
    with pytest.raises(ConfigError, match="tabletop"):
        make_task("nowhere")


def test_the_tabletop_is_a_task_as_well() -> None:
    task = make_task("tabletop")
    episode = task.episode(1000, official=False)
    steps = 1
    while not episode.step(episode.expert()):
        steps += 1
    assert episode.success
    assert steps < task.limit
    assert episode.image.shape == (128, 128, 3)
    with pytest.raises(ConfigError, match="no official"):
        task.episode(0, official=True)
    task.close()


@pytest.mark.simpler
@pytest.mark.parametrize("name", TWINS)
def test_the_expert_succeeds_at_the_limit(name: str, assets: None) -> None:
    task = make_task(f"simpler:{name}")
    episode = task.episode(0, official=True)
    assert episode.instruction == INSTRUCTIONS[name]
    assert (episode.image.shape, episode.image.dtype) == ((480, 640, 3), np.uint8)
    first = episode.image.copy()
    steps = 1
    while not episode.step(episode.expert()):
        steps += 1
    assert (steps, episode.success) == (task.limit, True)
    assert np.abs(episode.image.astype(int) - first).mean() > 1
    task.close()


@pytest.mark.simpler
def test_reuse_and_a_fresh_process_give_the_same_outcome(
    stacking: SimplerTask, repo_root: Path
) -> None:
    first = play(stacking, 3)
    play(stacking, 5, steps=7)  # leaves the arm somewhere, with its targets set
    assert play(stacking, 3) == first
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OUTCOME],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == first


@pytest.mark.simpler
def test_a_small_picture_looks_like_the_official_one(stacking: SimplerTask) -> None:
    official = SimplerTask("widowx_stack_cube")
    small, large = (
        resize(task.episode(1, official=True).image, 128).astype(int)
        for task in (stacking, official)
    )
    official.close()
    assert np.abs(small - large).mean() < 1.0
    assert abs(small.mean() - large.mean()) < 0.5
    assert abs(small.std() - large.std()) < 0.5


@pytest.mark.simpler
def test_a_window_has_the_official_pictures_pixels(assets: None) -> None:
    window = View(48, 0, 448, 448)
    official = SimplerTask("widowx_carrot_on_plate")
    part = SimplerTask("widowx_carrot_on_plate", view=window)
    whole_picture, picture = (task.episode(3, official=True).image for task in (official, part))
    official.close()
    part.close()
    assert picture.shape == (448, 448, 3)
    differs = (picture != window.of(whole_picture)).any(axis=-1)
    assert differs.mean() < 0.001  # an edge of the rendered objects may fall on the other pixel


@pytest.mark.simpler
def test_a_task_can_show_the_window_alone(assets: None) -> None:
    task = make_task("simpler:widowx_stack_cube:maniskill:window")
    shape = task.episode(0, official=True).image.shape
    task.close()
    assert task.name == "simpler:widowx_stack_cube:maniskill:window"
    assert shape == (WORKSPACE.height, WORKSPACE.width, 3)


@pytest.mark.simpler
def test_a_driving_policy_sees_the_window_and_the_shard_keeps_it_smaller(
    assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simpler_demonstrations, "DRIVEN_STEPS", 3)
    monkeypatch.setattr(simpler_demonstrations, "SHARD_EPISODES", 1)
    path = tmp_path / "driven.npz"
    driver = str(bundles.resolve("tabletop"))
    view = simpler_demonstrations.FINE
    frames, _ = simpler_demonstrations.make_shard(
        path, "widowx_stack_cube", 1_000_000, view, driver
    )
    assert frames == 3
    kept = read_shard(path)
    first = Foregrounds(kept, 128).whole(0)
    assert first.shape == (320, 320, 3)
    task = SimplerTask("widowx_stack_cube", view=view.full)
    window = task.episode(1_000_000, official=False).image
    task.close()
    assert np.array_equal(first, view.resized(window))


@pytest.mark.parametrize(
    "window", [(600, 0, 448, 448), (-1, 0, 10, 10), (0, 0, 0, 10), (0, 100, 100, 400)]
)
def test_a_window_lies_inside_of_the_picture(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="window of a 640 x 480 picture"):
        View(*window)


@pytest.mark.simpler
def test_demonstrations_are_labelled_with_the_clean_expert(
    stacking: SimplerTask, tmp_path: Path
) -> None:
    shard = Shard(stacking.background)
    simpler_demonstrations.demonstrate(stacking, 1_000_003, shard, scattered=0)
    shard.save(tmp_path / "shard.npz")
    kept = read_shard(tmp_path / "shard.npz")
    frames = len(shard)
    assert 20 < frames <= simpler_demonstrations.STEPS
    assert kept["chunks"].shape == (frames, 1, 16, 7)
    assert kept["joints"].shape == (frames, 8) and kept["tool"].shape == (frames, 7)
    aux = kept["aux"]
    assert aux.shape == (frames, 1, AUX + 4)
    # two directions
    np.testing.assert_allclose(np.hypot(aux[..., AUX::2], aux[..., AUX + 1 :: 2]), 1.0, rtol=1e-6)
    x, y = kept["points"][0, 0, 0]
    picture = pictures_of(kept, 128).picture(0)
    green = picture[int(y * 128), int(x * 128)].astype(int)
    assert green[1] > green[0]  # the object's point lies on the green cube
    assert np.abs(kept["chunks"][..., :3]).max() <= simpler_expert.SPEED + 1e-6
    chunk = simpler_expert.chunk(TWINS["widowx_stack_cube"].job, State.of(kept["states"][5]))
    np.testing.assert_allclose(chunk[:, 2:], kept["chunks"][5, 0, :, 2:])  # another could label it
    episode = stacking.episode(1_000_003, official=False)
    # nothing of a picture is lost
    assert np.array_equal(Foregrounds(kept, 128).whole(0), episode.image)


@pytest.mark.simpler
@pytest.mark.parametrize("name", TWINS)
def test_a_moment_is_shown_again_with_things_elsewhere(name: str, assets: None) -> None:
    task = SimplerTask(name, view=whole(160))
    episode = task.episode(1_000_001, official=False)
    rng = np.random.default_rng(0)
    start = episode.state()
    elsewhere = Scatter(task, start.thing[2])
    turns = []
    looked = 0
    for _ in range(25):
        before = episode.state()
        picture = episode.image
        for moved in elsewhere.look(episode, 2, rng):
            state = moved.state()
            looked += 1
            assert (moved.image != picture).any()
            assert state.tool == before.tool and state.opening == before.opening
            if simpler_expert.held(before):
                assert state.thing == before.thing and state.target != before.target
            else:
                assert state.thing[2] == pytest.approx(start.thing[2], abs=0.005) and task.reaches(
                    np.array(state.thing)
                )
                turns.append(simpler_expert.turn_across(episode.job, state))
        assert episode.state() == before
        assert np.array_equal(episode.image, picture)
        episode.step(episode.expert())
    task.close()
    assert looked > 10 and np.std(turns) > 0.25
    assert episode.success  # what was looked at changed nothing


@pytest.mark.simpler
def test_official_episodes_have_numbers(stacking: SimplerTask) -> None:
    with pytest.raises(ConfigError, match="from 0 to 23, got 24"):
        stacking.episode(24, official=True)


@pytest.mark.simpler
@pytest.mark.parametrize("name", TWINS)
def test_after_a_reset_objects_rest_where_simplerenv_lets_them_fall(
    name: str, assets: None
) -> None:
    task = SimplerTask(name, view=whole(64))
    strays = []
    for number, release in enumerate(releases(name)):
        episode = task.episode(number, official=True)
        thing = episode.state().thing
        speed = float(task.env.objs[task.env.source_obj_name].linear_velocity.norm())
        strays.append(1000 * math.dist(thing[:2], release.thing))
        assert speed < 0.01, f"episode {number} moves"
        assert 0.86 < thing[2] < 0.95
        assert task.env.agent.robot.pose.p[0, 0] > 0  # it came back
    task.close()
    if name in STRAY_MM:
        assert max(strays) < STRAY_MM[name]
        return
    # an eggplant on the bottom of a sink: most stay, some roll to the wall
    assert np.median(strays) < 6
    assert sum(stray < 20 for stray in strays) >= 20
    assert max(strays) < 60


@pytest.mark.simpler
def test_maniskills_own_states_have_numbers_and_contacts_of_their_own(assets: None) -> None:
    task = make_task("simpler:widowx_put_eggplant_in_basket:maniskill")
    assert task.name == "simpler:widowx_put_eggplant_in_basket:maniskill"
    assert task.official == 64
    assert isinstance(task, SimplerTask)
    own = task.episode(9, official=True)  # the second place, the second turn
    assert math.dist(own.state().thing[:2], IN_SINK[1]) < 0.01
    own_q = task.env.objs["eggplant"].pose.raw_pose[0, 3:].numpy()
    task.close()
    dropped = SimplerTask("widowx_put_eggplant_in_basket", view=whole(64))
    further = dropped.episode(5000, official=False).state().thing
    dropped.episode(9, official=True)
    turn = abs(float(own_q @ dropped.env.objs["eggplant"].pose.raw_pose[0, 3:].numpy()))
    assert math.degrees(2 * math.acos(min(1.0, turn))) > 60  # SimplerEnv's lies on another side
    # whatever was played before
    assert dropped.episode(5000, official=False).state().thing == further
    dropped.close()


@pytest.mark.simpler
@pytest.mark.parametrize(
    "file",
    [
        "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb",
        "tasks/bridge_v2_real2sim_dataset/custom/models/baked_green_cube_3cm/collision.obj",
        "robots/widowx/meshes_wx250s/WXSA-250-M-10-Finger.stl",
    ],
)
def test_eval_ends_with_one_error_where_a_file_is_missing(
    file: str, assets: None, shared_dir: Path, repo_root: Path, tmp_path: Path
) -> None:
    """Without the check it played on, and told a success rate of 0 with "ok": true."""
    shutil.copytree(shared_dir / "simpler_assets/data", tmp_path / "data", copy_function=os.symlink)
    (tmp_path / "data" / file).unlink()
    words = [
        "eval",
        "--policy",
        "expert",
        "--env",
        "simpler:widowx_stack_cube",
        "--episodes",
        "1",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "trimvla.launch.cli", *words],
        cwd=repo_root,
        env={**os.environ, "MS_ASSET_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert f"{file} is not there" in json.loads(line)["error"]
    assert "Traceback" not in done.stderr
