"""`trimvla cost` for every family: presets, checkpoints' folders, bundles, cameras and counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from trimvla.launch.cli import main
from trimvla.launch.costing.precision import check_known
from trimvla.launch.exporting.named_plan import visual_tokens
from trimvla.policies.families import all_presets, family_of, find_preset
from trimvla.policies.sizes.counts import plan_by_counts
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan, save_plan
from trimvla.runtime.errors import ConfigError

OTHERS = ("dbcogact", "smolvla-base", "pi0", "pi05")
TRIMMED = ("--layers", "8", "--mlp-keep", "0.5", "--tokens", "64", "--cache-interval", "2")


# those with a language model; ACT's are in test_act
SPEAKING = [name for name, cfg in sorted(all_presets().items()) if hasattr(cfg, "prompt")]


def cost(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["cost", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["cost", *words]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("name", SPEAKING)
def test_every_preset_has_a_cost(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = find_preset(name)
    result = cost(capsys, "--preset", name)
    expected = family_of(cfg).cost(cfg, Plan())
    assert (result["preset"], result["family"]) == (name, family_of(cfg).name)
    assert (result["flops"], result["parameters"]) == (expected.flops, expected.parameters)
    assert result["weight_bytes"] == expected.weight_bytes
    trimmed = cost(capsys, "--preset", name, *TRIMMED, "--dtype", "fp16")
    assert trimmed["stages"]["language"]["flops"] < 0.6 * expected.stages["language"].flops
    assert trimmed["ratio_to_dense"]["weight_bytes"] < 0.95
    assert trimmed["ratio_to_dense"]["parameters"] < 0.97
    assert trimmed["weight_bytes"] == pytest.approx(
        2 * sum(stage["parameters"] for stage in trimmed["stages"].values())
    )


@pytest.mark.parametrize("name", SPEAKING)
def test_a_plan_by_counts_is_one_that_the_family_takes(name: str) -> None:
    cfg = find_preset(name)
    there = family_of(cfg).trimmable(cfg)
    tokens = TokenPlan(keep=there.visual_tokens // 2)
    plan = plan_by_counts(there, layers=8, mlp_keep=0.5, tokens=tokens, cache_interval=2, steps=4)
    family_of(cfg).check_plan(plan, cfg)
    assert plan_by_counts(there).dense


def test_a_selector_chooses_of_all_cameras() -> None:
    assert visual_tokens(find_preset("pi0"), Plan()) == 3 * 256
    assert visual_tokens(find_preset("smolvla-base"), Plan()) == 3 * 64


@pytest.mark.parametrize("name", ["smolvla-base", "pi0", "pi05", "dbcogact"])
def test_each_camera_costs_its_vision(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (cost(capsys, "--preset", name, "--cameras", count) for count in "12")
    assert two["stages"]["vision"]["flops"] == 2 * one["stages"]["vision"]["flops"]
    assert two["stages"]["language"]["flops"] > one["stages"]["language"]["flops"]
    assert two["parameters"] == one["parameters"]


@pytest.mark.parametrize("name", ["smolvla_tiny_a", "pi0_tiny_a", "pi05_tiny_a", "dbcogact_tiny_a"])
def test_a_folder_has_its_own_sizes(
    name: str, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_dir / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"the reference fixture {name} is not here")
    with safe_open(folder / "model.safetensors", framework="np") as stored:
        weights = sum(math.prod(stored.get_slice(key).get_shape()) for key in stored.keys())  # noqa: SIM118
    assert cost(capsys, str(folder))["parameters"] == weights
    assert "got 9" in refusal(capsys, str(folder), "--layers", "9")


def test_a_bundle_has_its_own_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = cost(capsys, "tabletop-trimmed")
    save_plan(bundles.load(bundles.resolve("tabletop-trimmed")).plan, tmp_path / "plan.json")
    for words in (("--plan",), ()):
        named = cost(capsys, "--preset", "tabletop", *words, str(tmp_path / "plan.json"))
        assert named == own
    dense = cost(capsys, "--preset", "tabletop")
    assert own["flops"] < 0.6 * dense["flops"]
    assert cost(capsys, "tabletop-trimmed", "--layers", "15")["flops"] > own["flops"]


@pytest.mark.parametrize("name", OTHERS)
def test_boards_of_every_family(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = cost(capsys, "--preset", name, "--boards", "--dtype", "int8")
    rows = {row["precision"]: row for row in result["boards"]}
    weights = {precision: sum(row["weight_bytes"].values()) for precision, row in rows.items()}
    assert weights["float32"] == 2 * weights["float16"] > 2 * weights["int8"]
    assert result["weight_bytes"] == weights["int8"]
    assert rows["float16"]["boards"]["thor"] == "yes"
    small = {"dbcogact": "no", "smolvla-base": "yes", "pi0": "no", "pi05": "no"}
    assert rows["float32"]["boards"]["orin-nano"] == small[name]


def test_what_a_family_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    unknowing = replace(family_of(find_preset("pi0")), memory=None)
    with pytest.raises(ConfigError, match="expected for family 'pi0' no --boards"):
        check_known(unknowing, "float32", boards=True)
    with pytest.raises(ConfigError, match="expected --dtype for family 'pi0' as one of"):
        check_known(unknowing, "int8", boards=False)


def test_what_cannot_be_is_one_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    save_plan(Plan(tokens=TokenPlan(keep=64)), tokens)
    for words, message in (
        (("--preset", "smolvla-base", "--cameras", "4"), "expected 1 to 3 cameras"),
        (("--preset", "cogact-base", "--cameras", "2"), "expected 1 camera for 'cogact-base'"),
        (("--preset", "pi0", "--cameras", "0"), "expected 1 to 3 cameras"),
        (("--preset", "pi0", "--cameras", "1", "--tokens", "300"), "at most 256 visual tokens"),
        (("--preset", "pi0", "--layers", "2", "--tokens", "9"), "fewer layers before tokens"),
        (("--preset", "pi0", "--steps", "4", "--cache-interval", "5"), "interval from 1 to 4"),
        (("--preset", "pi", "--boards"), "expected --preset as one of"),
        ((str(tokens), "--preset", "smolvla-base", "--cameras", "2"), "--cameras as the 3 camera"),
        ((str(tokens), "--layers", "20"), "either a plan file or counts"),
        ((str(tokens), "--plan", str(tokens)), "expected one plan"),
        (("tabletop", "--preset", "tabletop"), "expected --preset with a checkpoint's folder only"),
        (("--statistics-key", "x"), "expected --statistics-key with a checkpoint's folder only"),
        ((str(tmp_path),), "expected a checkpoint of a known family"),
        ((str(tmp_path / "none"),), "none"),
        ((str(tmp_path / "none.json"),), "none.json"),
    ):
        assert message in refusal(capsys, *words)
