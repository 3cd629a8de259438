"""DB-CogACT: its loader is strict, folding its first text changes nothing, its cost is true."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from trimvla.policies.dbcogact.config import PRESETS, DbCogActConfig
from trimvla.policies.dbcogact.cost import cost, dead_parameters, language_cost, stage_costs
from trimvla.policies.dbcogact.family import FAMILY
from trimvla.policies.dbcogact.layout import build_meta, dead_weights, official_shapes
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.dbcogact.source import build, describe, open_checkpoint
from trimvla.policies.dbcogact.stages import example_inputs, stages, tensor_specs
from trimvla.policies.dbcogact.trimmed import trim
from trimvla.policies.families import recognise
from trimvla.policies.sizes.cost import shape_of
from trimvla.policies.sizes.roofline import DEVICES, floors_ms
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.errors import CheckpointError, ConfigError

FULL = PRESETS["dbcogact"]
FOLDED = 31  # ids before the image
LIMIT = 700_000  # bytes of a shard in the tests


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(shared_dir: Path) -> Path:
    path = shared_dir / "fixtures" / "dbcogact_tiny_a"
    if not path.exists():
        pytest.skip(f"no reference fixture at {path}")
    return path


@pytest.fixture
def copy(source, tmp_path) -> Path:
    """A checkpoint that a test may damage."""
    return shutil.copytree(source, tmp_path / "checkpoint", copy_function=shutil.copyfile)


@pytest.fixture(scope="module")
def policy(source) -> DbCogAct:
    opened = open_checkpoint(source)
    return build(opened.cfg, opened.weights)


def change(path: Path, **fields: object) -> None:
    """Replace or (None) remove fields of a JSON file."""
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove weights."""
    stored = load_file(directory / "model.safetensors")
    stored |= {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in stored.items() if value is not None}
    save_file(kept, directory / "model.safetensors")


def in_shards(directory: Path, dtype: torch.dtype) -> None:
    """What `save_pretrained` makes of a large model."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, value in load_file(directory / "model.safetensors").items():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > LIMIT:
            shards.append({})
        shards[-1][name] = value.to(dtype)
    (directory / "model.safetensors").unlink()
    names = {}
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file)
        names |= dict.fromkeys(shard, file)
    assert len(shards) > 1
    index = {"metadata": {}, "weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


# --- opening ---


def test_it_is_recognised_by_its_config(source) -> None:
    assert recognise(source) is FAMILY


def test_shards_in_bfloat16_are_the_same_policy_rounded(copy, policy) -> None:
    in_shards(copy, torch.bfloat16)
    opened = open_checkpoint(copy)
    assert opened.weights["head.blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    made = build(opened.cfg, opened.weights)
    for name, weight in policy.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight.bfloat16().float()), name


def test_dead_weights_are_not_asked_for(copy, policy) -> None:
    dead = dead_weights(policy.cfg)
    assert {"lm_head.weight"} < dead
    rewrite(copy, **{name.replace(".", "__"): None for name in dead})
    assert build(policy.cfg, open_checkpoint(copy).weights)


def test_wrong_weights_are_named(copy) -> None:
    rewrite(copy, model__llm__norm__weight=None)
    with pytest.raises(CheckpointError, match=r"1 missing weight.*'model\.llm\.norm\.weight'"):
        open_checkpoint(copy)
    rewrite(copy, model__llm__norm__weight=torch.ones(64), model__other=torch.ones(1))
    with pytest.raises(CheckpointError, match=r"1 unexpected weight.*'model\.other'"):
        open_checkpoint(copy)
    rewrite(copy, model__other=None, model__llm__norm__weight=torch.ones(63))
    with pytest.raises(CheckpointError, match=r"expected \[64\], got \[63\]"):
        open_checkpoint(copy)
    rewrite(copy, model__llm__norm__weight=torch.ones(64, dtype=torch.int64))
    with pytest.raises(CheckpointError, match="expected floating-point weights, got I64"):
        open_checkpoint(copy)


def test_a_shard_that_is_missing_is_named(copy) -> None:
    in_shards(copy, torch.float32)
    (copy / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_checkpoint(copy)


def test_an_index_may_not_point_elsewhere(copy) -> None:
    in_shards(copy, torch.float32)
    path = copy / "model.safetensors.index.json"
    names = json.loads(path.read_text())["weight_map"]
    change(path, weight_map={**names, "lm_head.weight": "../model.safetensors"})
    with pytest.raises(CheckpointError, match=r"expected a file name for 'lm_head\.weight'"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-huge"}, "mm_vision_tower.*clip-vit-large-patch14"),
        ({"action_model_type": "DiT-H"}, "expected 'action_model_type' as one of"),
        ({"mm_projector_type": "linear"}, "expected 'mlp2x_gelu', got 'linear'"),
        ({"mm_hidden_size": 1024}, "expected 'mm_hidden_size' 48"),
        ({"num_key_value_heads": 3}, "multiple of key_value_heads"),
        ({"chunk_size": None}, "expected the field 'chunk_size', got none"),
        ({"hidden_size": "64"}, "Expected `int`, got `str`"),
        ({"model_type": "llama"}, "expected 'model_type' 'dexbotic_cogact', got 'llama'"),
        ({"rope_scaling": {"type": "yarn"}}, "got .*yarn.* for 'rope_scaling'"),
        ({"mm_vision_select_layer": 2}, "from -4 to -1 for 'mm_vision_select_layer'"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(copy, fields, message) -> None:
    change(copy / "config.json", **fields)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        open_checkpoint(copy)


def test_a_field_that_is_left_out_comes_from_the_named_decoder(copy, policy) -> None:
    change(copy / "config.json", rope_theta=None, num_attention_heads=None)
    assert open_checkpoint(copy).cfg.language == policy.cfg.language
    change(copy / "config.json", llm_config="somewhere/else")
    with pytest.raises(ConfigError, match=r"expected \['num_attention_heads', 'rope_theta'\]"):
        open_checkpoint(copy)


def test_the_feature_layer_is_the_configs(copy) -> None:
    change(copy / "config.json", mm_vision_select_layer=-3)
    assert open_checkpoint(copy).cfg.vision.feature_block == 1


def test_statistics_are_needed(copy) -> None:
    path = copy / "norm_stats.json"
    one = {"default": {"min": -0.5, "max": 0.25}}
    path.write_text(json.dumps({"norm_stats": one}))
    assert open_checkpoint(copy).statistics["action"]["max"].tolist() == [0.25] * 7
    path.write_text(json.dumps({"default": {"min": [0.0] * 6, "max": [1.0] * 7}}))
    with pytest.raises(CheckpointError, match="expected 7 numbers for 'min', got 6"):
        open_checkpoint(copy)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"norm_stats\.json, got no file"):
        open_checkpoint(copy)


def test_a_tokenizer_is_needed(copy) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json, got no file"):
        open_checkpoint(copy)


def test_what_a_bundle_says_is_dexbotics(source) -> None:
    described = describe(open_checkpoint(source), Plan())
    assert (described.images.aspect, described.images.pad_value) == (
        "square-centre",
        (122, 116, 104),
    )
    assert described.prompt is not None
    assert described.prompt.template.startswith("\nWhat action")
    assert not described.prompt.lowercase
    assert (described.action.normalization, described.action.binary_gripper) == ("min_max", False)
    assert described.state is None


# --- the network ---


def tokens(cfg: DbCogActConfig, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random visual tokens, ids behind the image with padding, and where the last id is."""
    torch.manual_seed(0)
    visual = torch.randn(1, cfg.patches, cfg.language.width)
    ids = torch.randint(400, (1, length))
    return visual, ids, torch.tensor([length - 3])


