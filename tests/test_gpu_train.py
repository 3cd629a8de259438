"""Training where only torch is installed: packed shards are the shards, and a short run leaves what
can be shipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimvla.launch.training.gpu_train import NOUNS, pack, pack_all, unpack, unpack_shard
from trimvla.launch.training.presets import training_presets
from trimvla.policies.cogact import checkpoint
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.training.dataset import read_shard
from trimvla.policies.training.pictures import pictures_of
from trimvla.policies.training.trainer import Trainer
from trimvla.sim.simpler.shard import Shard

ROOT = Path(__file__).parent.parent


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0, 1))
def test_packing_loses_nothing(seed: int, count: int, moving: float) -> None:
    rng = np.random.default_rng(seed)
    images = np.repeat(rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8), count, axis=0)
    mask = rng.random(images.shape) < moving
    images[mask] = rng.integers(0, 256, int(mask.sum()), dtype=np.uint8)
    assert np.array_equal(unpack(**pack(images), count=count), images)


def write_run(place: Path) -> tuple[Path, Path]:
    """A shard of noise and a run to go on from, as `trimvla train` leaves it."""
    rng = np.random.default_rng(0)
    cfg = PRESETS["widowx"]
    preset = training_presets()["widowx"]
    demos = place / "demos"
    run = place / "run"
    demos.mkdir()
    run.mkdir()
    np.savez(
        demos / "noise-0000.npz",
        images=rng.integers(0, 256, (8, 128, 128, 3), dtype=np.uint8),
        chunks=rng.standard_normal((8, 1, 16, 7), dtype=np.float32),
        aux=rng.standard_normal((8, 1, 12), dtype=np.float32),
        points=rng.random((8, 1, 2, 2), dtype=np.float32),
        texts=np.array([["put carrot on plate"]] * 8),
    )
    preset.tokenizer(cfg).save(str(run / "tokenizer.json"))
    bounds = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}}
    (run / "statistics.json").write_text(json.dumps({"widowx": bounds}))
    checkpoint.save(
        Trainer(cfg, preset.recipe, 13).averaged_policy(),
        run / "policy.safetensors",
        dtype=torch.float16,
    )
    (run / "recipe.json").write_text((ROOT / "docs/results/widowx/recipe.json").read_text())
    return demos, run


@pytest.mark.slow
def test_a_run_goes_on_where_nothing_is_installed(tmp_path: Path) -> None:
    demos, run = write_run(tmp_path)
    before = (run / "policy.safetensors").read_bytes()
    script = ROOT / "launch/bare.sh"
    packed = tmp_path / "packed"
    options = ["--device", "cpu", "--seconds", "0.1", "--pictures", "1"]
    for words in (["pack", demos, packed], ["fit", packed, run, *options]):
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(
            [script, "training.gpu_train", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "8 pictures after" in done.stdout
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["steps"], recipe["recipe"]["pictures"], recipe["frames"], recipe["device"]) == (
        1,
        1,
        8,
        "cpu",
    )
    assert (run / "policy.safetensors").read_bytes() != before
    checkpoint.load(run / "policy.safetensors", PRESETS["widowx"])


def test_nouns_are_the_training_presets() -> None:
    assert tuple(NOUNS.split(",")) == training_presets()["widowx"].nouns


def test_a_run_with_a_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.pt").touch()
    words = [
        ROOT / "launch/bare.sh",
        "training.gpu_train",
        "fit",
        tmp_path,
        tmp_path,
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "state.pt" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    words = [
        ROOT / "launch/bare.sh",
        "training.gpu_train",
        "fit",
        tmp_path,
        tmp_path,
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "recipe.json" in done.stderr and "Traceback" not in done.stderr


def test_a_shard_of_a_still_camera_is_packed_as_it_is(tmp_path: Path) -> None:
    demos = tmp_path / "demos"
    demos.mkdir()
    background = np.zeros((8, 8, 3), np.uint8)
    shard = Shard(background)
    for value in (0, 7):
        shard.add_picture(background + np.uint8(value))
    shard.chunks = [np.zeros((1, 16, 7), np.float32)] * 2
    shard.aux = [np.zeros((1, 12), np.float32)] * 2
    shard.points = [np.zeros((1, 2, 2), np.float32)] * 2
    shard.joints = [np.zeros(8, np.float32)] * 2
    shard.tool = [np.zeros(7, np.float32)] * 2
    shard.states = [np.zeros(17)] * 2
    shard.texts = [["put carrot on plate"]] * 2
    shard.save(demos / "still-0000.npz")
    packed = tmp_path / "packed"
    pack_all(demos, packed)
    [path] = packed.iterdir()
    assert path.read_bytes() == (demos / "still-0000.npz").read_bytes()
    assert unpack_shard(tmp_path, path) == path
    assert pictures_of(read_shard(path), 8).picture(1).min() == 7
