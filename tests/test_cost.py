"""The cost model: against the published table, against the real modules, and what it refuses."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from tiny_policy import TINY
from torch.utils.flop_counter import FlopCounterMode

from trimvla.launch import cli
from trimvla.policies.cogact.layout import build_meta, official_parameters
from trimvla.policies.nn.cachers import every
from trimvla.policies.sizes import cost
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.errors import ConfigError

BASE = PRESETS["cogact-base"]

# EfficientVLA (arXiv 2506.10100), table 1: language layers, visual tokens, parameters [G], share of
# dense FLOPs [%]
PAPER = ((22, 56, 4.86, 28.9), (28, 56, 5.87, 32.9), (22, 112, 4.86, 38.2), (28, 112, 5.87, 45.1))


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def share(result: CostReport) -> float:
    return 100 * result.flops / cost.report(BASE, cost.shape_by_counts(BASE)).flops


@pytest.mark.parametrize(("layers", "tokens", "parameters", "percent"), PAPER)
def test_published_points(layers, tokens, parameters, percent):
    shape = cost.shape_by_counts(
        BASE, layers=layers, mlp_keep=0.75, tokens=TokenPlan(keep=tokens), cache_interval=5
    )
    result = cost.report(BASE, shape)
    assert result.parameters / 1e9 == pytest.approx(parameters, rel=5e-3)
    assert share(result) == pytest.approx(percent, abs=1.5)


def test_published_baselines():
    assert cost.report(BASE, cost.shape_by_counts(BASE)).parameters / 1e9 == pytest.approx(
        7.63, rel=5e-3
    )
    fastv = cost.shape_by_counts(BASE, tokens=TokenPlan(keep=56, selector="fastv"))
    assert share(cost.report(BASE, fastv)) == pytest.approx(42.0, abs=1.5)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_modules_and_of_the_published_file(name):
    cfg = PRESETS[name]
    stages = cost.stage_costs(cfg, cost.shape_by_counts(cfg), 32)
    policy = build_meta(cfg)
    for part in ("vision", "language"):
        assert stages[part].parameters == sum(p.numel() for p in getattr(policy, part).parameters())
    assert stages["action"].parameters == sum(p.numel() for p in policy.head.parameters())
    assert cost.report(cfg, cost.shape_by_counts(cfg)).parameters == official_parameters(cfg)


def all_on(cfg: PolicyConfig, tokens: TokenPlan) -> Plan:
    layers = tuple(index for index in range(cfg.language.layers) if index != 1)
    kept = mask(range(0, cfg.language.mlp_hidden - cfg.language.mlp_hidden // 4))
    steps = cfg.diffusion.inference_steps
    return Plan(
        layers=layers,
        channels=(kept,) * len(layers),
        tokens=tokens,
        recompute=every(steps // 2, steps),
    )


def small(name: str) -> PolicyConfig:
    """A config with more layers than TINY, so that tokens may go."""
    language = msgspec.structs.replace(TINY.language, layers=5)
    return msgspec.structs.replace(TINY, name=name, language=language)


TOKENS = (
    TokenPlan(keep=8, key=2),
    TokenPlan(keep=8, key=2, source="next"),
    TokenPlan(keep=8, selector="fastv"),
    TokenPlan(keep=8, selector="uniform"),
    TokenPlan(keep=8, selector="random", after=1),
)
PLANS = [
    ("dense", Plan()),
    *((f"{t.selector}-{t.source}", all_on(small("small"), t)) for t in TOKENS),
]


@pytest.mark.parametrize("plan", [plan for _, plan in PLANS], ids=[name for name, _ in PLANS])
def test_operations_are_those_of_the_modules(plan):
    check_operations(small("small"), plan, prompt=12)


@pytest.mark.parametrize(
    "plan", [Plan(), all_on(BASE, TokenPlan(keep=56))], ids=["dense", "trimmed"]
)
def test_operations_of_the_full_size_modules(plan):
    check_operations(BASE, plan, prompt=32)


def check_operations(cfg: PolicyConfig, plan: Plan, prompt: int) -> None:
    """Count on the meta device, stage by stage."""
    policy = trim(build_meta(cfg), plan)
    expected = cost.stage_costs(cfg, cost.shape_of(cfg, plan), prompt)
    side = cfg.image_size
    head = cfg.head
    width = cfg.language.width
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, side, side, 3, dtype=torch.uint8)
        visual = torch.empty(1, cfg.patches, width)
        ids = torch.empty(1, prompt, dtype=torch.int64)
        last = torch.empty(1, dtype=torch.int64)
        cognition = torch.empty(1, width)
        noise = torch.empty(1, head.horizon, head.action_dim)
        calls = {
            "vision": lambda: policy.vision(image),
            "language": lambda: policy.language.cognition(visual, ids, last),
            "action": lambda: policy.act(cognition, noise),
        }
        for stage, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            assert expected[stage].flops == pytest.approx(counter.get_total_flops(), rel=0.01), (
                stage
            )
    parts = (policy.vision, policy.language, policy.head)
    for stage, module in zip(("vision", "language", "action"), parts, strict=True):
        assert expected[stage].parameters == sum(p.numel() for p in module.parameters())


def test_the_verb_prints_what_the_model_says(capsys: pytest.CaptureFixture[str]):
    words = (
        "cost --preset cogact-base --layers 22 --mlp-keep 0.75 --tokens 56 --cache-interval 5"
        " --json"
    )
    assert cli.main(words.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["parameters"] / 1e9 == pytest.approx(4.86, rel=5e-3)
    assert result["flops"] == sum(stage["flops"] for stage in result["stages"].values())
    assert result["weight_bytes"] == sum(
        stage["weight_bytes"] for stage in result["stages"].values()
    )
    assert result["ratio_to_dense"]["flops"] == pytest.approx(0.289, abs=0.015)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 33}, "from 1 to 32 language layers"),
        ({"mlp_keep": 0.0}, "share of MLP channels"),
        ({"cache_interval": 11}, "cache interval from 1 to 10"),
        ({"tokens": TokenPlan(keep=300)}, "at most 256 visual tokens"),
    ],
)
def test_impossible_counts_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        cost.shape_by_counts(BASE, **options)


def test_fewer_tokens_than_key_tokens_are_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["cost", "--tokens", "3"]) == 1
    assert "as many tokens as key tokens" in capsys.readouterr().err