def test_folding_changes_nothing(policy) -> None:
    visual, ids, last = tokens(policy.cfg)
    decoder = policy.language
    assert decoder.folded == len(policy.cfg.prompt.before_ids)
    before = torch.tensor([policy.cfg.prompt.before_ids])
    with torch.no_grad():
        got = decoder.cognition(visual, ids, last)
        whole = [
            decoder.embed_tokens(before),
            visual,
            decoder.embed_tokens(ids[:, : int(last) + 1]),
        ]
        expected = decoder.norm(decoder.hidden_states(torch.cat(whole, dim=1))[-1])[:, -1]
    assert torch.allclose(got, expected, atol=2e-5)


def test_a_plan_folds_anew(policy) -> None:
    visual, ids, last = tokens(policy.cfg)
    plan = Plan(layers=(0, 1, 3, 5), channels=(mask(range(0, 112, 2)),) * 4)
    made = trim(policy, plan).language
    before = torch.tensor([policy.cfg.prompt.before_ids])
    with torch.no_grad():
        got = made.cognition(visual, ids, last)
        whole = [made.embed_tokens(before), visual, made.embed_tokens(ids[:, : int(last) + 1])]
        expected = made.norm(made.hidden_states(torch.cat(whole, dim=1))[-1])[:, -1]
    assert torch.allclose(got, expected, atol=2e-5)
    assert not torch.allclose(got, policy.language.cognition(visual, ids, last), atol=1e-2)


