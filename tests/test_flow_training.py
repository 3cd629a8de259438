"""A flow policy is trained.

Its forward is the deployed one, its files are opened like any checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from trimvla.launch.training.presets import flow_tokenizer, training_presets
from trimvla.policies.nn.flow import flow_steps
from trimvla.policies.pi0.checkpoint import build
from trimvla.policies.pi0.config import (
    ExpertConfig,
    GemmaConfig,
    Pi0Config,
    Pi0PromptConfig,
    siglip,
)
from trimvla.policies.pi0.describe import prompt_spec
from trimvla.policies.pi0.save import save_lerobot
from trimvla.policies.pi0.source import open_checkpoint
from trimvla.policies.training.flow_dataset import (
    EPSILON,
    FlowDemonstrations,
    longest_prompt,
    mapped,
    prompt_ids,
    scale_of,
)
from trimvla.policies.training.flow_forward import Dropped, remember, velocity
from trimvla.policies.training.flow_presets import FLOW_PRESETS, LONGEST_PROMPT, TABLETOP_FLOW
from trimvla.policies.training.flow_trainer import FlowRecipe, FlowTrainer, initialise
from trimvla.policies.training.optimised import train
from trimvla.runtime.bundle.scale import normalise, unnormalise
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.prompts import Prompter
from trimvla.sim.tabletop import scene
from trimvla.sim.tabletop.demonstrations import AUX, make_shard
from trimvla.sim.tabletop.env import STATE

TINY = Pi0Config(
    family="pi0",
    name="tiny",
    vision=siglip(image_size=128, patch_size=32, width=32, depth=2, heads=2, mlp=48),
    language=GemmaConfig(
        width=32, layers=4, heads=4, kv_heads=2, head_dim=8, mlp_hidden=48, vocab=512
    ),
    expert=ExpertConfig(width=24, mlp_hidden=32),
    prompt=Pi0PromptConfig(template="{instruction}", bos_id=1, pad_id=0, buckets=(8, 12, 16)),
    cameras=("front", "wrist"),
    horizon=16,
    action_dim=7,
    padded_action_dim=7,
    state_dim=5,
    padded_state_dim=5,
)
RECIPE = FlowRecipe(
    steps=6, pictures=3, sentences=2, draws=2, pointer_layer=1, thin_layer=1, warmup=1
)
NOUNS = (*scene.OBJECT_KINDS, *scene.TARGET_KINDS)


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "shard-0000.npz"
    make_shard(path, 1_000_000, 1, wrist=True)
    return path


@pytest.fixture(scope="module")
def data(shard) -> FlowDemonstrations:
    return FlowDemonstrations([shard], TINY, flow_tokenizer(TINY), nouns=NOUNS)


def test_the_training_forward_is_the_deployed_one() -> None:
    torch.manual_seed(0)
    policy = initialise(_policy()).eval()
    torch.nn.init.normal_(policy.expert.action_out_proj.weight)
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 128, 128, 3), generator=rng, dtype=torch.uint8)
    ids = torch.tensor([[1, 300, 301, 302, 0, 0, 0, 0]])
    length = torch.tensor([4])
    state = torch.randn(1, 5, generator=rng)
    noise = torch.randn(1, 16, 7, generator=rng)
    with torch.no_grad():
        visual = policy.vision(images).flatten(0, 1)[None]
        deployed = policy.sampler(policy.language(visual, ids, length), state)
        memory = remember(
            policy.language,
            visual,
            ids[:, :5],  # padded less
            length,
            pointer=1,
            patches=TINY.patches,
            dropped=Dropped(),
        )
        steps = flow_steps(TINY.flow.steps)
        for index in (0, 3, 9):
            got = velocity(policy.expert, memory, state, noise, [steps[index].t])
            assert torch.allclose(got, deployed(noise, index), atol=1e-5)
    assert got.abs().max() > 0.1


def _policy():
    from trimvla.policies.pi0.model import Pi0

    return Pi0(TINY)


def test_dropped_tokens_are_not_seen() -> None:
    policy = initialise(_policy()).eval()
    ids = torch.tensor([[1, 300, 301]])
    length = torch.tensor([3])
    kept = torch.tensor([1, 5, 20, 30])
    visual = torch.randn(1, 32, 32)
    other = visual.clone()
    other[:, 7] += 1.0
    run = [
        remember(
            policy.language,
            rows,
            ids,
            length,
            pointer=1,
            patches=16,
            dropped=Dropped(after=0, kept=kept),
        )
        for rows in (visual, other)
    ]
    assert torch.equal(run[0].states, run[1].states)
    assert run[0].places.tolist() == [1, 5]
    assert run[0].scores.shape == (1, 3, 2)


def test_shards_are_mapped_and_normalised(shard, data) -> None:
    with np.load(shard) as arrays:
        assert np.array_equal(mapped(shard, "wrist"), arrays["wrist"])
        assert np.array_equal(data.pictures(3)[0], arrays["images"][3])
        scale = scale_of(data.statistics["state"])
        back = unnormalise(normalise(arrays["state"], scale), scale)
        assert np.allclose(back, arrays["state"], atol=1e-5)
        assert arrays["state"].shape[1] == len(STATE)
    with pytest.raises(ConfigError, match="expected 'left' in the shard"):
        mapped(shard, "left")


def test_prompts_are_those_of_the_runtime(tmp_path) -> None:
    tokenizer = flow_tokenizer(TABLETOP_FLOW)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompter = Prompter.load(tmp_path / "tokenizer.json", prompt_spec(TABLETOP_FLOW, openpi=False))
    texts = scene.all_instructions()
    for text in texts[::17]:
        assert prompter.tokens(text) == prompt_ids(tokenizer, TABLETOP_FLOW, text)
    assert longest_prompt(tokenizer, TABLETOP_FLOW, texts) <= LONGEST_PROMPT


def test_a_run_goes_on_where_it_was_to_the_bit(data, tmp_path) -> None:
    def report(step: int, losses: dict[str, float]) -> None:
        if step == 4 and cut:
            raise KeyboardInterrupt

    cut = False
    whole = FlowTrainer(TINY, RECIPE, AUX + 1)
    train(whole, data, tmp_path / "whole", report=report, save_every=2)
    cut = True
    with pytest.raises(KeyboardInterrupt):
        train(
            FlowTrainer(TINY, RECIPE, AUX + 1), data, tmp_path / "cut", report=report, save_every=2
        )
    cut = False
    again = FlowTrainer(TINY, RECIPE, AUX + 1)
    train(again, data, tmp_path / "cut", report=report, save_every=2)
    assert [row["step"] for row in again.history] == [1, 2, 3, 4, 5, 6]
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name


def test_training_learns(data, tmp_path) -> None:
    from dataclasses import replace

    trainer = FlowTrainer(TINY, replace(RECIPE, steps=60, learning_rate=3e-3), AUX + 1)
    train(trainer, data, tmp_path, report=lambda *_: None)
    first, last = (
        {name: np.mean([row[name] for row in rows]) for name in ("flow", "aux", "pointer")}
        for rows in (trainer.history[:6], trainer.history[-6:])
    )
    assert all(last[name] < 0.9 * first[name] for name in first), (first, last)


def test_what_is_saved_is_opened_like_any_checkpoint(data, tmp_path) -> None:
    trainer = FlowTrainer(TINY, RECIPE, AUX + 1)
    policy = trainer.averaged_policy()
    place = save_lerobot(
        policy,
        tmp_path / "policy",
        statistics=data.statistics,
        tokenizer=flow_tokenizer(TINY),
        epsilon=EPSILON,
    )
    found = open_checkpoint(place)
    assert found.cfg == TINY
    assert found.extra["epsilon"] == EPSILON
    assert found.statistics["state"]["mean"].tolist() == pytest.approx(
        data.statistics["state"]["mean"]
    )
    assert found.tokenizer == place / "tokenizer.json"
    opened = build(found.cfg, found.weights)
    for name, weight in policy.state_dict().items():
        got = opened.state_dict()[name]
        assert torch.allclose(got, weight, atol=2e-3, rtol=1e-3), name


def test_the_presets_are_trained_with_their_own_cameras() -> None:
    for name, cfg in FLOW_PRESETS.items():
        preset = training_presets()[name]
        assert preset.cfg is cfg
        assert asdict(preset.recipe)["pointer_layer"] < cfg.language.layers - 1
    assert FLOW_PRESETS["tabletop-flow-front"].cameras == ("front",)
