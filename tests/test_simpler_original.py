"""The original SimplerEnv package behind our episodes: its grids, its protocol, its actions, and
its traps.

`test_the_contract` runs unchanged against the real package where that is installed; elsewhere the
fake stands in.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import fake_simpler_env
from tests.fake_simpler_env import Inner
from trimvla.launch.machine.probes import run_probe
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Known
from trimvla.runtime.preprocess.observation import Observation
from trimvla.sim.episodes import Task, make_task
from trimvla.sim.evaluation import rollout
from trimvla.sim.evaluation.rollout import PolicyOrExpert, Setting
from trimvla.sim.evaluation.virtual_time import LatencySimulator, Pace
from trimvla.sim.simpler.grids import ORIGINALS, SETS, official
from trimvla.sim.simpler.install import unfit

INSTALLED = importlib.util.find_spec("simpler_env") is not None
OFFICIAL = {  # SIMPLER's own counts: visual matching, variant aggregation
    "google_robot_pick_coke_can": (300, 675),
    "google_robot_move_near": (240, 480),
    "google_robot_open_drawer": (108, 189),
    "google_robot_close_drawer": (108, 189),
    "google_robot_place_apple_in_closed_top_drawer": (108, 189),
    "google_robot_pick_object": (0, 0),
}
HOLD = np.array([0.0] * 6 + [1.0])
RIGHT = np.array([1.0] + [0.0] * 6)
APPLE = "simpler_env:google_robot_place_apple_in_closed_top_drawer"
STACK = "simpler_env:widowx_stack_cube"


class Still:
    """A policy that does nothing."""

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Any:
        return SimpleNamespace(actions=np.zeros((16, 7), np.float32))


def still() -> AbstractContextManager[Mapping[str, PolicyOrExpert]]:
    """It alone plays."""
    return nullcontext({"still": Still()})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Inner]:
    fake_simpler_env.install(monkeypatch, tmp_path)
    return Inner


@pytest.fixture(
    params=[
        "fake",
        pytest.param(
            "installed",
            marks=pytest.mark.skipif(
                not INSTALLED,
                reason="the original simpler_env is not installed: it is on no registry",
            ),
        ),
    ]
)
def stack(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Task]:
    if request.param == "fake":
        fake_simpler_env.install(monkeypatch, tmp_path)
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
        first = episode.image.copy()
        over = False
        steps = 0
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
    # 27 a colour, 9 a drawer: the second colour, the top drawer, place c2
    task.episode(35, official=True)
    (env,) = fake.made
    assert env.env_id == "OpenTopDrawerCustomInScene-v0"
    assert env.options["urdf_version"] == "recolor_tabletop_visual_matching_1"
    assert env.options["shader_dir"] == "rt"
    assert env.options["rgb_overlay_path"].endswith("/data/real_inpainting/open_drawer_c2.png")
    assert env.options["rgb_overlay_cameras"] == ["overhead_camera"]
    assert (env.options["control_freq"], env.options["sim_freq"]) == (3, 513)
    assert (env.options["max_episode_steps"], env.options["scene_name"]) == (113, "dummy_drawer")
    (reset,) = env.resets
    # no `reconfigure`: the spoon would move
    assert set(reset) == {"robot_init_options", "obj_init_options", "seed"}
    assert reset["seed"] is None
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
    assert prepackaged.resets == [{"seed": 77}]


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
    for _ in range(101):
        assert episode.instruction == "open top drawer"
        episode.step(HOLD)
    assert episode.instruction == "place apple into top drawer"
    episode = task.episode(0, official=True)
    assert not episode.step(np.append(HOLD, 1.0)), "there is another sub-task"
    assert episode.instruction == "place apple into top drawer"
    assert episode.step(np.append(HOLD, 1.0)), "that was the last one"


@pytest.mark.parametrize(("task", "robot"), [(APPLE, "google_robot"), (STACK, "widowx_bridge")])
@pytest.mark.parametrize(
    "variant", ["ensemble_binary", "ensemble_continuous", "ensemble_binary_reset19"]
)
def test_actions_are_those_of_the_public_adapter(
    fake, fixture_dir, task: str, robot: str, variant: str
) -> None:
    """Chunks through the evaluation's own path, one a step: what reaches the environment is what
    CogACT's sends.
    """
    arrays = np.load(fixture_dir / "reference.npz")
    chunks = arrays[f"simpler/chunks_{variant.split('_')[1]}_gripper"]
    made = make_task(task)
    episode = made.episode(0, official=True)
    pace = Pace(execute=1, votes=made.votes)  # pyright: ignore[reportAttributeAccessIssue]
    simulator = LatencySimulator(lambda tick, known: chunks[tick], made.control_hz, pace)
    for tick in range(len(chunks)):
        if variant.endswith("reset19") and tick == 18:
            fake.made[0].sentence = "another task"  # read after this step
        episode.step(simulator.act(tick, episode.instruction))
    sent = np.stack(fake.made[0].commands)
    for name, columns in (
        ("world_vector", slice(0, 3)),
        ("rot_axangle", slice(3, 6)),
        ("gripper", slice(6, 7)),
    ):
        expected = arrays[f"simpler/{robot}/{variant}/{name}"].reshape(len(chunks), -1)
        np.testing.assert_allclose(sent[:, columns], expected, atol=1e-9, err_msg=name)


def test_what_is_missing_or_unknown_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not INSTALLED:
        with pytest.raises(ConfigError, match="expected the original SimplerEnv package"):
            make_task(STACK)
    fake_simpler_env.install(monkeypatch, tmp_path)
    with pytest.raises(
        ConfigError, match=r"expected one of .* for 'simpler_env:', got 'widowx_dance'"
    ):
        make_task("simpler_env:widowx_dance")
    with pytest.raises(
        ConfigError, match="after 'simpler_env:widowx_stack_cube:', got 'aggregation'"
    ):
        make_task("simpler_env:widowx_stack_cube:aggregation")
    with pytest.raises(ConfigError, match="below 24"):
        make_task(STACK).episode(24, official=True)


@pytest.mark.parametrize(
    ("task", "number", "file"),
    [
        (STACK, 0, "data/hab2_bench_assets/stages/bridge_table_1_v1.glb"),
        (STACK, 0, "data/custom/models/baked_green_cube_3cm/collision.obj"),
        (STACK, 0, "data/custom/models/baked_yellow_cube_3cm/textured.glb"),
        (STACK, 0, "package/descriptions/widowx_description/meshes/link.stl"),
        ("simpler_env:widowx_put_eggplant_in_basket", 3, "data/custom/models/sink/collision.obj"),
        ("simpler_env:widowx_put_eggplant_in_basket", 3, "data/real_inpainting/bridge_sink.png"),
        (
            "simpler_env:google_robot_move_near",
            59,
            "data/custom/models/baked_opened_redbull_can/collision.obj",
        ),
        (
            "simpler_env:google_robot_pick_coke_can:variants",
            300,
            "data/custom/models/opened_fanta_can/textured.glb",
        ),
        (APPLE, 0, "data/custom/mk_station_recolor.urdf"),
        (APPLE, 0, "data/custom/models/baked_apple_v2/collision.obj"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_an_error_before_anything_is_built(
    fake: type[Inner], tmp_path: Path, task: str, number: int, file: str
) -> None:
    """Without the check the package plays on: objects fall through the table, a silent 0 of 24."""
    made = make_task(task)
    made.episode(number, official=True)
    fake.made.clear()
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"got 1 that cannot be loaded: .*{file} is empty"):
        made.episode(number, official=True)
    (tmp_path / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ConfigError, match="Git LFS pointer"):
        made.episode(number, official=True)
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match="is not there"):
        made.episode(number, official=True)
    assert not fake.made


def test_only_files_of_what_is_played_are_looked_for(fake: type[Inner], tmp_path: Path) -> None:
    """Cell 0 has no neighbour of the can; cell 300 does, and then nothing is played."""
    (tmp_path / "data/custom/models/opened_fanta_can/collision.obj").unlink()
    setting = Setting("simpler_env:google_robot_pick_coke_can:variants", official=True)
    (played,) = rollout.play(still, setting, [0])
    assert not played["still"].success
    fake.made.clear()
    with pytest.raises(ConfigError, match=r"opened_fanta_can/collision\.obj is not there"):
        list(rollout.play(still, setting, [0, 300]))
    assert not fake.made


def test_nothing_of_the_package_reaches_stdout(
    fake: type[Inner], capsys: pytest.CaptureFixture[str]
) -> None:
    episode = make_task(STACK).episode(0, official=True)
    episode.step(HOLD)
    told = capsys.readouterr()
    assert told.out == ""
    assert "Control mode" in told.err


def test_a_missing_driver_is_named_and_other_errors_stay(
    fake: type[Inner], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(STACK)
    for words, expected in (
        ("vk::createInstanceUnique: ErrorIncompatibleDriver", ConfigError),
        ("a bug", RuntimeError),
    ):
        with monkeypatch.context() as patch:

            def fails(inner: Inner, options: dict[str, object], words: str = words) -> None:
                raise RuntimeError(words)

            patch.setattr(Inner, "reset", fails)
            with pytest.raises(expected, match=words) as caught:
                task.episode(0, official=True)
            assert ("Vulkan" in str(caught.value)) == (expected is ConfigError)


@pytest.mark.parametrize(
    ("changed", "python", "expected"),
    [
        ({}, (3, 10), None),
        ({}, (3, 11), None),
        ({}, (3, 12), "Python 3.10 or 3.11, got 3.12"),
        ({"numpy": "2.3.1"}, (3, 11), "numpy<2, got 2.3.1"),
        ({"setuptools": "82.0"}, (3, 11), "setuptools<80, got 82.0"),
        ({"setuptools": None}, (3, 11), "setuptools<80, got none"),
        ({"gymnasium": "1.4.0"}, (3, 11), "gymnasium<1, got 1.4.0"),
        ({"sapien": "3.0.3"}, (3, 11), "sapien<3, got 3.0.3"),
    ],
)
def test_versions_that_do_not_go_together_are_named(
    changed: dict[str, str | None], python: tuple[int, int], expected: str | None
) -> None:
    fitting = {"numpy": "1.26.4", "setuptools": "79.0.1", "gymnasium": "0.29.1", "sapien": "2.2.2"}
    told = unfit(fitting | changed, python)
    assert (told is None) if expected is None else (told is not None and expected in told)


def crash_on_import(folder: Path) -> dict[str, str]:
    """A package that ends the process as the real one does beside NumPy 2; returns the environment
    that has it.
    """
    for name in ("simpler_env", "mani_skill2_real2sim"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
        )
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }


def test_eval_ends_with_one_error_where_the_package_would_end_the_process(
    tmp_path: Path, repo_root: Path
) -> None:
    words = ["eval", "--policy", "expert", "--env", STACK, "--episodes", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "trimvla.launch.cli", *words],
        cwd=repo_root,
        env=crash_on_import(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert not told["ok"]
    assert f"numpy<2, got {np.__version__}" in told["error"]
    assert "Traceback" not in done.stderr


NO_SIMULATOR = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mujoco", "gymnasium", "mani_skill", "sapien", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Absent())
from pathlib import Path
import pytest
from tests import fake_simpler_env
fake_simpler_env.install(pytest.MonkeyPatch(), Path(sys.argv[1]))
from trimvla.launch.cli import main
words = "eval tabletop --env simpler_env:widowx_stack_cube --episodes 1 --workers 1 --json"
sys.exit(main(words.split()))
"""


@pytest.mark.slow
def test_eval_needs_no_other_simulator_and_prints_one_line(tmp_path: Path, repo_root: Path) -> None:
    """The package forbids the gymnasium of the extra `sim`, so that one cannot be asked for."""
    done = subprocess.run(
        [sys.executable, "-c", NO_SIMULATOR, str(tmp_path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["episodes"] == 1


def test_doctor_knows_the_package() -> None:
    told = run_probe("simpler_env")
    if INSTALLED:
        assert told.versions is not None and told.versions["sapien"]
        return
    assert not told.ok
    assert told.why is not None and told.versions is not None
    assert "simpler_env and mani_skill2_real2sim not installed" in told.why
    assert told.versions["numpy"] == np.__version__
