"""pi0 and pi0.5 checkpoints: LeRobot's files and openpi's PyTorch ones, and everything that is
refused about them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import family_of, find_preset, recognise
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.layout import build_meta, dead_names, official_parameters
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.sizes.roofline import find_device, floors_ms
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import CheckpointError, ConfigError

FIXTURES = ("pi0_tiny_a", "pi05_tiny_a")
WEIGHTS = "model.safetensors"
NORM = "paligemma_with_expert.paligemma.model.language_model.layers.0.input_layernorm.weight"

TABLE_STORED = "paligemma_with_expert.paligemma.lm_head.weight"  # of the tied table

Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(params=FIXTURES)
def fixture(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / request.param


@pytest.fixture
def copied(fixture: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that may be changed."""
    directory = tmp_path / "copy"
    shutil.copytree(fixture, directory, ignore=shutil.ignore_patterns("*.npz", "*.png"))
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755)
    return directory


def opened(directory: Path, **options: str) -> Checkpoint:
    return recognise(directory).open_checkpoint(directory, **options)


def change_weights(directory: Path, change: Change) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def change_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def as_openpi(directory: Path) -> None:
    """The same policy as openpi's converter writes it."""
    tensors = {name.removeprefix("model."): t for name, t in load_file(directory / WEIGHTS).items()}
    stored = load_file(next(directory.glob("policy_preprocessor_step_*.safetensors")))
    config = json.loads((directory / "config.json").read_text())
    for path in directory.glob("policy_*"):
        path.unlink()
    save_file(tensors, directory / WEIGHTS)
    features = {"state": "observation.state", "actions": "action"}
    names = ("mean", "std", "q01", "q99")
    table = {
        ours: {name: stored[f"{theirs}.{name}"].tolist() for name in names}
        for ours, theirs in features.items()
    }
    (directory / "assets" / "lab").mkdir(parents=True)
    (directory / "assets" / "lab" / "norm_stats.json").write_text(json.dumps({"norm_stats": table}))
    openpi = {
        "action_dim": config["max_action_dim"],
        "action_horizon": config["chunk_size"],
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "float32",
    }
    (directory / "config.json").write_text(json.dumps(openpi))


def test_the_policy_gives_the_stored_sample(fixture: Path) -> None:
    checkpoint = opened(fixture)
    policy = family_of(checkpoint.cfg).build(checkpoint.cfg, checkpoint.weights)
    assert isinstance(policy, Pi0)
    with np.load(fixture / "reference.npz") as arrays:
        stored = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    pixels = [stored[f"pixels_openpi/observation.images.{name}"] for name in checkpoint.cameras]
    images = (torch.cat(pixels).permute(0, 2, 3, 1) + 1.0) / 2.0
    length = stored["current/language_mask"].sum(dim=1)
    state = stored.get("in/state_padded")
    with torch.no_grad():
        sample = policy(images, stored["current/input_ids"], length, stored["in/noise"], state)
    assert (sample - stored["current/x_final"]).abs().max() < 1e-4


def test_openpis_files_hold_the_same_policy(fixture: Path, copied: Path) -> None:
    as_openpi(copied)
    ours = opened(fixture)
    theirs = opened(copied)
    assert theirs.cfg.family == ours.cfg.family
    assert (theirs.cfg.state_dim, theirs.cfg.action_dim) == (6, 7)
    assert theirs.statistics_key == "lab"
    assert set(ours.weights) == set(theirs.weights)
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    images = family_of(theirs.cfg).describe(theirs, Plan()).images
    assert (images.resize, images.dtype) == ("bilinear-antialias", "uint8")


def test_the_layout_names_every_weight_of_ours(fixture: Path) -> None:
    cfg = opened(fixture).cfg
    live, dead = family_of(cfg).layout(cfg)
    assert sorted(live.values()) == sorted(build_meta(cfg).state_dict())
    assert not dead & set(live) - {TABLE_STORED}


def test_dead_weights_are_not_needed(copied: Path) -> None:
    cfg = opened(copied).cfg
    dead = {f"model.{name}" for name in dead_names(cfg)} - {
        "model.paligemma_with_expert.paligemma.lm_head.weight"
    }

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        assert dead & set(tensors)
        for name in dead & set(tensors):
            del tensors[name]

    change_weights(copied, drop)
    assert opened(copied).cfg == cfg


def test_the_tied_table_may_be_stored_under_its_own_name(copied: Path) -> None:
    head = "model.paligemma_with_expert.paligemma.lm_head.weight"
    table = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    stored = load_file(copied / WEIGHTS)[head]
    change_weights(copied, lambda tensors: tensors.update({table: tensors.pop(head)}))
    assert torch.equal(opened(copied).weights["language.embed_tokens.weight"], stored)


def _without(name: str) -> Change:
    return lambda tensors: tensors.pop(f"model.{name}")


