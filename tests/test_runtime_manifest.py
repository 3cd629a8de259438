"""A bundle is complete or refused, with one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_bundle import manifest, write_bundle

from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import BundleError

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def edit(bundle: Path, change: Edit) -> None:
    path = bundle / bundles.MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_was_written_loads(bundle: Path) -> None:
    loaded = bundles.load(bundle)
    assert loaded.files.keys() == {
        "vision.onnx",
        "language.onnx",
        "action.onnx",
        "tokenizer.json",
        "statistics.json",
    }
    assert msgspec.structs.replace(loaded, files={}) == manifest()
    assert loaded.plan == bundles.Plan()


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "language.onnx").unlink()
    with pytest.raises(BundleError, match=r"file 'language\.onnx' is missing"):
        bundles.load(bundle)


def test_a_truncated_file(bundle: Path) -> None:
    path = bundle / "vision.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        BundleError, match=rf"vision\.onnx: expected {len(content)} bytes, got {len(content) - 1}"
    ):
        bundles.load(bundle, verify_hashes=False)


def test_a_wrong_hash(bundle: Path) -> None:
    path = bundle / "action.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(
        BundleError, match=r"action\.onnx: expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"
    ):
        bundles.load(bundle)


def test_a_file_outside_the_bundle(bundle: Path) -> None:
    (bundle.parent / "stray").write_text("")
    empty = {"sha256": "0" * 64, "bytes": 0}
    edit(bundle, lambda data: data["files"].update({"../stray": empty}))
    with pytest.raises(BundleError, match=r"'\.\./stray' lies outside"):
        bundles.load(bundle)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"manifest\.json: expected a manifest, got: No such file"
    ):
        bundles.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "tiny"}', "[" * 100_000])
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / bundles.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundles.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=3), "expected schema_version 1 or 2, got 3"),
        (lambda d: d.update(schema_version="1"), "expected schema_version 1 or 2, got '1'"),
        (lambda d: d.update(surplus=1), "surplus"),
        (lambda d: d["plan"].update(depth=[0]), r"depth.*plan"),
        (lambda d: d["plan"].update(layers=[2, 1]), "rising indices"),
        (lambda d: d["action"].update(horizon="16"), r"action\.horizon"),
        (
            lambda d: d["action"].update(kinds=["delta"]),
            r"expected 7 entries for 'action\.kinds', got 1",
        ),
        (lambda d: d["action"].update(kinds=["jerk"] * 7), r"jerk.*action\.kinds"),
        (lambda d: d["prompt"].update(buckets=[16, 12]), r"rising lengths for 'prompt\.buckets'"),
        (lambda d: d["prompt"].update(template="?"), r"prompt\.template"),
        (
            lambda d: d["images"].update(size=9),
            r"expected \[1, 9, 9, 3\] for 'image' of stage 'vision'",
        ),
        (
            lambda d: d["action"].update(horizon=15),
            r"expected \[1, 15, 7\] for 'noise' of stage 'action'",
        ),
        (lambda d: d["stages"].pop("action"), "expected stages"),
        (lambda d: d["stages"]["vision"].update(inputs=[]), "expected a tensor 'image'"),
        (lambda d: d["files"].pop("tokenizer.json"), r"'tokenizer\.json' is needed"),
        (lambda d: d["stages"]["vision"].update(file="other.onnx"), r"'other\.onnx' is needed"),
    ],
)
def test_a_wrong_field_is_named(bundle: Path, change: Edit, message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        bundles.load(bundle)


def test_resolve_takes_a_path(bundle: Path) -> None:
    assert bundles.resolve(bundle) == bundle
    assert bundles.resolve(str(bundle)) == bundle


def test_resolve_takes_a_shipped_name(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_shipped_roots", lambda: [bundle.parent])
    assert bundles.resolve("tiny") == bundle
    assert bundles.shipped() == ["tiny"]
    with pytest.raises(BundleError, match=r"shipped bundle \(tiny\), got 'large'"):
        bundles.resolve("large")


def test_shipped_bundles_are_complete(tabletop_bundle: Path) -> None:
    for name in bundles.shipped():
        bundles.load(bundles.resolve(name))
    assert bundles.resolve("tabletop").samefile(tabletop_bundle)
