"""Parts of a plan that only some families have: expert, several cameras, vision; and who refuses
them.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from trimvla.policies.sizes.config import find_preset
from trimvla.policies.trimming.tokens import Seen, check_cameras, even_quotas, select
from trimvla.policies.trimming.trimmed import check
from trimvla.runtime.bundle.plan import Plan, TokenPlan, load_plan, mask, save_plan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

FULL = Plan(
    layers=(0, 1, 3),
    channels=(mask([0, 5]),) * 3,
    expert_layers=(0, 3),
    expert_channels=(mask([1]), mask([2, 3])),
    tokens=TokenPlan(selector="relevance", keep=6, rows="state", source="expert", quotas=(4, 2)),
    vision=VisionPlan(
        image_size=256, blocks=((0, 1, 3), (0,)), patches=PatchPlan(keep=9, after=1, seed=2)
    ),
    steps=5,
)


def test_a_plan_with_every_part_survives_its_file(tmp_path) -> None:
    save_plan(FULL, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == FULL
    assert not FULL.dense
    assert {"expert_layers", "tokens.quotas", "vision.patches", "steps"} <= FULL.parts
    assert Plan(policy="x").parts == frozenset()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_layers": [2, 1]}, "rising indices.*'expert_layers'"),
        ({"layers": [0, 1], "expert_layers": [0, 2]}, r"'expert_layers' among 'layers'.*\[2\]"),
        ({"expert_channels": ["0"]}, "mask with a bit set for 'expert_channels'"),
        ({"vision": {"image_size": 0}}, "1 to 16384 for 'image_size' of 'vision'"),
        ({"vision": {"blocks": []}}, "a list of blocks for each"),
        ({"vision": {"blocks": [[0, 1], [3, 3]]}}, r"rising indices.*'blocks\[1\]' of 'vision'"),
        ({"vision": {"patches": {"keep": 0, "after": 1}}}, "'keep' of 'vision.patches'"),
        ({"vision": {"patches": {"keep": 4}}}, "after"),
        ({"tokens": {"keep": 4, "quotas": [1, 2]}}, "together the 4 tokens.*'quotas'"),
        ({"tokens": {"keep": 4, "quotas": [5, -1]}}, "numbers from 0 on.*'quotas'"),
        (
            {"tokens": {"keep": 4, "selector": "relevance", "quotas": [2, 2], "floor": 1}},
            "either 'quotas' or 'floor'",
        ),
        ({"tokens": {"keep": 4, "floor": 1}}, "ranks by relevance alone.*'efficientvla'"),
    ],
)
def test_what_is_wrong_with_a_part_is_said(tmp_path, fields: dict[str, Any], message: str) -> None:
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(fields))
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(expert_layers=(0,)), r"nothing to trim by \['expert_layers'\]"),
        (Plan(expert_channels=("1",)), r"\['expert_channels'\]"),
        (Plan(vision=VisionPlan(image_size=96)), "vision.image_size"),
        (Plan(tokens=TokenPlan(keep=8, quotas=(8,))), r"\['tokens.quotas'\]"),
        (Plan(tokens=TokenPlan(keep=8, selector="relevance", floor=2)), r"\['tokens.floor'\]"),
        (Plan(tokens=TokenPlan(keep=8, rows="state")), "neither a state nor an action expert"),
        (Plan(tokens=TokenPlan(keep=8, source="expert")), "neither a state nor an action expert"),
    ],
)
def test_a_family_refuses_what_it_does_not_have(plan: Plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(plan, find_preset("tabletop"))


def seen(cameras: int, tokens: int = 9, seed: int = 0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    count = cameras * tokens
    features = torch.randn(2, count, 4, generator=generator)
    return Seen(features, torch.rand(2, count, generator=generator), cameras)


@pytest.mark.parametrize("selector", ["efficientvla", "relevance", "random", "uniform"])
def test_quotas_are_kept_of_each_camera(selector: Any) -> None:
    kept = select(TokenPlan(keep=7, selector=selector, quotas=(4, 0, 3)), seen(3))
    assert kept.shape == (2, 7)
    assert bool((kept.diff(dim=1) > 0).all())
    cameras = kept // 9
    assert torch.equal(cameras.sum(dim=1), torch.tensor([6, 6]))
    assert bool(((cameras == 0).sum(dim=1) == 4).all())


def test_quotas_keep_the_best_of_each_camera() -> None:
    there = seen(2)
    assert there.relevance is not None
    kept = select(TokenPlan(keep=5, selector="relevance", quotas=(2, 3)), there)
    for row, scores in zip(kept, there.relevance, strict=True):
        first = scores[:9].topk(2).indices.sort().values
        second = scores[9:].topk(3).indices.sort().values + 9
        assert torch.equal(row, torch.cat([first, second]))


def test_without_quotas_the_best_of_all_are_kept_and_a_floor_of_each() -> None:
    features = torch.zeros(1, 18, 4)
    relevance = torch.arange(18.0, 0.0, -1.0)[None]  # the first camera is looked at most
    there = Seen(features, relevance, cameras=2)
    alone = select(TokenPlan(keep=6, selector="relevance"), there)
    assert alone.tolist() == [[0, 1, 2, 3, 4, 5]]
    floor = select(TokenPlan(keep=6, selector="relevance", floor=2), there)
    assert floor.tolist() == [[0, 1, 2, 3, 9, 10]]


def test_a_grid_is_one_a_camera() -> None:
    assert even_quotas(7, 3) == (2, 2, 3)
    kept = select(TokenPlan(keep=8, selector="uniform"), seen(2))
    assert torch.equal(kept[:, 4:], kept[:, :4] + 9)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (TokenPlan(keep=19, key=1), "at most 18 visual tokens"),
        (TokenPlan(keep=6, quotas=(2, 2, 2)), "for 2 cameras, got 3"),
        (TokenPlan(keep=12, quotas=(10, 2)), "at most 9, the tokens of a camera"),
        (TokenPlan(keep=6, selector="fastv", floor=4), "'floor'.*at most 3 for 2 cameras"),
    ],
)
def test_more_than_a_camera_has_is_refused(plan: TokenPlan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cameras(plan, cameras=2, tokens=9)
