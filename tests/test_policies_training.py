"""The training-time forward equals the deployed one; shards, normalisation and resuming do what
they say.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from trimvla.policies.cogact.initialise import initialise
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.tokenizer import build_tokenizer, extend_tokenizer, prompt_ids
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.training.dataset import (
    Demonstrations,
    action_statistics,
    make_tokenizer,
    within_bounds,
)
from trimvla.policies.training.dropping import blob_dropout, block_order, patch_dropout, spread
from trimvla.policies.training.packed import packed_mask, packed_states, shared_prefix, take_last
from trimvla.policies.training.pictures import Stack, pictures_of
from trimvla.policies.training.trainer import Recipe, Trainer, thinned_count, train
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.bundle.scale import Scale, unnormalise
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.sim.simpler.shard import Shard as StillShard

NOUNS = ("cube", "can", "plate")
SENTENCES = [
    "pick up the red cube",
    "put the red cube on the blue plate",
    "stack the blue can on the red cube",
]


def small() -> PolicyConfig:
    """The tabletop preset, with fewer and thinner layers."""
    data = PRESETS["tabletop"].to_dict()
    data["vision"][0].update(width=32, depth=2, feature_block=1, heads=2, mlp_hidden=64)
    data["projector"]["hidden"] = [32]
    data["language"].update(width=32, layers=5, heads=2, mlp_hidden=64)
    data["head"].update(width=32, depth=2, heads=2)
    return PolicyConfig.from_dict(data)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two shards of random pictures and chunks."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(2):
        path = tmp_path / f"shard-{index}.npz"
        np.savez(
            path,
            images=rng.integers(0, 256, (6, 128, 128, 3), dtype=np.uint8),
            chunks=rng.uniform(-0.05, 0.05, (6, 3, 16, 7)).astype(np.float32),
            aux=rng.uniform(-0.2, 0.2, (6, 3, 8)).astype(np.float32),
            points=rng.uniform(0, 1, (6, 3, 2, 2)).astype(np.float32),
            texts=np.array([SENTENCES] * 6),
        )
        paths.append(path)
    return paths


def test_packed_sentences_equal_the_deployed_forward() -> None:
    torch.manual_seed(0)
    cfg = small()
    policy = initialise(CogAct(cfg)).eval()
    tokenizer = make_tokenizer(cfg, SENTENCES)
    rows = [prompt_ids(tokenizer, cfg.prompt, sentence) for sentence in SENTENCES]
    width = max(map(len, rows))
    ids = torch.tensor([[row + [0] * (width - len(row)) for row in rows]])
    last = torch.tensor([[len(row) - 1 for row in rows]])
    visual = torch.randn(1, cfg.patches, cfg.language.width)
    with torch.no_grad():
        packed = take_last(
            packed_states(policy.language, visual, ids)[0], last, shared_prefix(ids)
        )[0]
        alone = torch.cat(
            [policy.language.cognition(visual, ids[:, i], last[:, i]) for i in range(len(rows))]
        )
    assert shared_prefix(ids) > 5, "the template's beginning is shared"
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    assert (packed[0] - packed[1]).abs().max() > 1e-3, "different sentences give different features"


def test_thinned_sentences_equal_the_deployed_forward_under_a_plan() -> None:
    torch.manual_seed(0)
    cfg = small()
    policy = initialise(CogAct(cfg)).eval()
    trimmed = trim(policy, Plan(tokens=TokenPlan(keep=56, after=3, selector="random", seed=1)))
    stay = torch.tensor(sorted(Random(1).sample(range(256), 56)))
    tokenizer = make_tokenizer(cfg, SENTENCES)
    rows = [prompt_ids(tokenizer, cfg.prompt, sentence) for sentence in SENTENCES]
    width = max(map(len, rows))
    ids = torch.tensor([[row + [0] * (width - len(row)) for row in rows]])
    last = torch.tensor([[len(row) - 1 for row in rows]])
    with torch.no_grad():
        visual = policy.vision(torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8))
        states, _ = packed_states(policy.language, visual, ids, pointer=2, thin=(3, stay))
        got = take_last(states, last, shared_prefix(ids))[0]
        visual = visual.expand(len(rows), -1, -1)
        expected = trimmed.language.cognition(visual, ids[0], last[0])
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_patchy_tokens_are_some_of_what_is_there(seed: int) -> None:
    places = np.arange(0, 256, 2)
    stay = blob_dropout(256, places, 40, np.random.default_rng(seed))
    assert len(set(stay.tolist())) == 40
    assert (np.diff(stay) > 0).all()
    assert stay.max() < len(places)


def test_packed_mask_hides_other_sentences() -> None:
    mask = packed_mask(2, 2, 2, torch.device("cpu")).int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def scale_of(lists: dict[str, Any]) -> Scale:
    return Scale(tuple(lists["q01"]), tuple(lists["q99"]), tuple(lists["mask"]))


def test_normalised_actions_come_back_as_they_were() -> None:
    chunks = np.random.default_rng(0).uniform(-0.04, 0.04, (50, 16, 7)).astype(np.float32)
    chunks[..., 3] = 0.0
    chunks[..., 6] = chunks[..., 6] > 0
    statistics = action_statistics(chunks)["action"]
    back = unnormalise(within_bounds(chunks, {"action": statistics}), scale_of(statistics))
    inside = np.clip(chunks, statistics["q01"], statistics["q99"])
    np.testing.assert_allclose(back, inside, atol=1e-7)


def test_symmetric_statistics_let_a_policy_turn_back() -> None:
    """Demonstrations that turn left only: their quantiles would clip every turn to the right to
    nothing.
    """
    chunks = np.random.default_rng(0).uniform(0.0, 0.3, (50, 16, 7)).astype(np.float32)
    chunks[..., 3] = 0.0
    back = np.full((1, 7), -0.2, np.float32)
    back[:, 3] = 0.0
    one_sided, both = (
        action_statistics(chunks, symmetric=symmetric) for symmetric in (False, True)
    )

    def travelled(statistics: dict[str, Any]) -> np.ndarray:
        return unnormalise(within_bounds(back, statistics), scale_of(statistics["action"]))

    assert travelled(one_sided)[0, 5] > 0
    np.testing.assert_allclose(travelled(both), back, atol=1e-6)
    gripper = [both["action"][bound][6] for bound in ("q01", "q99")]
    assert gripper == [one_sided["action"][bound][6] for bound in ("q01", "q99")]


def test_emphasis_weighs_the_action_dimensions() -> None:
    cfg = small()
    epsilon = torch.zeros(2, 16, 7)
    noise = torch.zeros(2, 16, 7)
    epsilon[..., 5] = 2.0
    even, turn = (
        Trainer(cfg, Recipe(compile=False, emphasis=weights), 9)._denoising_loss(epsilon, noise)
        for weights in ((), (1, 1, 1, 1, 1, 3, 1))
    )
    assert float(even) == pytest.approx(4 / 7)
    assert float(turn) == pytest.approx(12 / 9)


def test_training_learns_and_resumes_where_it_stopped(shards: list[Path], tmp_path: Path) -> None:
    cfg = small()
    data = Demonstrations(shards, cfg, make_tokenizer(cfg, SENTENCES), nouns=NOUNS)
    recipe = Recipe(
        steps=12,
        pictures=4,
        sentences=2,
        warmup=2,
        compile=False,
        bfloat16=False,
        tokens=((64, 1.0),),
        pointer_layer=2,
    )
    losses: list[float] = []
    train(
        Trainer(cfg, recipe, 9),
        data,
        tmp_path / "whole",
        report=lambda _, row: losses.append(row["diffusion"]),
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3])

    first = Trainer(cfg, recipe, 9)
    with pytest.raises(KeyboardInterrupt):
        train(first, data, tmp_path / "cut", report=_stop_at(6), save_every=5)
    second = Trainer(cfg, recipe, 9)
    train(second, data, tmp_path / "cut", report=lambda *_: None)
    whole = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["average"]
    for name, value in second.average.items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=0, msg=name)


def test_training_starts_from_given_weights() -> None:
    cfg = small()
    given = initialise(CogAct(cfg))
    trainer = Trainer(cfg, Recipe(compile=False), 9)
    trainer.start_from(given)
    for name, value in given.state_dict().items():
        torch.testing.assert_close(trainer.averaged_policy().state_dict()[name], value)


@pytest.mark.parametrize("tokens", [1, 16, 64, 100, 128, 200, 256])
def test_batches_of_any_number_of_tokens_are_thinned(tokens: int) -> None:
    cfg = small()
    trainer = Trainer(cfg, Recipe(compile=False, thin=1.0, tokens=((tokens, 1.0),)), 9)
    keep = torch.arange(tokens)
    thinned = trainer._thinned(cfg.patches, keep, np.random.default_rng(0))
    assert thinned is not None
    assert 1 <= len(thinned[1]) <= tokens


def test_the_shipped_recipes_thin_as_before() -> None:
    assert [thinned_count(tokens, 256) for tokens in (64, 128, 256)] == [24, 40, 56]
    assert thinned_count(16, 16) == 4


def _stop_at(step: int):
    def report(now: int, _: dict[str, float]) -> None:
        if now == step:
            raise KeyboardInterrupt

    return report


def test_no_patch_dropped_is_the_whole_image() -> None:
    cfg = small()
    tower = initialise(CogAct(cfg)).vision
    image = torch.randint(0, 256, (2, cfg.image_size, cfg.image_size, 3), dtype=torch.uint8)
    everything = torch.arange(cfg.patches)
    assert torch.allclose(
        patch_dropout(tower, image, everything, cfg.patches), tower(image), atol=1e-5
    )
    half = patch_dropout(tower, image, everything[::2], cfg.patches)
    assert not half[:, 1::2].any()
    assert half[:, ::2].abs().amax(dim=-1).all()


def test_fewer_patches_are_among_more() -> None:
    order = block_order(256, np.random.default_rng(1))
    few = spread(order, 64)
    more = spread(order, 128)
    assert set(few) < set(more)
    assert (np.bincount((more // 16 // 2) * 8 + more % 16 // 2, minlength=64) == 2).all()


def test_new_words_get_ids_behind_the_old_ones() -> None:
    old = build_tokenizer(["put the red cube on the plate"], 300)
    new = extend_tokenizer(Tokenizer.from_str(old.to_str()), ("carrot", "plate"))
    sentence = "put the red cube on the"
    assert new.encode(sentence).ids == old.encode(sentence).ids
    assert new.encode("put the carrot on it").ids[2] == old.get_vocab_size()


def test_pictures_of_a_still_camera_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    images = np.repeat(background[None], 5, axis=0)
    for index, image in enumerate(images[:4]):  # the last is the background alone
        image[index : index + 7, 3:9] = rng.integers(0, 256, (7, 6, 3))
    shard = StillShard(background)
    for image in images:
        shard.add_picture(image)
    kept = {"background": background, "foreground": np.frombuffer(b"".join(shard.pieces), np.uint8)}
    kept["ends"] = np.cumsum([len(piece) for piece in shard.pieces])
    assert np.array_equal(Stack([pictures_of(kept, 20)])[np.arange(5)], images)
    two = Stack([pictures_of({"images": images}, 20), pictures_of(kept, 20)])
    assert len(two) == 10
    assert np.array_equal(two[np.array([9, 0, 5, 4])], images[[4, 0, 0, 4]])
    assert np.array_equal(pictures_of(kept, 8).picture(2), resize(images[2], 8))


def test_plain_pictures_have_the_policys_size() -> None:
    with pytest.raises(ConfigError, match="pictures of 16 x 16"):
        pictures_of({"images": np.zeros((2, 8, 8, 3), np.uint8)}, 16)


def test_a_step_is_in_bfloat16_only_where_the_processor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(capability: str) -> bool:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        return Trainer(small(), Recipe(compile=False), 9).bfloat16

    assert [kinds("AVX2"), kinds("AVX512"), kinds("DEFAULT")] == [False, True, False]
