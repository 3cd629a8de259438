"""`trimvla trim` for policies whose expert reads the decoder layer by layer: pi0 and SmolVLA."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from smolvla_policy import TINY, write_checkpoint
from test_flow_training import TINY as PI0_TINY
from tokenizers import Tokenizer, models

from trimvla.launch import cli
from trimvla.launch.exporting.paired_plan import frames_of
from trimvla.launch.exporting.policy_source import build_policy, open_source
from trimvla.launch.training.presets import flow_tokenizer
from trimvla.policies.families import family_of
from trimvla.policies.nn.gemma import GemmaLayer
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.pi0.save import save_lerobot
from trimvla.policies.training.flow_dataset import EPSILON
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.pairs import measure_pairs
from trimvla.runtime.bundle.plan import Plan, load_plan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def pi0_folder(directory: Path) -> Path:
    """A tiny pi0 whose decoder's layer 1 does nothing."""
    torch.manual_seed(0)
    policy = Pi0(PI0_TINY).eval()
    layer = policy.language.layers[1]
    assert isinstance(layer, GemmaLayer)
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    statistics = {
        name: {"mean": [0.0] * dim, "std": [1.0] * dim}
        for name, dim in (("action", 7), ("state", 5))
    }
    save_lerobot(
        policy,
        directory,
        statistics=statistics,
        tokenizer=flow_tokenizer(PI0_TINY),
        epsilon=EPSILON,
    )
    shard(directory, side=128, state=5)
    return directory


def smolvla_folder(directory: Path) -> Path:
    write_checkpoint(directory)
    words = {word: index for index, word in enumerate(("<pad>", "<s>", "<unk>", "lift"))}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(directory / "tokenizer.json"))
    shard(directory, side=32, state=TINY.state_dim)
    return directory


def shard(directory: Path, *, side: int, state: int) -> None:
    """Demonstrations as `train` makes them, of noise."""
    rng = np.random.default_rng(0)
    (directory / "demos").mkdir()
    np.savez(
        directory / "demos" / "shard-0000.npz",
        images=rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8),
        wrist=rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8),
        state=rng.normal(size=(6, state)).astype(np.float32),
        texts=np.full((6, 2), "lift"),
    )


def trim(folder: Path, *words: str) -> int:
    return cli.main(["trim", str(folder), "--out", str(folder / "plan.json"), *words])


def test_a_pair_that_does_nothing_goes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pi0_folder(tmp_path)
    words = "--layers 3 --tokens 10 --key-tokens 2 --after 1 --cache-interval 2 --frames 4 --json"
    assert trim(folder, *words.split()) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    plan = load_plan(folder / "plan.json")
    assert plan.layers == (0, 2, 3)
    assert result["scores"][1] == pytest.approx(0.0, abs=1e-6)
    assert result["scores"][3] == max(result["scores"])  # keys and values alone: never first to go
    assert plan.tokens is not None
    assert plan.tokens.keep == 10
    assert plan.recompute == (0, 2, 4, 6, 8)
    assert plan.provenance is not None
    assert plan.provenance.frames == 4
    assert result["ratio_to_dense"]["flops"] < 1
    assert result["ratio_to_dense"]["parameters"] < 1
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_may_go_in_the_order_in_which_actions_move_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pi0_folder(tmp_path)
    words = ("--layers", "3", "--frames", "3", "--criterion")
    assert trim(folder, *words, "greedy-chunk") == 0
    plan = load_plan(folder / "plan.json")
    assert plan.provenance is not None
    scores = plan.provenance.scores
    assert sorted(scores) == [0.25, 0.5, 0.75, 1.0]
    opened = open_source(folder)
    frames = frames_of(opened, [folder / "demos" / "shard-0000.npz"], 3, 0)
    samples = [{**sample, "last": sample["length"] - 1} for sample in frames.samples]
    outputs = Outputs(family_of(opened.cfg), build_policy(opened), samples)
    moved = outputs.distances(range(4), "chunk")
    assert scores[moved.index(min(moved))] == 0.25
    assert plan.layers == tuple(index for index in range(4) if scores[index] > 0.25)
    assert trim(folder, *words, "greedy-feature") == 1
    assert "a policy with a tensor 'cognition' for this criterion" in capsys.readouterr().err


def test_patches_may_leave_inside_the_encoder(tmp_path: Path) -> None:
    folder = pi0_folder(tmp_path)
    words = "--patches 9 --patches-after 0 --tokens 10 --after 1 --frames 1"
    assert trim(folder, *words.split()) == 0
    patches = PatchPlan(keep=9, after=0)
    assert load_plan(folder / "plan.json").vision == VisionPlan(patches=patches)


