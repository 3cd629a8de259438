"""Plans, and the policy under them: dense stays dense, and every saving does what it says."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_policy import TINY, inputs, random_policy

from trimvla.policies.nn.cachers import CachedDit, every
from trimvla.policies.nn.dit import DitBlock
from trimvla.policies.trimming import places, tokens
from trimvla.policies.trimming.calibrate import (
    Calibration,
    load_calibration,
    measure,
    samples_of,
    sequences,
)
from trimvla.policies.trimming.importance import CRITERIA, most_important
from trimvla.policies.trimming.planner import Request, make_plan
from trimvla.policies.trimming.tokens import Seen
from trimvla.policies.trimming.trimmed import trim
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder, as_layer
from trimvla.policies.trimming.width import channel_scores, kept_channels
from trimvla.runtime.bundle.plan import (
    Plan,
    Provenance,
    TokenPlan,
    load_plan,
    mask,
    save_plan,
    unmask,
)
from trimvla.runtime.errors import ConfigError

DEEP = msgspec.structs.replace(TINY, language=msgspec.structs.replace(TINY.language, layers=5))
SELECTORS = tuple(tokens.SELECTORS)
NOW = "2026-01-01T00:00:00+00:00"
ALL_ON = Request(layers=4, mlp_keep=0.75, tokens=TokenPlan(keep=6, key=2), cache_interval=2)


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def policy():
    return random_policy(DEEP)


@pytest.fixture(scope="module")
def calibration():
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 64, (3, 12))
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return Calibration(DEEP.fingerprint, images, ids, np.array([11, 8, 9]))


def run(policy, plan, batch=None):
    with torch.no_grad():
        return trim(policy, plan)(*(batch or inputs(DEEP)))


# --- the file -------------------------------------------------------------------------------------


def test_the_empty_plan_is_the_dense_policy(policy):
    assert msgspec.json.encode(Plan()) == b"{}"
    assert trim(policy, Plan()) is policy
    assert trim(policy, Plan(policy=DEEP.fingerprint)) is policy


def test_a_plan_survives_its_file(policy, calibration, tmp_path):
    plan = make_plan(policy, calibration, ALL_ON, NOW)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").stat().st_size < 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "plan.json"),
        (b'{"layer": [0]}', "unknown field `layer`"),
        (b'{"layers": [1, 0]}', "rising indices"),
        (b'{"layers": []}', "rising indices"),
        (b'{"recompute": [1, 3]}', "nothing to reuse"),
        (b'{"channels": ["zz"]}', "hexadecimal mask"),
        (b'{"tokens": {"keep": 3}}', "as many tokens as key tokens"),
        (b'{"tokens": {"keep": 8, "alpha": 1.5}}', "share from 0 to 1"),
        (b'{"tokens": {"keep": 8, "selector": "best"}}', "selector"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(policy="0123456789abcdef"), "plan for policy 'tiny'"),
        (Plan(layers=(0, 5)), "'layers' below 5"),
        (Plan(channels=("1",)), "'channels' for 5 kept layers, got 1"),
        (Plan(layers=(0,), channels=(mask([48]),)), "'channels' below 48"),
        (Plan(tokens=TokenPlan(keep=17)), "at most 16 visual tokens"),
        (Plan(tokens=TokenPlan(keep=8), layers=(0, 4)), "fewer layers before tokens are dropped"),
        (Plan(recompute=(0, 2)), "'recompute' below 2"),
        (Plan(steps=73), "number of DDIM steps"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(policy, plan, message):
    with pytest.raises(ConfigError, match=message):
        trim(policy, plan)


@given(st.sets(st.integers(0, 11007), min_size=1))
def test_masks_hold_any_set(indices):
    assert set(unmask(mask(sorted(indices)))) == indices


# --- layers and width -----------------------------------------------------------------------------


def test_removed_layers_are_as_if_they_added_nothing(policy):
    silent = random_policy(DEEP)
    with torch.no_grad():
        for index in (1, 3):
            layer = as_layer(silent.language.layers[index])
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    batch = inputs(DEEP)
    torch.testing.assert_close(
        run(policy, Plan(layers=(0, 2, 4)), batch), run(silent, Plan(), batch)
    )


def test_removed_channels_are_as_if_they_added_nothing(policy):
    silent = random_policy(DEEP)
    dropped = list(range(5, 20))
    with torch.no_grad():
        for layer in silent.language.layers:
            as_layer(layer).mlp.down_proj.weight[:, dropped] = 0
    kept = mask([index for index in range(DEEP.language.mlp_hidden) if index not in dropped])
    batch = inputs(DEEP)
    torch.testing.assert_close(
        run(policy, Plan(channels=(kept,) * 5), batch), run(silent, Plan(), batch)
    )


def test_matrices_are_really_smaller_and_the_rest_is_shared(policy):
    trimmed = trim(policy, Plan(layers=(0, 2), channels=(mask(range(30)), mask(range(20)))))
    assert [as_layer(layer).mlp.down_proj.weight.shape[1] for layer in trimmed.language.layers] == [
        30,
        20,
    ]
    assert (
        as_layer(trimmed.language.layers[1]).self_attn
        is as_layer(policy.language.layers[2]).self_attn
    )
    assert trimmed.vision is policy.vision
    assert trimmed.head is policy.head


def test_block_influence_is_what_its_formula_says(policy, calibration):
    statistics = measure(policy.language, sequences(policy, calibration))
    expected = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for x in sequences(policy, calibration):
            states = [x, *policy.language.hidden_states(x)]
            cosines = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(states)]
            expected += 1 - torch.stack(cosines).double()
    torch.testing.assert_close(
        torch.tensor(CRITERIA["block-influence"](statistics, 0)).double(), expected / 3
    )


def test_controls_order_layers_without_looking(policy, calibration):
    statistics = measure(policy.language, sequences(policy, calibration))
    assert most_important(CRITERIA["reverse-order"](statistics, 0), 3) == (0, 1, 2)
    draws = {most_important(CRITERIA["random"](statistics, seed), 3) for seed in range(20)}
    assert len(draws) > 3


@pytest.mark.parametrize("of", ["chunk", "feature"])
def test_a_greedy_order_takes_out_what_moves_the_output_least(policy, calibration, of):
    plan = make_plan(policy, calibration, Request(layers=3, criterion=f"greedy-{of}"), NOW)
    assert plan.provenance is not None
    scores = plan.provenance.scores
    assert sorted(scores) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    first = min(range(5), key=scores.__getitem__)
    samples = samples_of(calibration)
    noises = [drawn_noise(index) for index in range(3)]

    def run_all(layers):
        trimmed = trim(policy, Plan(layers=layers))
        rows = []
        with torch.no_grad():
            for sample, noise in zip(samples, noises, strict=True):
                visual = trimmed.vision(sample["image"])
                feature = trimmed.language.cognition(visual, sample["input_ids"], sample["last"])
                rows.append(feature if of == "feature" else trimmed.act(feature, noise))
        return torch.cat(rows).flatten(0, -2)

    dense = run_all(tuple(range(5)))
    spread = dense.std(dim=0, correction=0)
    moved = [
        float(((run_all(tuple(j for j in range(5) if j != i)) - dense) / spread).square().mean())
        for i in range(5)
    ]
    assert first == moved.index(min(moved))
    assert plan.layers == tuple(sorted(sorted(range(5), key=lambda i: -scores[i])[:3]))


def drawn_noise(index):
    """As `Outputs` draws it with seed 0."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(1, DEEP.head.horizon, DEEP.head.action_dim, generator=generator)


