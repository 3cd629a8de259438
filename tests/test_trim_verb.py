"""`trimvla trim`: from a run folder to a plan file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_policy import TINY, random_policy
from tokenizers import Tokenizer, models

from trimvla.launch import cli
from trimvla.policies.cogact.checkpoint import save
from trimvla.policies.cogact.tokenizer import instruction_in, prompt_ids
from trimvla.policies.sizes.config import PRESETS
from trimvla.runtime.bundle.plan import load_plan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan

DEEP = msgspec.structs.replace(TINY, language=msgspec.structs.replace(TINY.language, layers=5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with random weights and one shard of images."""
    save(random_policy(DEEP), tmp_path / "policy.safetensors")
    words = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<empty>", "<unk>"))}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "demos").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "demos" / "0.npz", images=images, texts=np.full((6, 2), "lift"))
    return tmp_path


def trim(folder: Path, *words: str) -> int:
    return cli.main(["trim", str(folder), "--out", str(folder / "plan.json"), *words])


def test_a_run_folder_gives_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--layers 4 --mlp-keep 0.75 --tokens 6 --key-tokens 2 --cache-interval 2 --frames 4 --json"
    )
    assert trim(folder, *words.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    plan = load_plan(folder / "plan.json")
    assert plan.policy == DEEP.fingerprint
    assert list(plan.layers or ()) == result["kept_layers"]
    assert len(plan.layers or ()) == 4
    assert plan.provenance is not None
    assert plan.provenance.frames == 4
    assert len(result["scores"]) == 5
    assert 0 < result["ratio_to_dense"]["flops"] < 1
    assert result["picture"] == str(folder / "plan.png")
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_may_leave_later(folder: Path) -> None:
    assert trim(folder, "--tokens", "6", "--after", "3") == 0
    tokens = load_plan(folder / "plan.json").tokens
    assert tokens is not None
    assert (tokens.keep, tokens.after) == (6, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layers 6", "from 1 to 5 language layers"),
        ("--tokens 3", "as many tokens as key tokens"),
        ("--patches 17", "'keep' of 'vision.patches', got 17"),
        ("--image-size 64", "'vision.image_size'"),
        ("--encoder-blocks 1", "a plan of this policy keeps all, got 1"),
        ("--patches 9", "at most 0 for 'after' of 'vision.patches'"),
        ("--patches 9 --patches-after 0 --tokens 10", "at most 9 visual tokens"),
        ("--patches 17 --calibration nowhere.npz", "'keep' of 'vision.patches', got 17"),
        ("--criterion luck --calibration nowhere.npz", "--criterion"),
        ("--layers 6 --calibration nowhere.npz", "from 1 to 5 language layers"),
        ("--frames 0", "at least 1 frame"),
        ("--calibration nowhere.npz", "expected calibration data"),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trim(folder, *words.split()) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


@pytest.mark.slow
def test_a_shipped_bundle_is_trimmed_on_fresh_demonstrations(tmp_path: Path) -> None:
    """In a process of its own: how MuJoCo renders is chosen before its first import."""
    path = tmp_path / "plan.json"
    words = ("trim", "tabletop", "--tokens", "56", "--frames", "8", "--out", str(path))
    subprocess.run([sys.executable, "-m", "trimvla.launch.cli", *words], check=True, timeout=300)
    provenance = load_plan(path).provenance
    assert provenance is not None
    assert provenance.frames == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.json", "plan.png"]


@pytest.mark.parametrize(
    "instruction",
    ["put the red cube on the purple plate", "what? out: in: pick up the can", "go"],
)
def test_the_instruction_is_found_in_a_prompt(instruction: str, tabletop_bundle: Path) -> None:
    """The image of a plan shows it, not the prompt around it, whose spaces decoding changes."""
    tokenizer = Tokenizer.from_file(str(tabletop_bundle / "tokenizer.json"))
    prompt = PRESETS["tabletop"].prompt
    text = tokenizer.decode(prompt_ids(tokenizer, prompt, instruction))
    assert text != instruction
    found = instruction_in(text, prompt.template)
    assert found.replace(" ", "") == instruction.replace(" ", "")
    assert instruction_in("no prompt of ours", prompt.template) == "no prompt of ours"


def test_patches_may_leave_inside_the_encoders(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--patches 9 --patches-after 0 --tokens 4 --selector uniform --after 1"
    assert trim(folder, *words.split(), "--frames", "4", "--json") == 0
    patches = PatchPlan(keep=9, after=0)
    assert load_plan(folder / "plan.json").vision == VisionPlan(patches=patches)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio_to_dense"]["flops"] < 1
