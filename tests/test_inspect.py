"""One policy call opened up: what a trimmed bundle kept is what is said and drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcap")

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.figures.call_picture import ACCENT, FAINT, MARGIN, SIDE
from trimvla.runtime.inference.policy import Policy

WORDS = "pick up the red cube"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "white.png"
    Image.new("RGB", (24, 24), (255, 255, 255)).save(path)
    return path


@pytest.fixture
def trimmed(tmp_path: Path) -> Path:
    """Keeps the first and the last of four visual tokens, two of four layers, and two of six
    sampler steps.
    """
    return tiny_bundle.write_bundle(tmp_path / "trimmed", kept=(0, 3))


def inspect(bundle: Path, picture: Path, *more: str) -> list[str]:
    return [
        "inspect",
        str(bundle),
        "--image",
        str(picture),
        "--instruction",
        WORDS,
        "--json",
        *more,
    ]


def test_the_policy_says_what_it_kept(trimmed: Path, tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    kept = Policy.load(trimmed, threads=1).infer(image, WORDS).kept
    np.testing.assert_array_equal(kept, [0, 3])
    dense = Policy.load(tiny_bundle.write_bundle(tmp_path / "dense"), threads=1)
    assert dense.infer(image, WORDS).kept is None


def test_a_trimmed_call_is_told_and_drawn(
    trimmed: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "call.png"
    assert cli.main(inspect(trimmed, picture, "--out", str(out))) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tokens"] == {"kept": [0, 3], "of": 4}
    assert result["layers"] == {"run": [0, 2], "of": 4}
    assert result["steps"] == {"computed": [0, 3], "of": 6}
    assert set(result["milliseconds"]) == {"preprocess", "vision", "language", "action", "total"}
    page = np.array(Image.open(out).convert("RGB"))
    seen = page[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
    quarters = [
        seen[y, x].tolist() for y in (SIDE // 4, 3 * SIDE // 4) for x in (SIDE // 4, 3 * SIDE // 4)
    ]
    assert quarters[0] == quarters[3] == [255, 255, 255]
    assert max(quarters[1]) < 80
    assert max(quarters[2]) < 80
    colours = {tuple(colour) for colour in page[:, SIDE + 2 * MARGIN :].reshape(-1, 3).tolist()}
    assert {ACCENT, FAINT} <= colours


def test_a_bundle_alone_is_not_enough(trimmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(trimmed), "--json"]) == 1
    assert "expected --image and --instruction" in capsys.readouterr().out


def test_a_picture_that_is_none(
    trimmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("no picture")
    assert cli.main(inspect(trimmed, tmp_path / "x.png")) == 1
    assert "expected an image" in capsys.readouterr().out


def test_rerun_gets_the_call(trimmed: Path, picture: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    out = str(tmp_path / "call.png")
    rerun = tmp_path / "call.rrd"
    assert cli.main(inspect(trimmed, picture, "--out", out, "--rerun", str(rerun))) == 0
    assert rerun.read_bytes()[:3] == b"RRF"


def test_without_rerun_the_install_is_named(
    trimmed: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert (
        cli.main(inspect(trimmed, picture, "--out", str(tmp_path / "c.png"), "--rerun", "c.rrd"))
        == 1
    )
    assert "pip install 'trimvla[inspect]'" in capsys.readouterr().out