def test_a_greedy_order_needs_a_policy(policy, calibration):
    statistics = measure(policy.language, sequences(policy, calibration))
    with pytest.raises(ConfigError, match="a policy that can be run"):
        CRITERIA["greedy-chunk"](statistics, 0)


def test_samples_that_are_all_alike_cannot_be_compared(policy, calibration):
    alike = Calibration(
        calibration.policy,
        np.repeat(calibration.images[:1], 2, axis=0),
        np.repeat(calibration.input_ids[:1], 2, axis=0),
        np.repeat(calibration.last[:1], 2),
    )
    with pytest.raises(ConfigError, match="samples on which 'cognition' differs"):
        make_plan(policy, alike, Request(layers=3, criterion="greedy-feature"), NOW)


def test_channel_scores_follow_lorap(policy):
    mlp = as_layer(policy.language.layers[0]).mlp
    x = torch.randn(50, 32)
    with torch.no_grad():
        hidden = mlp.channels(x)
        got = channel_scores(mlp, x.square().mean(0), hidden.square().mean(0))
        rms_x = x.square().mean(0).sqrt()
        rms_h = hidden.square().mean(0).sqrt()
        channel = 7
        expected = (
            torch.linalg.vector_norm(mlp.gate_proj.weight[channel].abs() * rms_x)
            + torch.linalg.vector_norm(mlp.up_proj.weight[channel].abs() * rms_x)
            + torch.linalg.vector_norm(mlp.down_proj.weight[:, channel].abs() * rms_h[channel])
        )
    torch.testing.assert_close(got[channel], expected)


