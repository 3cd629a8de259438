"""Texts from elsewhere, through the verbs that users type: one clear error each, and nothing
written.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import TINY, official_checkpoint, random_policy, write_official
from tokenizers import Tokenizer, models, pre_tokenizers

from trimvla.launch import cli
from trimvla.launch.system.config import decode_file
from trimvla.policies.cogact import checkpoint
from trimvla.policies.cogact.checkpoint import load_official, save
from trimvla.policies.sizes.config import PRESETS
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import CheckpointError, ConfigError
from trimvla.runtime.text_files import parse_json, read_json, read_text

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
ACTION = {"q01": [-0.05] * 7, "q99": [0.05] * 7, "mask": [True] * 6 + [False]}
GOOD = {"lab": {"action": ACTION}}
WRONG_STATISTICS = {
    "empty": (b"", "got an empty file"),
    "lfs": (POINTER.encode(), r"Git LFS pointer to 12345 bytes.*`git lfs pull`"),
    "cut": (json.dumps(GOOD).encode()[:60], r"line 1, column \d+.*cut off"),
    "latin1": (
        json.dumps(GOOD).encode() + b" \xe4",
        r"expected action statistics by data set in UTF-8, got byte 0xE4 in line 1",
    ),
    "utf16": (json.dumps(GOOD).encode("utf-16"), "got UTF-16: save it as UTF-8"),
    "deep": (b"[" * 100_000, "nested deeper than 64"),
    "nested": (b"[" * 200 + b"]" * 200, "nested deeper than 64"),
    "twice": (b'{"lab": {}, "lab": {}}', "the key 'lab' twice"),
    "list": (b"[1]", r"by data set, got list"),
    "nan": (
        json.dumps({"lab": {"action": {**ACTION, "q01": [float("nan")] * 7}}}).encode(),
        r"lab\.action\.q01\[0\]",
    ),
    "long": (
        json.dumps({"lab": {"action": {"q01": [-1.0] * 14, "q99": [1.0] * 14}}}).encode(),
        "q01', got 14",
    ),
    "other": (
        json.dumps({"lab": GOOD["lab"], "x": {}}).encode(),
        r"--statistics-key as one of \['lab', 'x'\]",
    ),
}


def tiny_tokenizer(highest: int = TINY.language.vocab - 1) -> str:
    words = {"<unk>": 4, "what": 5, "to": 6, "do": 7, "last": highest}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_policy(), tmp_path_factory.mktemp("weights") / "policy.safetensors")


@pytest.fixture
def source(tmp_path: Path, weights: Path) -> Path:
    """A run folder with everything that an export needs."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copyfile(weights, run / "policy.safetensors")
    (run / "tokenizer.json").write_text(tiny_tokenizer())
    (run / "statistics.json").write_text(json.dumps(GOOD))
    return run


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one error line of a verb that ends with status 1 and without a traceback."""
    assert cli.main([str(word) for word in words]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("case", WRONG_STATISTICS)
def test_export_names_the_statistics_file(
    case: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    raw, message = WRONG_STATISTICS[case]
    (source / "statistics.json").write_bytes(raw)
    text = refused(capsys, "export", source, "--out", tmp_path / "bundle")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(text)
    assert str(source / "statistics.json") in text or case == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "Git LFS pointer"),
        ("", "got an empty file"),
        ("{}", "no tokenizer"),
        (
            tiny_tokenizer(TINY.language.vocab),
            f"expected ids below {TINY.language.vocab}, the policy's vocabulary",
        ),
        (Tokenizer(models.BPE()).to_str(), "knows words"),
    ],
)
def test_export_names_the_tokenizer(
    content: str, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "tokenizer.json").write_text(content)
    text = refused(capsys, "export", source, "--out", tmp_path / "bundle")
    assert message in text
    assert "tokenizer.json" in text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_byte_order_mark_and_a_broken_neighbour_are_fine(source: Path, tmp_path: Path) -> None:
    table = {**GOOD, "other": {"action": {"mean": [float("nan")]}}}
    (source / "statistics.json").write_bytes(codecs.BOM_UTF8 + json.dumps(table).encode())
    out = tmp_path / "bundle"
    kinds = ["delta", "velocity", "delta", "absolute", "delta", "delta", "gripper"]
    asked = [word for kind in kinds for word in ("--kinds", kind)]
    words = ["export", str(source), "--out", str(out), "--statistics-key", "lab", *asked]
    assert cli.main(words) == 0
    assert list(manifest.load(out).action.kinds) == kinds
    assert json.loads((out / "statistics.json").read_text()) == GOOD
    assert cli.main(["verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("delta", "gripper"), (1, "expected 7 entries for 'kinds', got 2")),
        (("dash",), (2, "velocity")),
    ],
)
def test_export_names_wrong_kinds(
    kinds: tuple[str, ...],
    expected: tuple[int, str],
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, message = expected
    asked = [word for kind in kinds for word in ("--kinds", kind)]
    assert cli.main(["export", str(source), "--out", str(tmp_path / "bundle"), *asked]) == status
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "naïve", "-x", "x" * 65, "a;b"])
def test_a_bundle_has_a_plain_name(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "letters, digits" in refused(capsys, "export", source, "--out", f"{tmp_path}/{name}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_beside_a_bundle_are_not_overwritten(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "bundle.safetensors"
    kept.write_bytes(b"somebody's")
    assert "bundle.safetensors" in refused(capsys, "export", source, "--out", tmp_path / "bundle")
    assert kept.read_bytes() == b"somebody's"
    assert not (tmp_path / "bundle").exists()


def test_overwriting_takes_bundles_only(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    text = refused(capsys, "export", source, "--out", tmp_path / "home", "--overwrite")
    assert "got something else" in text
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("rate", ["0", "-5", "nan", "inf", "1e9"])
def test_a_rate_is_one(
    rate: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "control_hz" in refused(
        capsys, "export", source, "--out", tmp_path / "b", f"--control-hz={rate}"
    )
    assert not (tmp_path / "b").exists()


def test_a_system_in_latin1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes("# Größe des Arms\n[control]\nhz = 5.0\n".encode("latin-1"))
    text = refused(capsys, "run", path)
    assert "latin1.toml: expected TOML in UTF-8, got byte 0xF6 in line 1" in text


def test_a_system_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(codecs.BOM_UTF8 + b"[control]\nhz = 5.0\n")
    assert decode_file(path) == {"control": {"hz": 5.0}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (POINTER.encode(), "Git LFS pointer"),
        (b"a = " + b"[" * 50_000, "nested"),
        (b"a = 1\nb = \nc = 2", "line 2"),
        (b"a = 1\0", "zero byte in line 1"),
        (b"#" * (2 << 20), "at most 1048576 bytes"),
    ],
)
def test_toml_that_is_none(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "system.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=f"system.toml: .*{message}"):
        decode_file(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="got no regular file"):
        read_text(tmp_path / "pipe", "a text")
    with pytest.raises(ConfigError, match="got no regular file"):
        read_json(tmp_path, "a table")


def test_half_of_a_character_is_no_text() -> None:
    with pytest.raises(ConfigError, match="surrogate"):
        parse_json(b'{"a": "\\ud800"}', "x.json", "a table")


def test_a_checkpoint_pointer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official = tmp_path / "official"
    (official / "checkpoints").mkdir(parents=True)
    (official / "checkpoints" / "model.pt").write_text(POINTER)
    (official / "dataset_statistics.json").write_text(json.dumps(GOOD))
    (official / "tokenizer.json").write_text(tiny_tokenizer(31999))
    words = (
        "export",
        official,
        "--preset",
        "cogact-small",
        "--out",
        tmp_path / "b",
        "--dtype",
        "float16",
    )
    text = refused(capsys, *words)
    assert "model.pt: expected a torch checkpoint, got a Git LFS pointer" in text
    shutil.copy(official / "checkpoints" / "model.pt", official / "checkpoints" / "other.pt")
    assert "--checkpoint" in refused(capsys, *words)
    assert "'third.pt'" in refused(capsys, *words, "--checkpoint", "third.pt")
    assert "other.pt: expected a torch checkpoint" in refused(
        capsys, *words, "--checkpoint", "other.pt"
    )
    assert not list(tmp_path.glob("b*"))


def test_a_safetensors_pointer(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        checkpoint.load(tmp_path / "policy.safetensors")


class Foreign:
    """An object of somebody's training code."""


