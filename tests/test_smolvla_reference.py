"""SmolVLA against what LeRobot's own classes gave: every array of the reference directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from trimvla.export.reference.checks import compare_group
from trimvla.export.reference.groups import Group
from trimvla.export.reference.smolvla.directory import SmolVlaReference, open_reference
from trimvla.export.reference.smolvla.groups import GROUPS, SMOLVLA
from trimvla.export.reference.staged import made_of, trimmed
from trimvla.policies.families import find_family, load
from trimvla.policies.smolvla.stages import stages
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.vision_plan import VisionPlan
from trimvla.runtime.errors import ConfigError

READ = ("in/noise", "in/observation.*", "layers/*/kept", "time/t")  # what others are made from


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Path:
    path = shared_dir / "fixtures" / "smolvla_tiny_a"
    if not path.is_dir():
        pytest.skip("the reference fixture smolvla_tiny_a is not here")
    return path


@pytest.fixture(scope="module")
def reference(fixture: Path) -> SmolVlaReference:
    torch.set_num_threads(1)
    return open_reference(fixture)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_array_of_the_group_is_within_its_tolerance(
    reference: SmolVlaReference, group: Group
) -> None:
    found = compare_group(group, reference)
    assert not found.failed
    assert found.compared


def test_every_stored_array_is_compared_or_is_what_others_are_made_from(
    reference: SmolVlaReference,
) -> None:
    read = Group("read", READ, 0.0, lambda _ref: iter(()))
    left = [key for key in reference.keys if not any(g.covers(key) for g in (*GROUPS, read))]
    assert left == []


def test_the_row_of_the_family_names_these_groups() -> None:
    assert load(find_family("smolvla").reference) is SMOLVLA


@torch.no_grad()
def test_another_weight_is_seen_where_it_acts(fixture: Path) -> None:
    ref = open_reference(fixture)
    ref.policy.expert.layers[1].get_parameter("mlp.down_proj.weight").add_(1e-2)
    failed = {group.name for group in GROUPS if compare_group(group, ref).failed}
    assert {"velocity", "sample", "actions", "cache", "tokens", "layers", "time"} <= failed
    assert not failed & {"pixels", "vision", "prefix", "cross", "embeddings", "schedule", "kept"}


def test_padding_is_no_part_of_the_comparison_but_everything_else_is(
    reference: SmolVlaReference,
) -> None:
    group = next(group for group in GROUPS if group.name == "prefix")
    keys = reference.array("prefix/keys").copy()
    padded = int(np.flatnonzero(~reference.valid)[0])
    keys[:, padded] += 1.0
    moved = dataclasses.replace(reference, arrays={**reference.arrays, "prefix/keys": keys})
    assert not compare_group(group, moved).failed
    keys[:, padded - 1] += 1.0
    assert compare_group(group, moved).failed


def test_a_directory_without_images_of_its_cameras_is_refused(
    fixture: Path, tmp_path: Path
) -> None:
    for path in fixture.iterdir():
        if path.name != "reference.npz":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ConfigError, match=r"an archive of arrays in .*reference.npz"):
        open_reference(tmp_path)
    np.savez(tmp_path / "reference.npz", noise=np.zeros(1))
    with pytest.raises(ConfigError, match=r"cameras \['camera1', 'camera2'\] below 'in/'"):
        open_reference(tmp_path)


def test_plans_that_leave_vision_whole_share_its_graph_and_no_other(
    reference: SmolVlaReference,
) -> None:
    def parts(stage: int, plan: Plan) -> list[object]:
        policy = trimmed(reference.policy, plan)
        modules.append(stages(reference.cfg, plan)[stage].module(policy))
        return made_of(modules[-1])

    modules: list[torch.nn.Module] = []  # kept, so that no identity is given twice
    reused = Plan(recompute=(0, 5))
    blocks = Plan(vision=VisionPlan(blocks=((0,),)))
    assert parts(0, Plan()) == parts(0, reused)
    assert parts(0, Plan()) != parts(0, blocks)
    for stage in (1, 2):
        assert parts(stage, Plan()) != parts(stage, reused)
