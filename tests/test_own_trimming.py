"""Token selectors and criteria of one's own: in a plan, and refused in one error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny_policy import TINY, inputs, random_policy
from trimvla.policies.trimming import tokens
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.own import find_criterion, use_selector
from trimvla.policies.trimming.planner import Request, make_plan
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import ConfigError

HERE = "tests.test_own_trimming"
NOW = "2026-01-01T00:00:00+00:00"
PATCHES = 16


def by_edges(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    side = math.isqrt(seen.features.shape[1])
    grid = F.normalize(seen.features, dim=-1).unflatten(1, (side, side))
    scores = (1 - (grid * grid.roll(1, dims=2)).sum(dim=-1)).flatten(1)
    return tokens.raster(scores.topk(plan.keep, dim=-1).indices)


def by_relevance(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    assert seen.relevance is not None
    return tokens.raster(seen.relevance.topk(plan.keep, dim=-1).indices)


def one_too_many(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    return torch.arange(plan.keep + 1).expand(len(seen.features), -1)


def floats(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    return by_edges(plan, seen).float()


def descending(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    return by_edges(plan, seen).flip(1)


def beyond(plan: TokenPlan, seen: tokens.Seen) -> torch.Tensor:
    return by_edges(plan, seen) + 1000


def listed(plan: TokenPlan, seen: tokens.Seen) -> Any:
    return list(range(plan.keep))


def of_the_future(plan: TokenPlan) -> None: ...


def last_first(statistics: Any, seed: int) -> list[float]:
    return [float(index) for index in range(len(statistics.similarity))]


def too_few(statistics: Any, seed: int) -> list[float]:
    return [1.0]


def infinite(statistics: Any, seed: int) -> list[float]:
    return [math.inf] * len(statistics.similarity)


def sinking(statistics: Any, seed: int) -> list[float]:
    raise ValueError("no data")


@pytest.fixture(autouse=True)
def fresh_table() -> Any:
    before = dict(tokens.SELECTORS)
    yield
    tokens.SELECTORS.clear()
    tokens.SELECTORS.update(before)


@pytest.fixture(scope="module")
def policy() -> Any:
    torch.set_num_threads(1)
    return random_policy(TINY)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    side = TINY.image_size
    images = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    return Calibration(TINY.fingerprint, images, rng.integers(4, 64, (3, 12)), np.array([11, 8, 9]))


@pytest.mark.parametrize("name", ["by_edges", "by_relevance"])
def test_a_plan_may_name_one(name: str, policy: Any, calibration: Calibration) -> None:
    rows = "text" if name == "by_relevance" else "none"
    kept = TokenPlan(selector=f"{HERE}:{name}", keep=6, after=1, rows=rows)
    plan = make_plan(policy, calibration, Request(tokens=kept), NOW)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    with torch.no_grad():
        actions = trim(policy, plan)(*inputs(TINY))
    assert torch.isfinite(actions).all()


def test_a_plan_that_nobody_named_imports_nothing(policy: Any) -> None:
    plan = Plan(tokens=TokenPlan(selector=f"{HERE}:by_edges", keep=6, after=1))
    with pytest.raises(ConfigError, match="imported only where you name it: --selector"):
        trim(policy, plan)(*inputs(TINY))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_too_many", "expected int64[2, 6], ascending indices below 16 from"),
        ("one_too_many", "got int64[2, 7]"),
        ("floats", "got float32[2, 6]"),
        ("descending", "got indices that do not ascend"),
        ("beyond", "got indices from 10"),
        ("listed", "got list"),
        ("by_relevance", "failed: AssertionError"),
        ("of_the_future", "expected a function (plan, seen), got"),
        ("none", "expected 'none' in 'tests.test_own_trimming', found none"),
    ],
)
def test_what_is_no_selector(name: str, words: str) -> None:
    plan = TokenPlan(selector=f"{HERE}:{name}", keep=6, rows="none")
    with pytest.raises(ConfigError) as caught:
        use_selector(plan, PATCHES, "plan.json: tokens.selector")
    assert str(caught.value).startswith("plan.json: tokens.selector: ")
    assert words in str(caught.value)
    assert plan.selector not in tokens.SELECTORS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"selector": "best"}, "of your own, for 'selector' of 'tokens', got 'best'"),
        ({"selector": "a/b.py:c"}, "or module:attribute of your own, for 'selector' of 'tokens'"),
        ({"selector": "efficientvla", "rows": "none"}, "other 'rows' of 'tokens' than none"),
    ],
)  # fmt: skip
def test_what_no_plan_names(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenPlan(keep=6, **fields)


def test_a_criterion_decides_what_stays(policy: Any, calibration: Calibration) -> None:
    asked = Request(layers=1, criterion=f"{HERE}:last_first")
    plan = make_plan(policy, calibration, asked, NOW)
    assert plan.layers == (TINY.language.layers - 1,)
    assert plan.provenance is not None
    assert plan.provenance.criterion == f"{HERE}:last_first"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{HERE}:too_few", r"finite numbers from 'tests.test_own_trimming:too_few', got \[1.0\]"),
        (f"{HERE}:infinite", r"got \[inf"),
        (f"{HERE}:sinking", "failed: ValueError: no data"),
        (f"{HERE}:of_the_future", r"expected a function \(statistics, seed\)"),
        ("best", "random, reverse-order, or module:attribute of your own, for --criterion"),
    ],
)  # fmt: skip
def test_what_is_no_criterion(name: str, words: str, policy: Any, calibration: Calibration) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(policy, calibration, Request(criterion=name), NOW)


def test_ours_are_found() -> None:
    found: Callable[..., Any] = find_criterion("random", "--criterion")
    assert callable(found)