def test_other_forms_of_the_official_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    groups = official_checkpoint()
    file = write_official(tmp_path, groups) / "checkpoints" / "tiny.pt"
    expected = {
        name: value.clone() for name, value in load_official(tmp_path, TINY).state_dict().items()
    }
    flat = {
        f"{group}.{key}": value
        for group, weights in groups.items()
        for key, value in weights.items()
    }
    forms = {
        "flat": flat,
        "flat in model": {"model": flat, "epoch": 3},
        "state_dict": {"state_dict": flat},
        "parallel": {"model": {f"module.{name}": value for name, value in flat.items()}},
        "parallel groups": {
            "model": {
                g: {f"module.{key}": value for key, value in w.items()} for g, w in groups.items()
            }
        },
    }
    for name, content in forms.items():
        torch.save(content, file)
        got = load_official(tmp_path, TINY).state_dict()
        assert all(torch.equal(got[key], value) for key, value in expected.items()), name


def test_foreign_objects_beside_the_weights_are_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    groups = official_checkpoint()
    file = write_official(tmp_path, groups) / "checkpoints" / "tiny.pt"
    torch.save({"model": groups, "config": Foreign()}, file)
    with pytest.raises(
        CheckpointError, match=r"weights only, got an object of '.*Foreign'"
    ) as refusal:
        load_official(tmp_path, TINY)
    assert "weights_only" not in str(refusal.value)
    groups["projector"]["projector.0.weight"] = 7  # type: ignore[assignment]
    torch.save({"model": groups}, file)
    with pytest.raises(CheckpointError, match=r"got int for 'projector\.projector\.0\.weight'"):
        load_official(tmp_path, TINY)


