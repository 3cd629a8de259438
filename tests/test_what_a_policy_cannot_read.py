"""`trimvla run` and `trimvla eval` of a policy that cannot read the task, or looks through other
cameras than there are: one error before anything starts or is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import several_cameras_bundle, tiny_bundle
from trimvla.launch import cli
from trimvla.runtime.bundle.manifest import CameraSpec, ImagesSpec
from trimvla.runtime.errors import PromptError
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.rungs import check_instruction
from trimvla.sim.actor import observe_for

OWN = "tests.own_envs:make"
LONG = "cube " * 40
TOO_LONG = "expected at most 16 tokens for the prompt, got"
SYSTEM = """
[camera]
kind = "synthetic"
name = "front"

[policy]
bundle = '{bundle}'
cameras = {{ camera1 = "front", camera2 = "front" }}
"""


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return json.loads(captured.out.splitlines()[-1])["error"]


def test_a_task_that_is_too_long_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = several_cameras_bundle.write_bundle(tmp_path / "two")
    system = tmp_path / "system.toml"
    system.write_text(SYSTEM.format(bundle=bundle))
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    words = ("run", str(system), "--run-dir", str(run_dir), "--seconds", "30", "--task", LONG)
    assert f"bundle 'two-cameras': {TOO_LONG}" in refused(capsys, *words)
    assert not list(run_dir.iterdir()), "no process was started"


def test_every_rung_must_read_the_task(tmp_path: Path) -> None:
    one = tiny_bundle.write_bundle(tmp_path / "one")
    config = PolicyConfig(bundle=str(one))
    check_instruction(config, "stack the red cube")
    with pytest.raises(PromptError, match=r"bundle 'tiny.*at most 16 tokens"):
        check_instruction(config, LONG)


@pytest.mark.parametrize("case", ["cameras", "cameras of its own", "prompt"])
def test_what_an_environment_does_not_show_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ("--episodes", "1", "--workers", "1", "--out", str(out))
    if case == "prompt":
        bundle = tiny_bundle.write_bundle(tmp_path / "narrow", dim=3)
        error = refused(capsys, "eval", str(bundle), "--env", OWN, "--instruction", LONG, *more)
        assert f"'{OWN}' and bundle '{bundle}': {TOO_LONG}" in error
    elif case == "cameras":
        bundle = several_cameras_bundle.write_bundle(tmp_path / "two")
        error = refused(capsys, "eval", str(bundle), *more)
        assert "looks through 'camera1': expected it of the environment" in error
    else:
        bundle = several_cameras_bundle.write_bundle(tmp_path / "two")
        error = refused(capsys, "eval", str(bundle), "--env", "tests.own_envs:make_wide:7", *more)
        assert "expected it of the environment" in error
    assert not out.exists()


def test_a_policy_with_one_camera_sees_its_own() -> None:
    """Where the environment has one of its name; else the main image."""
    front = np.zeros((4, 4, 3), np.uint8)
    episode = SimpleNamespace(
        image=front, images={"front": front, "wrist": front + 7}, instruction="go"
    )

    def seen(name: str) -> int:
        images = ImagesSpec(cameras=(CameraSpec(name),), size=8)
        manifest = SimpleNamespace(name="one", images=images, state=None)
        observation = observe_for(episode, manifest)  # type: ignore[arg-type]
        return int(next(iter(observation.images.values()))[0, 0, 0])

    assert [seen(name) for name in ("image", "front", "wrist", "camera1")] == [0, 0, 7, 0]
