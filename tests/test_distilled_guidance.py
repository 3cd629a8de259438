"""Guidance distilled into the head: what a plan says of it, the head's recovery, its bundle."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from test_recovery import answer, call, make_source, recover, written
from tiny_policy import TINY, random_policy

from trimvla.launch.recovery import work
from trimvla.policies.cogact.stages import tensor_specs
from trimvla.policies.dbcogact.config import PRESETS as DBCOGACT
from trimvla.policies.dbcogact.trimmed import check as check_dbcogact
from trimvla.policies.recovery.distil import Distiller, Recipe, teach
from trimvla.policies.recovery.frames import HELD_OUT, Frames
from trimvla.policies.recovery.head import predictions, sampler_table
from trimvla.policies.sizes.cost import shape_of
from trimvla.policies.trimming.trimmed import check, trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan, load_plan, plan_digest, save_plan
from trimvla.runtime.errors import ConfigError

LANGUAGE = msgspec.structs.replace(TINY.language, layers=4)
DIFFUSION = msgspec.structs.replace(TINY.diffusion, inference_steps=5)
CFG = msgspec.structs.replace(TINY, language=LANGUAGE, diffusion=DIFFUSION)
PLAN = Plan(
    layers=(0, 1, 3),
    tokens=TokenPlan(keep=6, after=1, selector="uniform"),
    recompute=(0, 3),
    guidance="distilled",
)


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dense():
    return random_policy(CFG)


def frames(count: int) -> Frames:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 64, (count, 2, 9), generator=generator)
    ids[..., 0] = 1
    kind = torch.zeros(count, dtype=torch.uint8)
    kind[-2:] = HELD_OUT
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Frames(images, ids, torch.full((count, 2), 8), kind)


def test_a_plan_says_it_and_all_that_follows_is_that_of_one_branch(tmp_path):
    path = tmp_path / "plan.json"
    save_plan(PLAN, path)
    assert load_plan(path) == PLAN
    assert "guidance" in PLAN.parts
    assert not Plan(guidance="distilled").dense
    off = msgspec.structs.replace(PLAN, guidance=1.0)
    assert (
        shape_of(CFG, PLAN)
        == shape_of(CFG, off)
        != shape_of(CFG, msgspec.structs.replace(PLAN, guidance=None))
    )
    assert plan_digest(PLAN) != plan_digest(off)
    assert tensor_specs(CFG, PLAN)["residual"].shape[0] == 1
    path.write_text('{"guidance": 1.5, "steps": 5}')
    assert load_plan(path).guidance == 1.5
    assert plan_digest(load_plan(path)) == sha256(b'{"steps":5,"guidance":1.5}').hexdigest()
    path.write_text('{"guidance": "distiled"}')
    with pytest.raises(ConfigError, match=r"guidance.*distiled|distiled.*guidance"):
        load_plan(path)


def test_policies_that_cannot_have_it_refuse_it():
    plain = msgspec.structs.replace(DIFFUSION, guidance=1.0)
    with pytest.raises(ConfigError, match="expected a policy with guidance"):
        check(PLAN, msgspec.structs.replace(CFG, diffusion=plain))
    with pytest.raises(ConfigError, match="heads of this family are not recovered"):
        check_dbcogact(Plan(guidance="distilled"), next(iter(DBCOGACT.values())))


def test_what_is_trained_is_what_the_sampler_under_the_plan_predicts(dense):
    student = trim(dense, PLAN)
    steps = sampler_table(student)
    z = torch.randn(2, 32)
    noise = torch.randn(2, CFG.head.horizon, CFG.head.action_dim)
    seen = noise[:, None].repeat(1, len(steps), 1, 1)
    more = steps[1].apply(noise, noise + 1)[0] - steps[1].apply(noise, noise)[0]
    torch.testing.assert_close(more, torch.full_like(noise, steps[1].effect))
    with torch.no_grad():
        x = noise
        for k, step in enumerate(steps):
            seen[:, k] = x
            x, _ = step.apply(x, predictions(student, z, seen)[:, k])
        torch.testing.assert_close(x, student.act(z, noise))
        guided = trim(dense, msgspec.structs.replace(PLAN, guidance=None))
        assert not torch.allclose(x, guided.act(z, noise), atol=1e-3)


def test_parts_trained_together_are_those_trained_apart(dense):
    student = trim(dense, PLAN)
    seen = frames(6)
    rows = seen.rows(0)

    whole = Recipe(steps=2, parts=("head", "language"), pictures=2, learning_rate=1e-3)
    taught = teach(dense, student, seen, torch.arange(6), whole)

    def trained(*parts: str) -> Distiller:
        made = Distiller(student, seen, taught, replace(whole, parts=parts))
        for _ in range(2):
            made.update(rows)
        return made

    together = trained("head", "language").weights
    apart = trained("head").weights | trained("language").weights
    assert together.keys() == apart.keys()
    assert all(torch.equal(together[name], apart[name]) for name in apart)
    assert "head.z_embedder.uncondition" not in together


@pytest.fixture(scope="module")
def source(dense, tmp_path_factory) -> Path:
    plans = {"distilled": PLAN, "guided": msgspec.structs.replace(PLAN, guidance=None)}
    return make_source(dense, tmp_path_factory.mktemp("distilled"), plans)


def export(source: Path, out: Path, *more: object) -> int:
    return call("export", source, "--plan", source.with_name("distilled.json"), "--out", out, *more)


def test_recovery_of_the_head_lowers_its_loss(source, tmp_path, capsys):
    patch = tmp_path / "patch.safetensors"
    words = ("--parts", "head", "--steps", 30, "--head-learning-rate", 3e-3)
    assert recover(source, patch, *words, plan="distilled") == 0
    head = answer(capsys)["recovery"]["head"]
    assert head["loss_after"] < 0.8 * head["loss_before"]
    assert {name.split(".")[0] for name in load_file(patch)} == {"head"}


def test_a_killed_recovery_of_the_head_goes_on(source, tmp_path, monkeypatch, capsys):
    words = ("--parts", "head", "--steps", 4)
    whole = tmp_path / "whole.safetensors"
    assert recover(source, whole, *words, plan="distilled") == 0
    monkeypatch.setattr(work, "SAVE_SECONDS", 0.0)
    update = Distiller.update

    def killed(self, rows):
        if self.step == 2:
            raise KeyboardInterrupt
        return update(self, rows)

    monkeypatch.setattr(Distiller, "update", killed)
    out = tmp_path / "patch.safetensors"
    assert recover(source, out, *words, plan="distilled") == 130
    monkeypatch.setattr(Distiller, "update", update)
    capsys.readouterr()
    assert recover(source, out, *words, "--noises", 3, plan="distilled") == 1
    assert "0.0003, 2] there and ['steps by effect', 0.0003, 3] now" in answer(capsys)["error"]
    assert recover(source, out, *words, plan="distilled") == 0
    assert answer(capsys)["resumed_at"] == 2
    expected = load_file(whole)
    got = load_file(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_export_wants_the_head_that_guidance_was_distilled_into(source, dense, tmp_path, capsys):
    out = tmp_path / "out" / "bundle"
    assert export(source, out) == 1
    error = answer(capsys)["error"]
    assert "expected a patch with a head" in error
    assert "8 to 11 points" in error
    headless = tmp_path / "p.safetensors"
    weights = {"language.norm.weight": dense.language.norm.weight.detach()}
    written(dense, headless, weights, plan=plan_digest(PLAN))
    assert export(source, out, "--patch", headless) == 1
    assert f"{headless}, which has no head" in answer(capsys)["error"]
    assert not out.parent.exists()


WRONG = (
    ("distilled", ("--parts", "language"), "expected head among --parts"),
    ("guided", ("--parts", "head"), "expected 'distilled' as the plan's 'guidance'"),
    ("distilled", ("--parts", "head", "--noises", 0), "--noises"),
    ("guided", ("--head-learning-rate", 1e-3), "expected head among --parts"),
    ("distilled", ("--parts", "head", "--learning-rate", 1e-3), "--head-learning-rate"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[2])
def test_wrong_parts_are_one_error(source, tmp_path, wrong, capsys):
    plan, words, error = wrong
    out = tmp_path / "p.safetensors"
    assert recover(source, out, "--steps", 1, *words, plan=plan) != 0
    assert error in answer(capsys)["error"]
    assert list(tmp_path.iterdir()) == []