def _with(name: str, tensor: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({f"model.{name}": tensor})


def _old_names(tensors: dict[str, torch.Tensor]) -> None:
    """As LeRobot up to 0.3.3 has them."""
    for name in list(tensors):
        old = name.replace("paligemma.model.language_model.", "paligemma.language_model.model.")
        tensors[old] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(NORM), rf"1 missing weight\(s\): 'model.{NORM}'"),
        (_without("action_out_proj.bias"), "1 missing weight.*action_out_proj.bias"),
        (
            _with("adapter.weight", torch.zeros(2)),
            r"1 unexpected weight\(s\): 'model.adapter.weight'",
        ),
        (_with(NORM, torch.zeros(7)), rf"expected \[64\], got \[7\] for 'model.{NORM}'"),
        (_with(NORM, torch.zeros(64, dtype=torch.int8)), "floating-point weights, got I8"),
        (_old_names, r"LeRobot 0\.3\.3 and earlier wrote this file"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copied: Path, change: Change, message: str) -> None:
    change_weights(copied, change)
    with pytest.raises(CheckpointError, match=message):
        opened(copied)


def test_heads_that_no_file_shows_are_asked_for(copied: Path) -> None:
    (copied / "architecture.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"architecture\.json: expected the number of heads under 'vision'"
    ):
        opened(copied)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_size": 0}, "expected a number from 1 on for 'chunk_size', got 0"),
        (
            {"image_resolution": [224, 224]},
            r"expected image_resolution \[56, 56\].*got \[224, 224\]",
        ),
        ({"min_period": "short"}, "expected a number above 0 for 'min_period', got 'short'"),
        ({"input_features": {}}, "at least one camera"),
        (
            {"output_features": {"action": {"type": "ACTION", "shape": [64]}}},
            "action_dim from 1 to",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    copied: Path, fields: dict[str, object], message: str
) -> None:
    change_config(copied, **fields)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        opened(copied)


def test_a_preset_of_other_sizes_is_refused(fixture: Path) -> None:
    cfg = opened(fixture).cfg
    with pytest.raises(ConfigError, match=f"sizes of --preset {cfg.family}"):
        opened(fixture, preset=cfg.family)
    with pytest.raises(ConfigError, match="expected --preset as one of"):
        opened(fixture, preset="cogact-base")


def test_empty_cameras_are_no_cameras(copied: Path) -> None:
    features = json.loads((copied / "config.json").read_text())["input_features"]
    empty = {"type": "VISUAL", "shape": [3, 56, 56]}
    change_config(copied, input_features=features | {"observation.images.empty_camera_0": empty})
    assert opened(copied).cameras == ("base", "wrist")


def test_a_missing_tokenizer_is_none_and_the_hint_says_where_it_is(copied: Path) -> None:
    shutil.rmtree(copied / "tokenizer")
    checkpoint = opened(copied)
    assert checkpoint.tokenizer is None
    assert "google/paligemma-3b-pt-224" in family_of(checkpoint.cfg).tokenizer_hint


@pytest.mark.parametrize(
    ("preset", "acting", "published", "gflops", "prompt"),
    [("pi0", 3.13e9, 3.50e9, 4196, 48), ("pi05", 3.24e9, 3.62e9, 4806, 200)],
)
def test_costs_of_the_published_sizes(
    preset: str, acting: float, published: float, gflops: float, prompt: int
) -> None:
    cfg: Pi0Config = find_preset(preset)
    counted = family_of(cfg).cost(cfg, Plan(), prompt=prompt)
    built = sum(math.prod(p.shape) for p in build_meta(cfg).parameters())
    assert counted.acting_parameters == built
    assert counted.parameters == official_parameters(cfg)
    assert counted.acting_parameters == pytest.approx(acting, rel=0.002)
    assert counted.parameters == pytest.approx(published, rel=0.002)
    assert counted.flops == pytest.approx(gflops * 1e9, rel=0.003)


@pytest.mark.parametrize(
    ("preset", "prompt", "vision", "language", "action"),
    [("pi0", 48, 15.5, 74.1, 30.7), ("pi05", 200, 15.5, 88.4, 30.7)],
)
def test_floors_on_orin_are_those_of_the_sizes(
    preset: str, prompt: int, vision: float, language: float, action: float
) -> None:
    """pi0.5's with its modulations folded into constants: 42.0 ms of action without."""
    cfg: Pi0Config = find_preset(preset)
    counted = family_of(cfg).cost(cfg, Plan(), prompt=prompt)
    floors = floors_ms(counted, find_device("orin"))
    assert floors["vision"] == pytest.approx(vision, rel=0.01)
    assert floors["language"] == pytest.approx(language, rel=0.01)
    assert floors["action"] == pytest.approx(action, rel=0.01)