def test_the_least_important_percent_of_channels_stays():
    kept = kept_channels(torch.arange(200.0), 0.5)
    assert kept == (0, 1, *range(102, 200))
    assert kept_channels(torch.arange(8.0), 1.0) == tuple(range(8))


# --- tokens ---------------------------------------------------------------------------------------


def test_efficientvla_takes_key_then_task_then_diverse_tokens():
    relevance = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2, 0.0]])
    features = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0.1], [1, 2], [-1, 0]]])
    plan = TokenPlan(keep=4, key=1, alpha=0.4)
    groups = tokens.efficientvla_groups(plan, Seen(features, relevance))
    assert (groups.key.tolist(), groups.task.tolist(), groups.diverse.tolist()) == (
        [[0]],
        [[1]],
        [[5, 4]],
    )
    assert tokens.efficientvla(plan, Seen(features, relevance)).tolist() == [[0, 1, 4, 5]]


def test_relevance_counts_the_wanted_rows_and_never_padding():
    probabilities = torch.rand(1, 2, 5, 4 + 6)
    mean = probabilities[0, :, :, 1:5].mean(0)
    last = torch.tensor([4])
    for rows, counted in (("text", [0, 1, 2, 3]), ("instruction", [0, 1]), ("last", [3])):
        got = tokens.relevance(probabilities, rows, last, patches=4)
        torch.testing.assert_close(got[0], mean[counted].sum(0))


@given(st.integers(1, 16), st.data())
def test_the_grid_spreads_any_number_of_tokens(side, data):
    keep = data.draw(st.integers(1, side * side))
    indices = places.grid(side * side, keep)
    assert len(set(indices)) == keep
    assert indices == sorted(indices)
    assert indices[-1] < side * side


def test_the_grid_is_a_grid():
    assert places.grid(16, 4) == [5, 7, 13, 15]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("source", ["previous", "next"])
def test_keeping_every_token_is_the_dense_policy(policy, selector, source):
    plan = Plan(tokens=TokenPlan(selector=selector, keep=16, source=source))
    batch = inputs(DEEP)
    torch.testing.assert_close(run(policy, plan, batch), run(policy, Plan(), batch))


@pytest.mark.parametrize("selector", SELECTORS)
def test_padding_changes_nothing(policy, selector):
    plan = Plan(tokens=TokenPlan(selector=selector, keep=6, key=2))
    image, ids, last, noise = inputs(DEEP, length=16, last=9)
    short = run(policy, plan, (image, ids[:, :10], last, noise))
    torch.testing.assert_close(run(policy, plan, (image, ids, last, noise)), short)


@pytest.mark.parametrize("selector", SELECTORS)
def test_samples_of_a_batch_do_not_mix(policy, selector):
    plan = Plan(tokens=TokenPlan(selector=selector, keep=6, key=2))
    first = inputs(DEEP, last=9)
    second = inputs(DEEP, last=11)
    both = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    alone = torch.cat([run(policy, plan, first), run(policy, plan, second)])
    torch.testing.assert_close(run(policy, plan, both), alone)


