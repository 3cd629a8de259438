"""DB-CogACT agrees with the arrays that Dexbotic's classes gave, and a damaged policy does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from trimvla.export.reference.checks import compare_group
from trimvla.export.reference.dbcogact.directory import DbReference, left_out_when_exported
from trimvla.export.reference.dbcogact.groups import DBCOGACT, GROUPS
from trimvla.export.reference.staged import TorchRuns
from trimvla.policies.dbcogact.source import build
from trimvla.runtime.errors import ConfigError

INPUTS = ("action/noise", "action/noise_seed", "simpler/chunks", "simpler/frame")
"""Stored arrays that nothing computes; images besides."""


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> DbReference:
    path = shared_dir / "fixtures" / "dbcogact_tiny_a"
    if not path.exists():
        pytest.skip(f"no reference fixture at {path}")
    return DBCOGACT.open(path)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_group_agrees_with_the_public_code(reference, group) -> None:
    result = compare_group(group, reference)
    assert result.compared > 0
    assert not result.failed


def test_every_stored_array_is_compared(reference) -> None:
    left = {key for key in reference.arrays if not any(group.covers(key) for group in GROUPS)}
    assert left == {*INPUTS, *(key for key in left if "/image" in key)}


@pytest.mark.parametrize(
    ("weight", "group"),
    [
        ("language.layers.3.self_attn.k_proj.bias", "cognition"),
        ("vision.encoder.class_embedding", "vision"),
        ("head.z_embedder.uncondition", "ddim"),
    ],
)
def test_a_damaged_policy_is_found(reference, weight, group) -> None:
    weights = dict(reference.checkpoint.weights)
    weights[weight] = torch.zeros_like(weights[weight])
    damaged = replace(reference, policy=build(reference.policy.cfg, weights))
    row = next(row for row in GROUPS if row.name == group)
    assert compare_group(row, damaged).failed


def test_what_is_missing_is_said(reference, tmp_path) -> None:
    arrays = {key: value for key, value in reference.arrays.items() if key != "action/noise"}
    row = next(row for row in GROUPS if row.name == "ddim")
    (failure, *_) = compare_group(row, replace(reference, arrays=arrays)).failed
    assert "expected array 'action/noise', got none" in failure.reason
    bare = shutil.copytree(
        reference.directory,
        tmp_path / "reference",
        copy_function=shutil.copyfile,
        ignore=shutil.ignore_patterns("reference.npz"),
    )
    with pytest.raises(ConfigError, match="expected an archive of arrays"):
        DBCOGACT.open(bare)


def test_one_exported_head_serves_all_cameras_where_its_weights_are_the_same(
    reference, tmp_path
) -> None:
    exported = DBCOGACT.exported(reference, tmp_path, False)
    assert exported.two_pictures.head_of is exported
    assert reference.two_pictures.head_of is None
    weights = dict(reference.checkpoint.weights)
    name = "head.z_embedder.uncondition"
    weights[name] = torch.zeros_like(weights[name])
    damaged = replace(exported, policy=build(exported.policy.cfg, weights))
    assert damaged.two_pictures.head_of is None


class NotingRuns(TorchRuns):
    """Torch, with a note of each stage under each plan that was asked for."""

    def __init__(self, policy) -> None:
        super().__init__(policy)
        self.asked: set[tuple[str, bytes]] = set()

    def run(self, plan, stage, tensors):
        self.asked.add((stage.name, msgspec.json.encode(plan)))
        return super().run(plan, stage, tensors)


def test_no_stage_is_run_for_arrays_that_are_left_out(reference) -> None:
    left_out = left_out_when_exported(list(reference.arrays))
    assert left_out
    noting = replace(reference, left_out=left_out)
    runs = NotingRuns(reference.policy)
    vars(noting)["stages"] = runs
    for name in ("layerdrop", "evla_kept", "evla", "cache"):
        (group,) = (group for group in GROUPS if group.name == name)
        assert not compare_group(group, noting).failed
    names = sorted(name for name, _ in runs.asked)
    dense = ["action"]
    dropped = ["language"]  # once for layers, once for tokens
    reused = ["action", "action_full", "action_reuse"]
    assert names == sorted([*dense, *dropped, *dropped, *reused])


@pytest.mark.slow
def test_exported_stages_agree_too(reference, tmp_path) -> None:
    exported = DBCOGACT.exported(reference, tmp_path, False)
    assert exported.backend == "onnxruntime"
    for group in GROUPS:
        if group.staged:
            assert not compare_group(group, exported).failed, group.name
