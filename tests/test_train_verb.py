"""`trimvla train`: its curve, its description of a run, its errors.

Training itself has tests of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_policy import TINY
from trimvla.launch import cli
from trimvla.launch.result import as_plain
from trimvla.launch.training.method import COGACT
from trimvla.launch.training.options import Args
from trimvla.launch.training.presets import training_presets
from trimvla.launch.training.steps import describe, draw_curve
from trimvla.policies.cogact.tokenizer import prompt_ids
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.training.trainer import Recipe, Trainer
from trimvla.runtime.errors import ConfigError
from trimvla.sim.simpler.demonstrations import INSTRUCTIONS
from trimvla.sim.tabletop.demonstrations import AUX, FIRST_SEED


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_the_curve_is_a_picture(steps: int, tmp_path: Path) -> None:
    history = [
        {"step": float(step), **dict.fromkeys(COGACT.curves, 1 / step)}
        for step in range(1, steps + 1)
    ]
    with Image.open(draw_curve(history, tmp_path / "loss.png", COGACT.curves)) as picture:
        assert picture.width > picture.height


def test_wrong_arguments_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--steps", "0", "--shards", "0", "--json"]) == 1
    assert "--shards, --steps" in capsys.readouterr().err


def test_an_unknown_task_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--preset", "widowx", "--tasks", "no_such", "--json"]) == 1
    assert "widowx_stack_cube" in capsys.readouterr().err
    assert cli.main(["train", "--tasks", "widowx_stack_cube", "--json"]) == 1
    assert "none for --preset tabletop" in capsys.readouterr().err


def test_the_widowx_recipe_starts_from_the_tabletops_words() -> None:
    args = Args(preset="widowx", steps=7)
    assert (args.folder, args.recipe.steps, args.recipe.sentences) == (Path("runs/widowx"), 7, 1)
    cfg = PRESETS["widowx"]
    tokenizer = training_presets()["widowx"].tokenizer(cfg)
    for sentence in INSTRUCTIONS:
        ids = prompt_ids(tokenizer, cfg.prompt, sentence)
        assert len(ids) <= cfg.prompt.buckets[0]
        assert max(ids) < cfg.language.vocab


def test_a_run_can_be_made_again_from_its_description() -> None:
    recipe = Recipe(steps=5, seed=3, compile=False)
    described = json.loads(
        json.dumps(
            as_plain(describe(Args(shards=2, corrections=3), Trainer(TINY, recipe, AUX), frames=10))
        )
    )
    assert PolicyConfig.from_dict(described["policy"]) == TINY
    assert described["recipe"]["steps"] == 5
    assert described["recipe"]["seed"] == 3
    assert described["data"] == {
        "shards": 2,
        "tasks": [],
        "corrections": 3,
        "episodes_per_shard": 100,
        "first_seed": FIRST_SEED,
        "frames": 10,
    }


def test_a_run_goes_on_with_its_own_recipe_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked through the verb, and before any demonstration is made."""
    Trainer(PRESETS["tabletop"], Args(learning_rate=0.001).recipe, AUX).save(tmp_path / "state.pt")
    words = ["train", "--run", str(tmp_path), "--shards", "1"]
    assert cli.main([*words, "--learning-rate", "0.002", "--pictures", "3"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "learning_rate 0.001 there and 0.002 now; pictures 24 there and 3 now" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt"]


def test_a_longer_run_is_the_same_run(tmp_path: Path) -> None:
    Trainer(TINY, Recipe(steps=5, compile=False), AUX).save(tmp_path / "state.pt")
    longer = Trainer(TINY, Recipe(steps=9, compile=False), AUX)
    longer.resume(tmp_path / "state.pt")
    assert longer.recipe.steps == 9


def test_weights_that_a_run_began_with_are_in_its_description(tmp_path: Path) -> None:
    recipe = Recipe(steps=5, compile=False)
    begun, other, later = (Trainer(TINY, recipe, AUX) for _ in range(3))
    begun.start_from(begun.averaged_policy(), {"name": "one.safetensors", "sha256": "01"})
    begun.save(tmp_path / "state.pt")
    later.resume(tmp_path / "state.pt")
    assert describe(Args(), later, frames=10).weights == {
        "name": "one.safetensors",
        "sha256": "01",
    }
    other.start_from(other.averaged_policy(), {"name": "two.safetensors", "sha256": "02"})
    with pytest.raises(ConfigError, match=r"--weights one\.safetensors there and two\.safetensors"):
        other.resume(tmp_path / "state.pt")


WRONG_PRESETS = {
    "tablestop": "expected one of tabletop, tabletop-flow,",
    "no_such_module:preset": "expected a module 'no_such_module'",
    "json:no_such_name": "no_such_name",
    "json:dumps": "--preset: expected a TrainingPreset, got function as 'json:dumps'",
}


@pytest.mark.parametrize("name", WRONG_PRESETS)
def test_a_preset_that_is_none_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--preset", name]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert WRONG_PRESETS[name] in text
    assert "--preset" in text and "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_preset_of_ones_own_is_imported_and_names_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_presets_of_this_test.py").write_text(
        "from dataclasses import replace\n"
        "from trimvla.launch.training.presets import training_presets\n"
        "tabletop = training_presets()['tabletop']\n"
        "short = replace(tabletop, recipe=replace(tabletop.recipe, steps=3), tasks=('a', 'b'))\n"
    )
    monkeypatch.chdir(tmp_path)
    args = Args(preset="own_presets_of_this_test:short", tasks=("b",))
    assert (args.folder, args.recipe.steps) == (Path("runs/short"), 3)
    with pytest.raises(ConfigError, match=r"--tasks out of \['a', 'b'\]"):
        replace(args, tasks=("c",)).check_tasks()