def test_kept_tokens_are_chosen_by_the_picture(policy):
    trimmed = trim(policy, Plan(tokens=TokenPlan(keep=6, key=2)))
    assert isinstance(trimmed.language, TrimmedDecoder)
    kept = set()
    for _ in range(4):
        image, ids, last, _ = inputs(DEEP)
        with torch.no_grad():
            _, indices = trimmed.language.cognition_and_kept(trimmed.vision(image), ids, last)
        assert indices.tolist()[0] == sorted(indices.tolist()[0])
        kept.add(tuple(indices.tolist()[0]))
    assert len(kept) > 1


# --- cache ----------------------------------------------------------------------------------------


def test_schedules():
    assert every(5, 10) == (0, 5)
    assert every(3, 10) == (0, 3, 6, 9)
    with pytest.raises(ConfigError, match="from 1 to 10"):
        every(0, 10)


def test_a_reuse_step_adds_what_every_block_added(policy):
    """The collapsed form against the literal one, which caches every block's two outputs."""
    net = policy.head
    z = torch.randn(2, 32)
    x = torch.randn(2, 16, 7)
    y = torch.randn(2, 16, 7)
    t = torch.tensor([3.0, 3.0])
    cached = CachedDit(net, (0,))
    with torch.no_grad():
        torch.testing.assert_close(cached(x, t, z), net(x, t, z))
        tokens_ = net.embed(x, t, z)
        added = []
        for block in net.blocks:
            assert isinstance(block, DitBlock)
            added.append(block.attn(block.norm1(tokens_)))
            tokens_ = tokens_ + added[-1]
            added.append(block.mlp(block.norm2(tokens_)))
            tokens_ = tokens_ + added[-1]
        literal = net.embed(y, t + 1, z)
        for output in added:
            literal = literal + output
        torch.testing.assert_close(cached(y, t + 1, z), net.decode(literal))


def test_recomputing_every_step_is_the_dense_policy(policy):
    batch = inputs(DEEP)
    torch.testing.assert_close(
        run(policy, Plan(recompute=(0, 1)), batch), run(policy, Plan(), batch)
    )
    assert not torch.equal(run(policy, Plan(recompute=(0,)), batch), run(policy, Plan(), batch))


def test_fewer_steps_and_no_guidance(policy):
    batch = inputs(DEEP)
    diffusion = msgspec.structs.replace(DEEP.diffusion, inference_steps=1, guidance=1.0)
    other = random_policy(msgspec.structs.replace(DEEP, diffusion=diffusion))
    torch.testing.assert_close(
        run(policy, Plan(steps=1, guidance=1.0), batch), run(other, Plan(), batch)
    )


# --- planning -------------------------------------------------------------------------------------


def test_a_plan_says_where_it_comes_from(policy, calibration):
    plan = make_plan(policy, calibration, ALL_ON, NOW)
    assert plan.policy == DEEP.fingerprint
    assert (len(plan.layers or ()), plan.recompute) == (4, (0,))
    assert [len(unmask(text)) for text in plan.channels or ()] == [36] * 4
    assert isinstance(plan.provenance, Provenance)
    assert plan.provenance.calibration == calibration.digest()
    assert (plan.provenance.frames, len(plan.provenance.scores)) == (3, 5)
    assert make_plan(policy, calibration, ALL_ON, NOW) == plan
    assert torch.isfinite(run(policy, plan)).all()


def test_asking_for_everything_gives_a_dense_plan(policy, calibration):
    assert make_plan(policy, calibration, Request(), NOW).dense


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(layers=6), "from 1 to 5 language layers"),
        (Request(criterion="taste"), "block-influence"),
        (Request(mlp_keep=1.5), "share of MLP channels"),
        (Request(cache_interval=3), "cache interval from 1 to 2"),
    ],
)
def test_impossible_requests(policy, calibration, request_, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(policy, calibration, request_, NOW)


def test_calibration_data_survives_its_file_and_belongs_to_one_policy(calibration, tmp_path):
    path = tmp_path / "calibration.npz"
    calibration.save(path)
    assert load_calibration(path, DEEP).digest() == calibration.digest()
    with pytest.raises(ConfigError, match="calibration data of policy 'tiny'"):
        load_calibration(path, TINY)
    path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match="expected calibration data"):
        load_calibration(path, DEEP)


def test_no_calibration_samples(policy):
    with pytest.raises(ConfigError, match="at least one calibration sample"):
        measure(policy.language, [])
