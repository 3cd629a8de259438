"""Recovered weights: the patch and what it is refused for, bundles with one, and distillation that
goes on after a kill.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_policy import TINY, official_checkpoint, random_policy, write_official
from tokenizers import Tokenizer, models

from trimvla.export.verify import patch_of
from trimvla.launch import cli
from trimvla.launch.recovery import work
from trimvla.policies.cogact.checkpoint import save
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.recovery.distil import Distiller, Recipe, batch_of
from trimvla.policies.recovery.features import cognition_features
from trimvla.policies.recovery.patch import (
    KEY,
    read_patch,
    save_patch,
    under_patch,
    weights_digest,
    with_weights,
)
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest_types import Recovery
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask, plan_digest, save_plan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import BundleError, CheckpointError

CFG = msgspec.structs.replace(TINY, language=msgspec.structs.replace(TINY.language, layers=4))
PLAN = Plan(
    policy=CFG.fingerprint,
    layers=(0, 1, 3),
    channels=(mask(range(36)),) * 3,
    tokens=TokenPlan(keep=6, after=1, selector="uniform"),
    guidance="distilled",
)
GUIDED = msgspec.structs.replace(PLAN, guidance=None)
GRID = VisionPlan(patches=PatchPlan(keep=9, after=0))
PLANS = (
    Plan(),
    PLAN,
    Plan(tokens=TokenPlan(keep=6, key=2)),
    Plan(tokens=TokenPlan(keep=6, selector="fastv", source="next")),
    Plan(vision=GRID),
    Plan(vision=GRID, tokens=TokenPlan(keep=4, selector="random", after=1)),
    Plan(vision=GRID, tokens=TokenPlan(keep=4, key=2)),
)
STATISTICS = {
    "lab": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}}
}


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dense():
    return random_policy(CFG)


def record(dense, **changes: object) -> Recovery:
    made = Recovery(
        policy=dense.cfg.fingerprint,
        weights=weights_digest(dense),
        plan=plan_digest(PLAN),
        method="by hand",
        parts=("language",),
        source="nowhere",
        frames=1,
        own=0,
        held_out=1,
        sentences=1,
        steps=1,
        pictures=1,
        learning_rate=1e-3,
        seed=0,
        loss_before=1.0,
        loss_after=0.5,
        p90_before=1.0,
        p90_after=0.5,
        minutes=0.1,
        created_utc="2026-01-01T00:00:00+00:00",
    )
    return msgspec.structs.replace(made, **changes)


def some_weights(dense) -> dict[str, torch.Tensor]:
    """Some of the trimmed policy's weights, the first narrower than the dense one's, changed."""
    weights = trim(dense, PLAN).state_dict()
    names = (
        "language.layers.1.mlp.down_proj.weight",
        "language.layers.2.self_attn.q_proj.weight",
        "head.final_layer.linear.weight",
    )
    return {name: (weights[name] * 1.5).half() for name in names}


def written(dense, path: Path, tensors=None, **changes: object) -> Path:
    kept = some_weights(dense) if tensors is None else tensors
    path.parent.mkdir(parents=True, exist_ok=True)
    described = msgspec.json.encode(record(dense, **changes)).decode()
    save_file(kept, path, metadata={KEY: described})
    return path


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: ",".join(sorted(plan.parts)) or "dense")
def test_features_of_several_sentences_are_those_of_the_deployed_forward(dense, plan):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 64, (3, 2, 10), generator=generator)
    ids[..., 0] = 1
    ids[..., 1] = 7
    last = torch.randint(5, 10, (3, 2), generator=generator)
    image = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)
    policy = trim(dense, plan)
    with torch.no_grad():
        visual = policy.vision(image)
        got = cognition_features(policy.language, visual, ids, last, CFG.patches)
        for each in range(2):
            expected = policy.language.cognition(visual, ids[:, each], last[:, each])
            torch.testing.assert_close(got[:, each], expected, atol=1e-5, rtol=1e-4)


def test_the_same_sentence_twice_keeps_its_end(dense):
    ids = torch.tensor([[[1, 7, 8, 2], [1, 7, 8, 2]]])
    last = torch.tensor([[3, 3]])
    visual = torch.randn(1, CFG.patches, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = cognition_features(dense.language, visual, ids, last, CFG.patches)
        expected = dense.language.cognition(visual, ids[:, 0], last[:, 0])
    torch.testing.assert_close(got[:, 1], expected, atol=1e-5, rtol=1e-4)


def test_a_patch_replaces_its_weights_alone_and_leaves_the_dense_policy(dense, tmp_path):
    before = weights_digest(dense)
    path = tmp_path / "patch.safetensors"
    save_patch(path, some_weights(dense), record(dense), torch.float16)
    patch = read_patch(path)
    patched = under_patch(dense, PLAN, patch).state_dict()
    plain = trim(dense, PLAN).state_dict()
    for name, weight in plain.items():
        expected = patch.tensors[name].float() if name in patch.tensors else weight
        assert torch.equal(patched[name], expected), name
    assert weights_digest(dense) == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_patch_leaves_alone_is_shared(dense):
    trimmed = trim(dense, PLAN)
    changed = some_weights(dense)
    copy = with_weights(trimmed, changed)
    assert isinstance(copy, CogAct)
    assert copy.head.state_dict().keys() == dense.head.state_dict().keys()
    shared = dict(dense.head.named_parameters())
    for name, weight in copy.head.named_parameters():
        assert (weight is shared[name]) == (f"head.{name}" not in changed), name


def test_the_digest_is_of_values_not_of_files(dense, tmp_path):
    other = random_policy(CFG)
    assert weights_digest(other) == weights_digest(dense)
    with torch.no_grad():
        other.language.norm.weight[0] += 1e-3
    assert weights_digest(other) != weights_digest(dense)


def bad(dense, path: Path, kind: str) -> Path:
    """A file that is no patch of this policy and plan; "nothing there": no file."""
    records = {
        "another plan": {"plan": plan_digest(Plan(steps=1))},
        "other weights": {"weights": "0" * 64},
        "another policy": {"policy": "0" * 16},
    }
    if kind in records:
        return written(dense, path, **records[kind])
    weights = some_weights(dense)
    first, second, _ = weights
    tensors = {
        "another shape": {**weights, first: weights[first][:, :-1].contiguous()},
        "unknown": {**weights, "language.layers.3.mlp.up_proj.weight": torch.ones(2)},
        "integers": {**weights, second: weights[second].to(torch.int8)},
        "nan": {**weights, second: weights[second] * torch.nan},
        "empty": {},
    }
    if kind in tensors:
        return written(dense, path, tensors[kind])
    more = msgspec.to_builtins(record(dense)) | {"more": 1}
    texts = {"no record": None, "a field too many": {KEY: json.dumps(more)}, "no json": {KEY: "{"}}
    if kind in texts:
        save_file(weights, path, metadata=texts[kind])
    elif kind == "pickle":
        torch.save(weights, path)
    elif kind == "cut off":
        written(dense, path)
        path.write_bytes(path.read_bytes()[:-10])
    return path


WORDS = {
    "another plan": "expected a patch for this plan",
    "other weights": "expected a patch for the dense weights",
    "another policy": "expected a patch for policy 'tiny'",
    "another shape": r"expected \[32, 36\] for 'language.layers.1.mlp.down_proj.weight', got",
    "unknown": "got 1 that it does not have: 'language.layers.3.mlp.up_proj.weight'",
    "integers": "expected float16 or float32 for 'language.layers.2.self_attn.q_proj.weight'",
    "nan": "expected finite numbers in 'language.layers.2.self_attn.q_proj.weight'",
    "empty": "got a file without tensors",
    "no record": "with its record under 'trimvla.patch', got none",
    "a field too many": "more",
    "no json": "expected the record of a patch",
    "pickle": "expected a patch of recovered weights, got",
    "cut off": "expected a patch of recovered weights, got",
    "nothing there": "expected a patch of recovered weights, got",
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_patch_that_does_not_fit_is_one_clear_error(dense, tmp_path, kind):
    path = bad(dense, tmp_path / "p.safetensors", kind)
    with pytest.raises(CheckpointError, match=WORDS[kind]) as caught:
        under_patch(dense, PLAN, read_patch(path))
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def source(dense, tmp_path_factory) -> Path:
    return make_source(dense, tmp_path_factory.mktemp("recovery"), {"plan": PLAN, "guided": GUIDED})


def make_source(dense, root: Path, plans: dict[str, Plan]) -> Path:
    """The dense policy as a run folder; beside it plans and calibration data."""
    run = root / "run"
    run.mkdir()
    words = ("<pad>", "<s>", "</s>", "<empty>", "<unk>")
    Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")).save(
        str(run / "tokenizer.json")
    )
    (run / "statistics.json").write_text(json.dumps(STATISTICS))
    save(dense, run / "policy.safetensors")
    for name, plan in plans.items():
        save_plan(plan, root / f"{name}.json")
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 64, (20, 9))
    ids[:, 0] = 1
    ids[:, 8] = 2
    images = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    Calibration(dense.cfg.fingerprint, images, ids, np.full(20, 8)).save(root / "frames.npz")
    return run


def call(verb: str, *words: object) -> int:
    return cli.main([verb, *map(str, words), "--json"])


def answer(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def patched(source, dense) -> Path:
    """A bundle that was exported with a patch, beside the weights."""
    root = source.parent
    patch = written(dense, root / "made.safetensors")
    out = root / "patched"
    assert call("export", source, "--plan", root / "plan.json", "--patch", patch, "--out", out) == 0
    return out


def test_a_bundle_with_a_patch_is_proved_against_torch_with_it(patched, source, dense, capsys):
    manifest = bundles.load(patched)
    beside = patched.with_name("patched.patch.safetensors")
    assert manifest.patch == read_patch(beside).spec
    assert call("verify", patched, "--source", source) == 0
    assert answer(capsys)["ok"]
    image = patched.parent / "image.png"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(image)
    words = ("--instruction", "x", "--image", image, "--out", patched.parent / "call.png")
    assert call("inspect", patched, *words) == 0
    assert answer(capsys)["patch"]["recovery"]["method"] == "by hand"


def test_the_head_of_a_distilled_plan_runs_one_branch(patched):
    assert bundles.load(patched).plan.guidance == "distilled"
    graph = onnx.shape_inference.infer_shapes(onnx.load(patched / "action.onnx")).graph
    shapes = [
        [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.value_info
    ]
    assert {shape[0] for shape in shapes if len(shape) == 3} == {1}


def test_an_official_checkpoint_takes_no_patch_yet(dense, tmp_path, capsys, monkeypatch):
    official = write_official(tmp_path / "official", official_checkpoint())
    (official / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    patch = written(dense, tmp_path / "p.safetensors")
    save_plan(PLAN, tmp_path / "plan.json")
    words = ("--preset", "tiny", "--plan", tmp_path / "plan.json", "--patch", patch)
    assert call("export", official, *words, "--out", tmp_path / "out") == 1
    assert "takes no patch yet" in answer(capsys)["error"]
    assert not (tmp_path / "out").exists()


def test_verify_needs_the_bundle_s_own_patch(patched, source, dense, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(patched, alone)
    assert call("verify", alone, "--source", source) == 1
    assert "expected its patch" in answer(capsys)["error"]
    own = patched.with_name("patched.patch.safetensors")
    assert call("verify", alone, "--source", source, "--patch", own) == 0
    capsys.readouterr()
    other = written(dense, tmp_path / "other.safetensors", seed=1)
    assert call("verify", alone, "--source", source, "--patch", other) == 1
    assert "expected the patch of bundle 'patched'" in answer(capsys)["error"]
    plain = msgspec.structs.replace(bundles.load(patched), patch=None)
    with pytest.raises(CheckpointError, match="expected no patch"):
        patch_of(plain, alone, own)


def test_graphs_of_other_weights_than_the_patch_s_are_noticed(
    patched, source, dense, tmp_path, capsys
):
    cheated = tmp_path / "cheated"
    shutil.copytree(patched, cheated)
    more = {name: each * 2 for name, each in some_weights(dense).items()}
    patch = written(dense, tmp_path / "cheated.patch.safetensors", more)
    manifest = json.loads((cheated / "manifest.json").read_text())
    manifest["patch"] = msgspec.to_builtins(read_patch(patch).spec)
    (cheated / "manifest.json").write_text(json.dumps(manifest))
    assert call("verify", cheated, "--source", source) == 1
    failed = {row["group"] for row in answer(capsys)["failed"]}
    assert "cognition" in failed


def test_a_manifest_without_a_patch_has_no_such_field(dense, tabletop_bundle, tmp_path):
    copy = tmp_path / "tabletop-trimmed"
    shutil.copytree(tabletop_bundle.with_name("tabletop-trimmed"), copy)
    plain = bundles.write(copy, bundles.load(copy))
    assert "patch" not in json.loads((copy / "manifest.json").read_text())
    spec = read_patch(written(dense, tmp_path / "p.safetensors")).spec
    bundles.write(copy, msgspec.structs.replace(plain, patch=spec))
    assert bundles.load(copy).patch == spec


@pytest.mark.parametrize("kind", ["another plan", "other weights", "another shape", "pickle"])
def test_export_refuses_another_patch_and_leaves_nothing(source, dense, tmp_path, kind, capsys):
    patch = bad(dense, tmp_path / "p.safetensors", kind)
    plan = source.with_name("plan.json")
    out = tmp_path / "out" / "bundle"
    assert call("export", source, "--plan", plan, "--patch", patch, "--out", out) == 1
    assert str(patch) in answer(capsys)["error"]
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_patch_needs_its_plan_and_trained_weights(source, dense, tmp_path, capsys):
    patch = written(dense, tmp_path / "p.safetensors")
    out = tmp_path / "bundle"
    assert call("export", source, "--patch", patch, "--out", out) != 0
    assert "--plan" in answer(capsys)["error"]
    words = ("--random-weights", "--preset", "cogact-base", "--patch", patch, "--out", out)
    assert call("export", *words) != 0
    assert "expected no --patch with --random-weights" in answer(capsys)["error"]
    assert not out.exists()


@pytest.mark.parametrize("field", ["sha256", "recovery"])
def test_a_manifest_s_patch_is_checked(patched, tmp_path, field):
    path = tmp_path / "manifest.json"
    data = json.loads((patched / "manifest.json").read_text())
    data["patch"] |= {"sha256": "x"} if field == "sha256" else {}
    if field == "recovery":
        data["patch"]["recovery"]["minutes"] = -1.0
    raw = json.dumps(data).encode()
    with pytest.raises(BundleError, match=f"patch.{field}"):
        bundles.parse(raw, path)


def recover(source: Path, out: Path, *more: object, plan: str = "guided") -> int:
    root = source.parent
    words = ("--plan", root / f"{plan}.json", "--calibration", root / "frames.npz", "--out", out)
    few = ("--frames", 12, "--held-out", 8, "--pictures", 4, "--threads", 1)
    return call("recover", source, *words, *few, *more)


@pytest.mark.parametrize("parts", ["language", "language,vision"])
def test_recovery_lowers_the_loss_and_its_patch_is_exported(source, tmp_path, parts, capsys):
    out = tmp_path / "patch.safetensors"
    assert recover(source, out, "--steps", 30, "--learning-rate", 3e-3, "--parts", parts) == 0
    result = answer(capsys)
    made = result["recovery"]
    assert (made["frames"], made["held_out"], made["sentences"], made["steps"]) == (12, 8, 4, 30)
    assert made["loss_after"] < 0.9 * made["loss_before"]
    assert result["sha256"] == read_patch(out).spec.sha256
    starts = {name.split(".")[0] for name in load_file(out)}
    assert starts == set(parts.split(","))
    assert not any("embed_tokens" in name for name in load_file(out))
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_recovery_goes_on_to_the_same_weights(source, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole.safetensors"
    assert recover(source, whole, "--steps", 6) == 0
    monkeypatch.setattr(work, "SAVE_SECONDS", 0.0)
    update = Distiller.update

    def killed(self, rows):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, rows)

    monkeypatch.setattr(Distiller, "update", killed)
    out = tmp_path / "patch.safetensors"
    assert recover(source, out, "--steps", 6) == 130
    assert not out.exists()
    assert (tmp_path / "patch.safetensors.partial").is_dir()
    monkeypatch.setattr(Distiller, "update", update)
    capsys.readouterr()
    assert recover(source, out, "--steps", 7) == 1
    assert "steps 6 there and 7 now" in answer(capsys)["error"]
    assert recover(source, out, "--steps", 6) == 0
    assert answer(capsys)["resumed_at"] == 3
    expected = load_file(whole)
    got = load_file(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert sorted(tmp_path.iterdir()) == [out, whole]


def test_minutes_become_steps_and_the_result_says_so(source, tmp_path, capsys):
    assert recover(source, tmp_path / "p.safetensors", "--minutes", 0.0005) == 0
    result = answer(capsys)
    assert result["steps_from"] == "--minutes"
    assert result["recovery"]["steps"] >= 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--parts", "arms"), "--parts"),
        (("--steps", 1, "--minutes", 1), "--minutes or --steps"),
        (("--env", "tabletop"), "from --env or from --calibration, got both"),
        (("--held-out", 0), "--held-out"),
        (("--frames", 1, "--held-out", 30), "held-out"),
    ],
)
def test_wrong_options_are_one_error_and_nothing_is_written(source, tmp_path, words, error, capsys):
    out = tmp_path / "p.safetensors"
    assert recover(source, out, *words) != 0
    assert error in answer(capsys)["error"]
    assert not out.exists()


def test_every_image_comes_once_a_round():
    recipe = Recipe(steps=9, pictures=4)
    seen = torch.cat([batch_of(6, step, recipe) for step in range(3)])
    assert sorted(seen[:6].tolist()) == sorted(seen[6:].tolist()) == list(range(6))
    assert seen[:6].tolist() != seen[6:].tolist()
