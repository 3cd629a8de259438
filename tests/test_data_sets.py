"""LeRobot data sets: written from a recording, read in both layouts, played over, and every way in
which one can be damaged or not fit.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models

from tests import several_cameras_bundle, tiny_bundle
from tests.lerobot_sets import (
    CAMERAS,
    HZ,
    KINDS,
    LENGTHS,
    NAMES,
    TASKS,
    action_of,
    image_of,
    messages,
    write_recording,
    write_v3,
    write_v21,
)
from tests.tiny_policy import TINY
from trimvla.export.streaming.placeholders import placeholder_tokenizer
from trimvla.launch import cli
from trimvla.launch.datasets.dataset import DataSet
from trimvla.launch.datasets.views import find_views
from trimvla.launch.frames.calibration import find_calibration
from trimvla.launch.motion.recorded import recorded_motion
from trimvla.policies.trimming.calibrate import check_calibration
from trimvla.runtime.bundle.inputs_and_output import CameraSpec, StateSpec
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recording import Recording

OF_VIDEO = 6  # shades that a film may be off
FRONT = "observation.images.front"
LEROBOT = os.environ.get("LEROBOT_PYTHON")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One data set in both layouts."""
    home = tmp_path_factory.mktemp("sets")
    return {"v3.0": write_v3(home / "new"), "v2.1": write_v21(home / "old")}


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_recording_comes_back_row_by_row(both: dict[str, Path], version: str) -> None:
    data = DataSet(both[version])
    assert data.layout.info.codebase_version == version
    assert data.fps == HZ
    assert tuple(episode.length for episode in data.episodes) == LENGTHS
    assert set(data.layout.cameras) == set(CAMERAS)
    assert data.layout.state is not None
    assert data.layout.state.labels == (*NAMES, "gripper")
    row = 0
    for episode, task in zip(data.episodes, TASKS, strict=True):
        rows = data.rows(episode)
        assert set(rows.tasks) == {task}
        assert rows.times == pytest.approx(np.arange(episode.length) / HZ, abs=1e-6)
        expected = [action_of(row + place) for place in range(episode.length)]
        assert np.array_equal(rows.actions, np.array(expected, np.float32))
        for camera in CAMERAS:
            found = list(data.images(episode, data.layout.cameras[camera], range(episode.length)))
            assert len(found) == episode.length
            for place, image in enumerate(found):
                apart = np.abs(image.astype(int) - image_of(row + place, camera))
                assert apart.max() <= OF_VIDEO, (camera, place)
        row += episode.length


def test_any_rows_of_a_film_are_reached(both: dict[str, Path]) -> None:
    data = DataSet(both["v3.0"])
    [found] = data.images(data.episodes[0], FRONT, [7])
    assert abs(int(found[0, 0, 0]) - int(image_of(7, "front")[0, 0, 0])) <= OF_VIDEO


def lerobot(*words: str) -> str:
    assert LEROBOT is not None
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [LEROBOT, str(Path(__file__).with_name("lerobot_reader.py")), *words],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout


@pytest.mark.skipif(LEROBOT is None, reason="needs an environment with LeRobot: LEROBOT_PYTHON")
def test_lerobots_own_class_opens_and_plays_it(both: dict[str, Path]) -> None:
    told = json.loads(lerobot(str(both["v3.0"])).splitlines()[-1])
    assert (told["fps"], told["episodes"], len(told["rows"])) == (HZ, 2, sum(LENGTHS))
    assert told["cameras"] == [f"observation.images.{camera}" for camera in CAMERAS]
    assert told["state_names"] == [*NAMES, "gripper"]
    assert told["action_names"] == [*(f"delta_{place}" for place in range(6)), "gripper"]
    for place, row in enumerate(told["rows"]):
        assert row["action"] == pytest.approx(action_of(place), abs=1e-6)
        assert row["task"] == TASKS[place >= LENGTHS[0]]
        expected = [float(image_of(place, camera)[0, 0, 0]) for camera in CAMERAS]
        assert row["shades"] == pytest.approx(expected, abs=OF_VIDEO)


@pytest.mark.skipif(LEROBOT is None, reason="needs an environment with LeRobot: LEROBOT_PYTHON")
def test_lerobots_own_data_set_is_read(tmp_path: Path) -> None:
    """Both of its episodes lie in one film, as AV1, and in one table."""
    lerobot("--write", str(tmp_path / "own"))
    data = DataSet(tmp_path / "own")
    assert [episode.length for episode in data.episodes] == [7, 7]
    for number, episode in enumerate(data.episodes):
        rows = data.rows(episode)
        assert rows.actions.tolist() == [[row + 0.5, number] for row in range(7)]
        assert set(rows.tasks) == {f"task {number}"}
        images = list(data.images(episode, FRONT, range(7)))
        shades = [float(image.mean()) for image in images]
        expected = [20 + 10 * row + 100 * number for row in range(7)]
        assert shades == pytest.approx(expected, abs=OF_VIDEO)


def verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    status = cli.main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_record_makes_a_data_set_of_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "run.mcap")
    words = ("record", str(tmp_path / "run.mcap"), "--lerobot", str(tmp_path / "set"))
    status, told = verb(capsys, *words)
    assert (status, told["episodes"], told["frames"]) == (0, 2, sum(LENGTHS))
    assert told["cameras"] == list(CAMERAS)
    status, told = verb(capsys, *words)
    assert status == 1
    assert str(tmp_path / "set") in told["error"], "what is there is not written over"
    assert not list(tmp_path.glob("*.partial"))


def test_a_recording_without_commands_makes_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "a.mcap", [it for it in messages() if it[0] != "command"])
    words = ("record", str(tmp_path / "a.mcap"), "--lerobot", str(tmp_path / "set"))
    status, told = verb(capsys, *words)
    assert status == 1
    assert "expected commands with images of ['front', 'wrist']" in told["error"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.mcap"}


def test_a_camera_that_changes_its_size_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from trimvla.runtime.bus.messages import Frame

    found = messages()
    place = max(i for i, (_, message) in enumerate(found) if isinstance(message, Frame))
    name, frame = found[place]
    assert isinstance(frame, Frame)
    found[place] = (name, dataclasses.replace(frame, image=np.zeros((8, 8, 3), np.uint8)))
    write_recording(tmp_path / "a.mcap", found)
    words = ("record", str(tmp_path / "a.mcap"), "--lerobot", str(tmp_path / "set"))
    status, told = verb(capsys, *words)
    assert status == 1
    assert "camera 'wrist': expected images of (48, 64), got (8, 8)" in told["error"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.mcap"}


def test_a_bundle_over_a_data_set(
    both: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tiny_bundle.write_bundle(tmp_path / "tiny"))
    out = tmp_path / "out"
    words = ("eval", bundle, "--data", str(both["v3.0"]), "--execute", "2", "--out", str(out))
    status, told = verb(capsys, *words)
    assert status == 0, told
    assert (told["frames"], told["execute"], told["fps"]) == (sum(LENGTHS), 2, HZ)
    assert [each["frames"] for each in told["episodes"]] == list(LENGTHS)
    assert [each["task"] for each in told["episodes"]] == list(TASKS)
    assert len(told["dimensions"]) == 7
    assert all(each["root_mean_square"] >= each["mean_absolute"] for each in told["dimensions"])
    assert 0 <= told["gripper_agreement"] <= 1
    assert (out / "picture.png").stat().st_size > 5000
    # the recorded side is the recording itself
    recorded = recorded_motion(Recording(both["v3.0"].with_suffix(".mcap")))
    assert recorded is not None
    assert told["recorded_motion"]["commands"] == recorded.commands
    again = verb(capsys, *words)[1]
    assert again == told, "the noise is fixed"
    old = verb(capsys, "eval", bundle, "--data", str(both["v2.1"]), "--execute", "2")[1]
    assert old["dimensions"] == told["dimensions"]


def test_a_bundle_that_recorded_them_gives_the_same_actions_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands are what the bundle wants of the film's images: the error is that of float32."""
    import pyarrow.parquet

    from trimvla.launch.datasets.evaluate import OpenLoop
    from trimvla.runtime.inference.policy import Policy

    bundle = str(tiny_bundle.write_bundle(tmp_path / "tiny"))
    root = write_v3(tmp_path / "set")
    data = DataSet(root)
    policy = Policy.load(bundle, threads=1)
    views = find_views(data, policy.manifest.images.cameras, None)
    loop = OpenLoop(policy, data, views, 1, 0)
    for episode in data.episodes:
        wanted = loop.actions(episode, data.rows(episode))
        table = pyarrow.parquet.read_table(episode.table)
        kind = table.schema.field("action").type
        column = pyarrow.array(wanted.astype(np.float32).tolist(), kind)
        place = table.column_names.index("action")
        pyarrow.parquet.write_table(table.set_column(place, "action", column), episode.table)
    policy.close()
    told = verb(capsys, "eval", bundle, "--data", str(root), "--execute", "1")[1]
    assert max(each["root_mean_square"] for each in told["dimensions"]) < 1e-6
    assert told["gripper_agreement"] == 1
    assert [each["jerk_ratio"] for each in told["episodes"]] == pytest.approx([1, 1], rel=1e-3)


def test_several_cameras_and_the_state_by_name(
    both: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(several_cameras_bundle.write_bundle(tmp_path / "two"))
    words = ("eval", bundle, "--data", str(both["v3.0"]), "--execute", "2")
    status, told = verb(capsys, *words)
    assert status == 1
    assert "expected the camera 'camera1' that the policy looks through" in told["error"]
    views = ("--views", "camera1=front", "--views", "camera2=wrist")
    status, told = verb(capsys, *words, *views)
    assert status == 1
    assert "gripper.pos" in told["error"], "the data set calls it 'gripper'"
    blind = several_cameras_bundle.write_bundle(tmp_path / "blind", reads_state=False)
    words = ("eval", str(blind), *words[2:])
    status, first = verb(capsys, *words, *views)
    assert status == 0, first
    swapped = ("--views", "camera1=wrist", "--views", "camera2=front")
    assert verb(capsys, *words, *swapped)[1]["dimensions"] != first["dimensions"]
    assert "got ['other']" in verb(capsys, *words, *views, "--views", "other=front")[1]["error"]


def edit_info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_table(path: Path, change: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def features(root: Path) -> dict:
    return json.loads((root / "meta/info.json").read_text())["features"]


def table_of(root: Path) -> Path:
    return root / "data/chunk-000/file-000.parquet"


def film_of(root: Path) -> Path:
    return root / f"videos/{FRONT}/chunk-000/file-000.mp4"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_nan(table: pyarrow.Table) -> pyarrow.Table:
    kind = table.schema.field("action").type
    rows = [*table.column("action").to_pylist()[:-1], [float("nan")] * 7]
    return table.set_column(0, "action", pyarrow.array(rows, kind))


Damage = Callable[[Path], object]
DAMAGES: list[tuple[Damage, str]] = [
    (lambda root: (root / "meta/info.json").unlink(), "expected a LeRobot data set with meta/info"),
    (lambda root: (root / "meta/info.json").write_text("{"), "info.json"),
    (lambda root: (root / "meta/info.json").write_text("[]"), "got None"),
    (lambda root: edit_info(root, codebase_version="v1.6"), "expected v3.0 or v2.1 for"),
    (lambda root: edit_info(root, fps=0), "fps"),
    (lambda root: edit_info(root, fps=10), "at 10 Hz"),
    (lambda root: edit_info(root, data_path="../../{chunk_index}"), "expected files inside"),
    (lambda root: edit_info(root, data_path="{nothing}"), "expected a pattern with"),
    (
        lambda root: edit_info(
            root,
            features={k: v for k, v in features(root).items() if k != FRONT and "wrist" not in k},
        ),
        "expected the camera",
    ),
    (
        lambda root: edit_info(
            root, features={**features(root), "action": {"dtype": "float32", "shape": [5]}}
        ),
        "expected 7 numbers for 'action'",
    ),
    (
        lambda root: edit_info(
            root, features={**features(root), FRONT: {"dtype": "video", "shape": [24, 24, 3]}}
        ),
        "expected images of 24 x 24",
    ),
    (lambda root: table_of(root).unlink(), "expected a Parquet file at"),
    (lambda root: shorten(table_of(root)), "expected a Parquet file that can be read"),
    (lambda root: table_of(root).write_bytes(b""), "expected a Parquet file that can be read"),
    (lambda root: edit_table(table_of(root), lambda t: t.slice(0, 0)), "got 0"),
    (lambda root: edit_table(table_of(root), lambda t: t.slice(0, 3)), "got 3"),
    (lambda root: edit_table(table_of(root), lambda t: t.drop_columns("action")), "['action']"),
    (lambda root: edit_table(table_of(root), with_nan), "expected finite numbers for 'action'"),
    (lambda root: film_of(root).unlink(), "expected a film at"),
    (lambda root: shorten(film_of(root)), "expected a film that can be read"),
    (lambda root: film_of(root).write_bytes(b"no film"), "expected a film that can be read"),
    (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet"),
    (
        lambda root: edit_table(root / "meta/tasks.parquet", lambda t: t.slice(1, 1)),
        "expected a task of meta/tasks for 'task_index', got 0",
    ),
    (
        lambda root: edit_table(
            root / "meta/episodes/chunk-000/file-000.parquet", lambda t: t.slice(0, 0)
        ),
        "expected at least one episode",
    ),
    (
        lambda root: (root / "meta/episodes/chunk-000/file-000.parquet").unlink(),
        "expected meta/episodes/chunk-*/file-*.parquet",
    ),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words for _, words in DAMAGES])
def test_what_is_damaged_or_does_not_fit_is_one_error(
    damage: Damage,
    words: str,
    both: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    root = tmp_path / "set"
    shutil.copytree(both["v3.0"], root)
    damage(root)
    bundle = str(tiny_bundle.write_bundle(tmp_path / "tiny"))
    out = tmp_path / "out"
    status = cli.main(["eval", bundle, "--data", str(root), "--out", str(out), "--json"])
    captured = capsys.readouterr()
    told = json.loads(captured.out.splitlines()[-1])
    assert status == 1
    assert words in told["error"]
    assert str(root) in told["error"], "it names the file"
    assert "Traceback" not in captured.err
    assert not (out / "result.json").exists()


def test_a_state_that_the_policy_cannot_read(both: dict[str, Path]) -> None:
    data = DataSet(both["v3.0"])
    cameras = [CameraSpec("front")]

    def spec(names: tuple[str, ...], dim: int) -> StateSpec:
        return StateSpec(names=names, dim=dim, padded=dim, statistics="mean_std")

    assert find_views(data, cameras, spec((*NAMES, "gripper"), 5)).reads_state
    with pytest.raises(ConfigError, match=r"expected 6 numbers for 'observation\.state', got 5"):
        find_views(data, cameras, spec((), 6))
    with pytest.raises(ConfigError, match="in this order, got"):
        find_views(data, cameras, spec(("y", "x", "z", "yaw", "gripper"), 5))
    bare = json.loads((both["v3.0"] / "meta/info.json").read_text())["features"]
    assert "observation.state" in bare


def test_calibration_frames_come_from_a_data_set(both: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(placeholder_tokenizer(TINY.prompt))
    for root in both.values():
        found = find_calibration(root, tmp_path, TINY, tokenizer, frames=8, seed=0)
        check_calibration(found, TINY)
        assert len(found.last) == 8
        shades = {int(image[0, 0, 0]) for image in found.images}
        assert len(shades) == 8, "drawn without doubles, and all of the main camera"
        assert max(shades) < 110
    with pytest.raises(ConfigError, match="expected a LeRobot data set"):
        (tmp_path / "empty").mkdir()
        find_calibration(tmp_path / "empty", tmp_path, TINY, tokenizer, frames=8, seed=0)


def test_a_flow_policy_is_measured_on_data_sets_and_recordings(
    both: dict[str, Path], tmp_path: Path
) -> None:
    """Two cameras by name and the state; the same rows, from a film and from the recording."""
    from tests.smolvla_policy import TINY as SMOL
    from tests.smolvla_policy import write_checkpoint
    from trimvla.launch.exporting.paired_plan import find_shards, frames_of
    from trimvla.launch.exporting.policy_source import open_source

    assert SMOL.cameras == CAMERAS
    folder = tmp_path / "smol"
    folder.mkdir()
    write_checkpoint(folder)
    words = {word: index for index, word in enumerate(("<pad>", "<s>", "<unk>", "pick"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    opened = open_source(folder)
    recording = both["v3.0"].with_suffix(".mcap")
    seen = {
        path: frames_of(opened, find_shards(path, folder), 99, 0).samples
        for path in (*both.values(), recording)
    }
    filmed, old, recorded = seen.values()
    assert len(filmed) == len(old) == sum(LENGTHS)
    assert 0 < len(recorded) <= sum(LENGTHS)
    for one, two in zip(filmed, old, strict=True):
        assert all(bool((one[name] == two[name]).all()) for name in one)
    by_state = {tuple(sample["state"][0].tolist()): sample for sample in filmed}
    assert len(by_state) == sum(LENGTHS)
    for sample in recorded:
        twin = by_state[tuple(sample["state"][0].tolist())]
        assert sample["input_ids"].tolist() == twin["input_ids"].tolist()
        front, wrist = sample["images"].mean(dim=(-3, -2, -1)).flatten().tolist()
        assert front < wrist, "the second camera is the brighter one"


def test_options_that_play_do_not_go_with_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("eval", "tabletop", "--data", "somewhere", "--against", "tabletop", "--latency", "0")
    status, told = verb(capsys, *words)
    assert status == 1
    assert "expected no --against, --latency with --data" in told["error"]
    assert "for --views: cameras" in verb(capsys, "eval", "tabletop", "--views", "a=b")[1]["error"]


def test_kinds_of_the_recording_name_the_actions(tmp_path: Path) -> None:
    from trimvla.launch.datasets.from_recording import shape_of

    absolute = ("absolute",) * 4 + ("gripper",)
    assert absolute != KINDS
    shape = shape_of(write_recording(tmp_path / "a.mcap"))
    assert shape.actions == (*(f"delta_{place}" for place in range(6)), "gripper")
    assert shape.cameras == dict.fromkeys(CAMERAS, (48, 64))