@pytest.mark.parametrize(
    "name", ["pointer", "text", "cut", "pickle", "missing", "kind", "last", "ids"]
)
def test_calibration_archives(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through `trimvla trim`, which takes them."""
    cfg = PRESETS["tabletop"]
    path = tmp_path / "frames.npz"
    arrays = {
        "policy": np.array(cfg.fingerprint),
        "images": np.zeros((2, 128, 128, 3), np.uint8),
        "input_ids": np.ones((2, 12), np.int64),
        "last": np.array([3, 4]),
    }
    changed: dict[str, dict[str, np.ndarray]] = {
        "pickle": {"images": np.array([object()])},
        "kind": {"images": np.zeros((2, 128, 128, 3), np.float32)},
        "last": {"last": np.array([3, 12])},
        "ids": {"input_ids": np.full((2, 12), 512)},
    }
    arrays |= changed.get(name, {})
    if name == "missing":
        del arrays["last"]
    np.savez_compressed(path, **arrays)
    if name in ("pointer", "text", "cut"):
        path.write_bytes(
            {"pointer": POINTER.encode(), "text": b"x", "cut": path.read_bytes()[:-200]}[name]
        )
    text = refused(
        capsys, "trim", "tabletop", "--out", tmp_path / "plan.json", "--calibration", path
    )
    assert "frames.npz" in text.replace(" ", "")
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGHUP, signal.SIGINT)),
    ],
)
def test_an_export_that_is_ended_leaves_nothing(
    number: signal.Signals, source: Path, tmp_path: Path
) -> None:
    words = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "export",
        str(source),
        "--out",
        str(tmp_path / "bundle"),
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob(".bundle.*/*.json")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(120) != 0
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