def test_smaller_images_and_fewer_encoder_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = smolvla_folder(tmp_path)
    words = "--image-size 16 --encoder-blocks 2 --tokens 5 --selector uniform --after 1 --frames 1"
    assert trim(folder, *words.split(), "--json") == 0
    plan = load_plan(folder / "plan.json")
    assert plan.vision == VisionPlan(image_size=16, blocks=((0, 2),))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio_to_dense"]["flops"] < 0.6
    plain = msgspec.structs.replace(plan, policy=None)
    costs = [family_of(TINY).cost(TINY, each).stages["vision"].flops for each in (plain, Plan())]
    assert costs[0] < costs[1] / 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image-size 12", "a multiple of 8 (patches of 4, 2 a token) for 'image_size'"),
        ("--image-size 64", "at most 32 pixels, as the policy has them"),
        ("--image-size 16 --tokens 9 --after 1", "got 9"),  # 4 tokens a camera are left
        ("--encoder-blocks 4", "from 1 to 3 encoder blocks to keep, got 4"),
        ("--encoder-blocks 0", "from 1 to 3 encoder blocks to keep, got 0"),
    ],
)
def test_less_of_an_image_than_there_is_or_can_be(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = smolvla_folder(tmp_path)
    assert trim(folder, *words.split(), "--frames", "1") == 1
    assert message in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


def test_every_camera_and_the_state_are_measured(tmp_path: Path) -> None:
    folder = smolvla_folder(tmp_path)
    assert trim(folder, "--layers", "3", "--frames", "6") == 0
    first = load_plan(folder / "plan.json")
    assert first.provenance is not None
    assert len(first.layers or ()) == 3
    path = folder / "demos" / "shard-0000.npz"
    for name in ("wrist", "state"):
        with np.load(path) as arrays:
            stored = dict(arrays)
        rewrite(path, **{name: np.zeros_like(stored[name])})
        assert trim(folder, "--layers", "3", "--frames", "6") == 0
        changed = load_plan(folder / "plan.json").provenance
        assert changed is not None
        assert changed.scores != first.provenance.scores
        np.savez(path, **stored)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layers 5", "from 1 to 4 language layers"),
        ("--tokens 33", "at most 32 visual tokens"),
        ("--patches 17", "'vision.patches'"),
        ("--patches 9 --patches-after 0 --tokens 19", "at most 18 visual tokens"),
        ("--mlp-keep 0.5", "expected --mlp-keep 1"),
        ("--guidance 1.5", "nothing to trim by ['guidance']"),
        ("--frames 0", "at least 1 frame"),
        ("--calibration nowhere.npz", "expected a shard of demonstrations, a LeRobot data set"),
        ("--env tabletop", "expected no --env"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pi0_folder(tmp_path)
    assert trim(folder, *words.split()) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


def rewrite(path: Path, **changed: np.ndarray | None) -> None:
    """The shard with other arrays, or without those that are None."""
    with np.load(path) as arrays:
        stored = {**arrays, **changed}
    np.savez(path, **{name: array for name, array in stored.items() if array is not None})


SPOILT: list[tuple[dict[str, np.ndarray | None], str]] = [
    ({"wrist": None}, "expected 'wrist' in the shard, got ['images', 'state', 'texts']"),
    ({"texts": None}, "expected 'texts' in the shard"),
    ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "6 x any x any x 3 for 'images'"),
    ({"images": np.zeros((6, 0, 8, 3), np.uint8)}, "row 0: expected pixels in 'front'"),
    ({"wrist": np.zeros((5, 8, 8, 3), np.uint8)}, "for 'wrist', got uint8 of 5 x 8 x 8 x 3"),
    ({"wrist": np.zeros((6, 8, 8, 3), np.float32)}, "for 'wrist', got float32"),
    ({"state": np.zeros((6, 4), np.float32)}, "6 x 5 for 'state', got float32 of 6 x 4"),
    ({"state": np.full((6, 5), np.nan, np.float32)}, "row 0: expected finite numbers"),
    ({"state": np.array([[None] * 5] * 6)}, "for 'state', got Python objects"),
    ({"texts": np.zeros(6)}, "expected text of any for 'texts', got float64 of 6"),
    ({"texts": np.zeros((6, 0), "<U4")}, "expected an instruction in every row"),
    ({"texts": np.full(6, "lift " * 20)}, "row 0: "),
]


def test_a_shard_that_cannot_be_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pi0_folder(tmp_path)
    opened = open_source(folder)
    path = folder / "demos" / "shard-0000.npz"
    sound = path.read_bytes()
    for changed, message in SPOILT:
        path.write_bytes(sound)
        rewrite(path, **changed)
        with pytest.raises(ConfigError) as caught:
            frames_of(opened, [path], 6, 0)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
    for spoilt in (b"", b"none", sound[:-3000], sound[: len(sound) // 2], LFS):
        path.write_bytes(spoilt)
        with pytest.raises(ConfigError, match="expected a shard of demonstrations"):
            frames_of(opened, [path], 6, 0)
    assert trim(folder, "--layers", "3") == 1
    assert f"{path}: expected a shard of demonstrations" in capsys.readouterr().err
    assert not (folder / "plan.json").exists()


def test_one_instruction_a_row_will_do(tmp_path: Path) -> None:
    folder = pi0_folder(tmp_path)
    opened = open_source(folder)
    path = folder / "demos" / "shard-0000.npz"
    first = frames_of(opened, [path], 6, 0)
    rewrite(path, texts=np.full(6, "lift"))
    assert frames_of(opened, [path], 6, 0).digest() == first.digest()


def test_the_plan_it_gives_is_one_that_the_family_takes(tmp_path: Path) -> None:
    folder = pi0_folder(tmp_path)
    assert trim(folder, "--layers", "2", "--frames", "2") == 0
    plan = load_plan(folder / "plan.json")
    trimmed = family_of(PI0_TINY).trim(Pi0(PI0_TINY), Plan(layers=plan.layers))
    assert len(trimmed.expert.layers) == 2


def test_there_is_something_to_measure() -> None:
    with pytest.raises(ConfigError, match="at least one calibration sample"):
        measure_pairs(Pi0(PI0_TINY), [])
    alone = msgspec.structs.replace(PI0_TINY.language, layers=1)
    with pytest.raises(ConfigError, match="at least 2 layers"):
        measure_pairs(Pi0(msgspec.structs.replace(PI0_TINY, language=alone)), [])
