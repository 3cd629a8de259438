"""`trimvla tune`: points, prices and fronts are what their words say; a whole search on a tiny
policy, killed and gone on with; budgets that cannot be met, and frames of another policy.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_policy import TINY, export_cogact, random_policy
from tokenizers import Tokenizer, models, pre_tokenizers

from trimvla.launch import cli
from trimvla.launch.tuning.kept import Kept
from trimvla.launch.tuning.points import (
    Point,
    dense_point,
    grid,
    patch_plan,
    spread_out,
    token_plan,
)
from trimvla.launch.tuning.prices import Measured, errors, fit, rank_correlation
from trimvla.launch.tuning.search import Candidate, chosen, front
from trimvla.policies.cogact.checkpoint import save
from trimvla.policies.sizes.counts import Trimmable
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, load_plan
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_toml

THERE = Trimmable(layers=16, mlp_hidden=400, image_tokens=256, steps=10)
DENSE = dense_point(THERE)
TEN = spread_out(grid(THERE, 5), 10)
FOUR_LAYERS = msgspec.structs.replace(
    TINY, language=msgspec.structs.replace(TINY.language, layers=4)
)
QUICK = (
    "--frames 4 --priced 4 --rounds 3 --warmup 1 --points 2 --cache-interval 2 --instruction lift"
    " --json"
)
STATISTICS = {
    "lab": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}}
}


# --- points ---


def test_the_grid_begins_dense_and_drops_no_token_twice() -> None:
    points = grid(THERE, 5)
    assert points[0] == DENSE
    assert len(set(points)) == len(points)
    assert all(point.tokens <= point.patches for point in points)
    assert {point.cache_interval for point in points[1:]} == {5}
    assert Point(11, 0.75, 56, 256, 5) in points  # the paper's strength
    assert token_plan(DENSE, THERE) is None
    assert patch_plan(DENSE, THERE, 4) is None


def test_a_point_becomes_what_it_says() -> None:
    point = Point(11, 0.75, 56, 128, 5)
    tokens = token_plan(point, THERE)
    patches = patch_plan(point, THERE, 4)
    assert tokens is not None
    assert patches is not None
    assert (tokens.keep, tokens.after, patches.keep, patches.after) == (56, 5, 128, 2)
    assert patch_plan(point, THERE, 1).after == 0  # type: ignore[union-attr]
    assert token_plan(Point(16, 1.0, 128, 128, 5), THERE) is None  # the encoders' own choice
    assert token_plan(Point(3, 1.0, 56, 256, 5), THERE).after == 2  # type: ignore[union-attr]


def test_a_device_is_measured_where_points_lie_far_apart() -> None:
    points = spread_out(grid(THERE, 5), 10)
    assert points[0] == DENSE
    assert len(set(points)) == 10
    assert {point.patches for point in points} == {128, 256}
    assert min(point.layers for point in points) == 7
    assert min(point.mlp_keep for point in points) == 0.5


# --- prices ---


def flops(point: Point) -> float:
    return 1e6 * point.layers * (1 + 2 * point.mlp_keep) * (64 + point.tokens)


def took(point: Point) -> dict[str, float]:
    """A device that adds up."""
    return {
        "vision": 8.0 * point.patches / 256,
        "language": 1e-9 * flops(point) + 0.2 * point.layers + 0.5,
        "action": 14.0 / point.cache_interval,
    }


def test_prices_of_a_device_that_adds_up_are_right() -> None:
    points = grid(THERE, 5)
    measured = [Measured(point, took(point), flops(point)) for point in spread_out(points, 10)]
    prices = fit(measured)
    for point in points:
        assert prices.of(point, flops(point)) == pytest.approx(sum(took(point).values()), rel=1e-6)
    assert max(map(abs, errors(measured))) < 1e-6
    assert len(errors(measured)) == 9  # the dense schedule is measured once


@given(st.lists(st.floats(0.5, 2.0), min_size=10, max_size=10))
def test_no_price_is_negative(noise: list[float]) -> None:
    measured = [
        Measured(point, {name: ms * factor for name, ms in took(point).items()}, flops(point))
        for point, factor in zip(TEN, noise, strict=True)
    ]
    prices = fit(measured)
    assert min(prices.language) >= 0
    assert all(prices.of(point, flops(point)) > 0 for point in TEN)


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


# --- the front ---


def candidate(layers: int, price: float, distance: float) -> Candidate:
    return Candidate(Point(layers, 1.0, 256, 256, 5), price, distance)


LINE = [
    candidate(16, 40.0, 0.0),
    candidate(14, 30.0, 0.1),
    candidate(12, 29.0, 0.3),
    candidate(10, 20.0, 0.2),
    candidate(8, 10.0, 0.9),
]


def test_the_front_holds_what_nothing_beats() -> None:
    assert [one.point.layers for one in front(LINE)] == [16, 14, 10, 8]


def test_a_budget_gets_the_nearest_to_dense_that_meets_it() -> None:
    assert [one.point.layers for one in chosen(LINE, 40.0, [25.0], 1)] == [10]
    assert [one.point.layers for one in chosen(LINE, 40.0, [29.5, 10.0], 2)] == [10, 8]
    assert [one.point.layers for one in chosen(LINE, 40.0, [], 3)] == [14, 10, 8]


def test_a_budget_that_cannot_be_met_names_the_fastest_and_its_cost() -> None:
    words = r"at least 10 ms on this device \(4\.00 times dense, distance 0\.9\), got 5 ms"
    with pytest.raises(ConfigError, match=words):
        chosen(LINE, 40.0, [5.0], 1)


def test_what_is_kept_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    kept: Kept[float] = Kept(path, float)
    kept.add("a", 1.0)
    kept.add("b", 2.0)
    path.write_bytes(path.read_bytes()[:-4])
    again: Kept[float] = Kept(path, float)
    assert "b" not in again
    again.add("c", 3.0)
    last: Kept[float] = Kept(path, float)
    assert last.found == {"a": 1.0, "c": 3.0}


# --- the verb ---


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense bundle of a tiny policy with its weights beside it, and frames."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("tune")
    words = "<pad> <s> </s> <empty> <unk> In : What action should the robot take to ? Out lift"
    table = {word: index for index, word in enumerate(words.split())}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(place / "tokenizer.json"))
    policy = random_policy(FOUR_LAYERS)
    for parameter in policy.parameters():
        parameter.data = parameter.data.half().float()
    export_cogact(
        policy,
        Plan(),
        STATISTICS,
        place / "tokenizer.json",
        place / "whole",
        statistics_key="lab",
        control_hz=5.0,
    )
    save(policy, place / "whole.safetensors")
    frames(FOUR_LAYERS.fingerprint).save(place / "frames.npz")
    return place / "whole"


def frames(policy: str) -> Calibration:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 16, (4, 10))
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return Calibration(policy, images, ids, np.array([9, 8, 9, 7]))


def tune(dense: Path, out: Path, *words: str) -> int:
    given = ["--calibration", str(dense.with_name("frames.npz")), *QUICK.split(), *words]
    return cli.main(["tune", str(dense), "--out", str(out), *given])


@pytest.mark.slow
def test_a_search_makes_bundles_and_goes_on_where_it_was(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert tune(dense, out) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [point["name"] for point in first["points"]]
    assert names[0] == "dense"
    assert 2 <= len(names) <= 3
    assert first["prices"]["bundles"] == 4
    for point in first["points"][1:]:
        plan = load_plan(Path(point["plan"]))
        assert bundles.load(Path(point["bundle"])).plan == plan
        assert plan.provenance is not None
        assert plan.provenance.criterion == "greedy-chunk"
        assert plan.recompute == (0,)
        assert point["flops_ratio"] < 1
        assert point["timing"]["p50_ms"] > 0
        assert "success" not in point
    distances = [point["distance"] for point in first["points"]]
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    assert json.loads((out / "front.json").read_text())["points"] == first["points"]
    system = read_toml(out / "system.toml", "TOML")
    assert len(system["policy"]["rungs"]) == len(names)
    assert "bundle" not in system["policy"]
    assert math.isfinite(system["policy"]["ladder"]["deadline_s"])

    # killed in the middle of the distances: what is there stays, the front is the same
    (path,) = out.glob("state/*/distances.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:-5])
    (orders,) = out.glob("state/*/orders.jsonl")
    kept = orders.stat().st_mtime_ns
    assert tune(dense, out) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [point["name"] for point in again["points"]] == names
    assert [point["distance"] for point in again["points"]] == pytest.approx(distances)
    assert orders.stat().st_mtime_ns == kept

    assert tune(dense, out, "--speedup", "500") == 1
    message = capsys.readouterr()
    assert "on this device" in message.out + message.err
    assert "times dense, distance" in message.out + message.err
    assert sorted(out.glob("*.partial")) == []


def test_frames_of_another_policy_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "frames.npz"
    frames("another").save(path)
    words = ["tune", "tabletop", "--out", str(tmp_path / "out"), "--calibration", str(path)]
    assert cli.main(words) == 1
    assert "expected calibration data of policy 'tabletop'" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--speedup 1", "more than 1 for --speedup"),
        ("--budget-ms 0", "more than 0 ms for --budget-ms"),
        ("--points 0", "at least 1 for --points"),
        ("--priced 3", "at least 4 for --priced"),
        ("--points 1 --speedup 2 --speedup 3", "as many --points as budgets"),
    ],
)
def test_what_is_out_of_range_is_one_error(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", "--out", str(tmp_path / "out"), *words.split()]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
