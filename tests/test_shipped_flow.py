"""The shipped policy of pi0's shape: its bundle plays with two cameras and state."""

from __future__ import annotations

import json

import pytest

from trimvla.launch import cli
from trimvla.runtime.bundle import manifest as bundles

NAME = "tabletop-flow"
EPISODES = 5
AT_LEAST = 3  # 4 are expected


def test_it_reads_two_cameras_and_the_state() -> None:
    manifest = bundles.load(bundles.resolve(NAME))
    assert [camera.name for camera in manifest.images.cameras] == ["front", "wrist"]
    assert manifest.state is not None
    assert manifest.plan.dense


def test_it_does_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", NAME, "--episodes", str(EPISODES), "--execute", "4", "--workers", "1"]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["successes"] >= AT_LEAST
