"""`trimvla train`: its curve, its description of a run, its errors. Training itself has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_policy import TINY
from trimvla.launch import cli
from trimvla.launch.train import CURVES, Args, describe, draw_curve
from trimvla.policies.config import PolicyConfig
from trimvla.policies.train import Recipe, Trainer
from trimvla.sim.demonstrations import AUX, FIRST_SEED


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_the_curve_is_a_picture(steps: int, tmp_path: Path) -> None:
    history = [{"step": float(step), **dict.fromkeys(CURVES, 1 / step)} for step in range(1, steps + 1)]
    with Image.open(draw_curve(history, tmp_path / "loss.png")) as picture:
        assert picture.width > picture.height


def test_wrong_arguments_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--steps", "0", "--shards", "0", "--json"]) == 1
    assert "--shards, --steps" in capsys.readouterr().err


def test_a_run_can_be_made_again_from_its_description() -> None:
    recipe = Recipe(steps=5, seed=3, compile=False)
    described = json.loads(json.dumps(describe(Args(shards=2, corrections=3), Trainer(TINY, recipe, AUX), frames=10)))
    assert PolicyConfig.from_dict(described["policy"]) == TINY
    assert described["recipe"]["steps"] == 5
    assert described["recipe"]["seed"] == 3
    assert described["data"] == {
        "shards": 2,
        "corrections": 3,
        "episodes_per_shard": 100,
        "first_seed": FIRST_SEED,
        "frames": 10,
    }
