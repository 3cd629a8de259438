"""`trimvla export` of a folder that lacks something, or holds something else: one clear error for
each family, and nothing is written.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from trimvla.launch.cli import main

FAMILIES = ("smolvla", "pi0", "pi05", "dbcogact")
DATA_SETS = ("so100", "so101")


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, shared_dir: Path, tmp_path: Path) -> Path:
    """A copy of a family's reference in its makers' layout; skips where it is absent."""
    return copied(shared_dir, request.param, tmp_path)


def copied(shared_dir: Path, family: str, tmp_path: Path) -> Path:
    source = shared_dir / "fixtures" / f"{family}_tiny_a"
    if not source.is_dir():
        pytest.skip(f"the reference fixture {source.name} is not here")
    return shutil.copytree(source, tmp_path / family)


def refused(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The error of exporting the folder, after a look that it is one and that nothing is left."""
    capsys.readouterr()
    assert main(["export", str(folder), "--out", str(out), *more]) == 1
    message = capsys.readouterr().err
    assert message.count("error:") == 1, message
    assert "Traceback" not in message
    assert not out.exists()
    assert not list(out.parent.glob(f"*{out.name}*"))
    return message


def group_by_data_set(folder: Path) -> None:
    """Puts the folder's statistics under two data sets, as its makers do for several."""
    table = folder / "norm_stats.json"
    if table.exists():
        entry = next(iter(json.loads(table.read_text()).values()))
        table.write_text(json.dumps(dict.fromkeys(DATA_SETS, entry)))
        return
    for path in folder.glob("policy_*normalizer_processor.safetensors"):
        arrays = load_file(path)
        grouped = {
            f"{key}.buffer.{name}": array.copy()
            for name, array in arrays.items()
            for key in DATA_SETS
        }
        save_file(grouped, path)


def test_statistics_by_data_set_without_a_chosen_key(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group_by_data_set(folder)
    message = " ".join(refused(folder, tmp_path / "made", capsys).split())
    assert "--statistics-key as one of ['so100', 'so101'], got None" in message
    other = ("--statistics-key", "aloha")
    message = " ".join(refused(folder, tmp_path / "made", capsys, *other).split())
    assert "--statistics-key as one of ['so100', 'so101'], got 'aloha'" in message


def test_weights_of_another_family(
    folder: Path, shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "smolvla" if folder.name != "smolvla" else "pi0"
    theirs = copied(shared_dir, other, tmp_path / "theirs")
    shutil.copy(theirs / "model.safetensors", folder / "model.safetensors")
    message = " ".join(refused(folder, tmp_path / "made", capsys).split())
    assert f"{folder / 'model.safetensors'}: " in message
    assert re.search(r"\d+ missing weight\(s\): 'model\.", message)
    assert re.search(r"\d+ (unexpected weight|other)\(s\): 'model\.", message), "what came"


def test_a_missing_tokenizer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in list(folder.rglob("tokenizer.json")):
        path.unlink()
    message = " ".join(refused(folder, tmp_path / "made", capsys).split())
    assert "tokenizer.json" in message
    assert str(folder) in message
    assert "--tokenizer" in message


@pytest.mark.parametrize("content", [None, "folder", '{"a":', "{}", ""])
def test_what_is_no_tokenizer_is_named(
    content: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "words.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    message = refused(folder, tmp_path / "made", capsys, "--tokenizer", str(path))
    assert str(path) in " ".join(message.split())