def test_tokens_of_several_cameras_have_quotas(source, policy) -> None:
    cfg = msgspec.structs.replace(policy.cfg, cameras=("front", "wrist", "side"))
    made = build(cfg, open_checkpoint(source).weights)
    visual, ids, last = tokens(cfg)
    for plan, counts in (
        (TokenPlan(keep=9, key=1, quotas=(2, 3, 4)), [2, 3, 4]),
        (TokenPlan(keep=6, selector="uniform"), [2, 2, 2]),
    ):
        language = trim(made, Plan(tokens=plan)).language
        assert isinstance(language, TrimmedDecoder)
        with torch.no_grad():
            _, kept = language.cognition_and_kept(visual, ids, last)
        assert np.bincount(kept[0] // cfg.vision.patches).tolist() == counts
    for wrong in (
        TokenPlan(keep=5, key=1, quotas=(2, 3)),
        TokenPlan(keep=23, key=1, quotas=(2, 4, 17)),
        TokenPlan(keep=5, selector="relevance", floor=2),
    ):
        with pytest.raises(ConfigError, match=r"'(quotas|floor)' of 'tokens'"):
            trim(made, Plan(tokens=wrong))


def test_padding_of_the_prompt_is_not_seen(policy) -> None:
    visual, ids, last = tokens(policy.cfg)
    other = ids.clone()
    other[:, int(last) + 1 :] = 7
    plan = Plan(tokens=TokenPlan(keep=6, after=2))
    with torch.no_grad():
        for made in (policy, trim(policy, plan)):
            first, second = (made.language.cognition(visual, x, last) for x in (ids, other))
            assert torch.equal(first, second)


# --- cost ---


def test_cost_is_the_published_one() -> None:
    dense = shape_of(FULL, Plan())  # pyright: ignore[reportArgumentType]
    folded = stage_costs(FULL, dense, 25)
    unfolded = language_cost(FULL, dense, FOLDED + 25, folded=0)
    total = folded["vision"].flops + unfolded.flops + folded["action"].flops
    assert total / 1e9 == pytest.approx(8556, rel=1e-3)
    assert folded["vision"].flops / 1e9 == pytest.approx(385, abs=1)
    assert folded["action"].flops / 1e9 == pytest.approx(58, abs=1)
    saved = 1 - folded["language"].flops / unfolded.flops
    assert saved == pytest.approx(FOLDED / (FOLDED + 576 + 25), rel=0.02)
    result = cost(FULL, Plan())
    assert result.parameters / 1e9 == pytest.approx(8.02, abs=0.005)
    assert result.acting_parameters is not None
    assert result.acting_parameters / 1e9 == pytest.approx(7.47, abs=0.005)


def test_floors_are_the_published_ones() -> None:
    trimmed = Plan(
        layers=tuple(range(22)),
        tokens=TokenPlan(keep=126, after=2, key=4),
        recompute=(0, 2, 4, 6, 8),
    )
    for plan, orin, thor in ((Plan(), 208.6, 56.5), (trimmed, 65.7, 43.0)):
        report = cost(FULL, plan, prompt=FOLDED + 25)  # as if nothing were folded
        floors = {name: floors_ms(report, DEVICES[name])["total"] for name in DEVICES}
        assert floors["orin"] == pytest.approx(orin, rel=0.01)
        assert floors["thor"] == pytest.approx(thor, rel=0.01)
    folded = floors_ms(cost(FULL, Plan(), prompt=25), DEVICES["orin"])["total"]
    assert folded < 0.97 * 208.6


@pytest.mark.parametrize("name", ["full", "tiny"])
def test_parameters_are_those_of_the_modules_and_of_the_file(name, request, source) -> None:
    cfg = FULL if name == "full" else open_checkpoint(source).cfg
    result = cost(cfg, Plan())
    assert result.acting_parameters == sum(p.numel() for p in build_meta(cfg).parameters())
    assert sum(map(math.prod, official_shapes(cfg).values())) == result.acting_parameters
    if name == "tiny":
        stored = load_file(source / "model.safetensors")
        assert sum(map(torch.numel, stored.values())) == result.parameters
        dead = sum(stored[key].numel() for key in dead_weights(cfg))
        assert dead == dead_parameters(cfg)


PLANS = {
    "dense": Plan(),
    "layers": Plan(layers=(0, 2, 5)),
    "width": Plan(channels=(mask(range(40)),) * 6),
    "tokens": Plan(tokens=TokenPlan(keep=6, after=2, key=2)),
    "cache": Plan(recompute=(0, 4, 8)),
}


@pytest.mark.parametrize("name", PLANS)
def test_operations_are_those_that_torch_counts(policy, name) -> None:
    plan = PLANS[name]
    made = trim(policy, plan)
    inputs = example_inputs(policy.cfg, plan, 32, torch.Generator().manual_seed(0))
    counted = {}
    for stage in stages(policy.cfg, plan):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = stage.module(made)(*(inputs[key] for key in stage.inputs))
        outputs = result if isinstance(result, tuple) else (result,)
        inputs |= dict(zip(stage.outputs, outputs, strict=True))
        counted[stage.name] = counter.get_total_flops()
    expected = cost(policy.cfg, plan, prompt=32).stages
    for stage, flops in counted.items():
        assert flops == expected[stage].flops, stage


def test_stages_keep_their_specs(policy) -> None:
    for plan in PLANS.values():
        specs = tensor_specs(policy.cfg, plan)
        made = trim(policy, plan)
        inputs = example_inputs(policy.cfg, plan, 32, torch.Generator().manual_seed(0))
        for stage in stages(policy.cfg, plan):
            with torch.no_grad():
                result = stage.module(made)(*(inputs[name] for name in stage.inputs))
            outputs = result if isinstance(result, tuple) else (result,)
            inputs |= dict(zip(stage.outputs, outputs, strict=True))
            for name in (*stage.inputs, *stage.outputs):
                shape = [32 if axis == "prompt" else axis for axis in specs[name].shape]
                assert list(inputs[name].shape) == shape, name
