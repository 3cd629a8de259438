"""`verify`, `trim` and `ablate` on checkpoints as their makers publish them, and on their
bundles.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import shared_exports
from trimvla.launch.cli import main
from trimvla.launch.exporting.policy_source import policy_of_bundle
from trimvla.policies.families import parse_config
from trimvla.runtime.bundle.manifest import load

FOLDERS = ("smolvla_tiny_a", "pi0_tiny_a")


def fixture(shared_dir: Path, name: str) -> Path:
    """A reference in its makers' layout; skips where it is absent."""
    folder = shared_dir / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"the reference fixture {name} is not here")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) for name in ("smolvla_tiny_a", "pi0_tiny_a")
    ],
)
def exported(
    request: pytest.FixtureRequest, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A folder, and the bundle that `trimvla export` made of it."""
    folder = fixture(shared_dir, request.param)
    return folder, shared_exports.exported(folder, tmp_path_factory)


def test_a_bundle_of_a_folder_is_verified_against_it(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the folder the error names --source; with it all agree; with other weights not."""
    folder, bundle = exported
    assert main(["verify", str(bundle)]) == 1
    assert "--source DIR" in capsys.readouterr().err
    assert main(["verify", str(bundle), "--source", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"]
    assert result["compared"]
    assert main(["verify", str(bundle), "--source", str(with_other_weights(folder, tmp_path))]) == 1
    assert "differ" in capsys.readouterr().out


def with_other_weights(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder whose weights are a little larger."""
    other = shutil.copytree(folder, tmp_path / "other")
    for path in other.glob("model*.safetensors"):
        weights = load_file(path)
        save_file({name: np.multiply(w, 1.1, dtype=w.dtype) for name, w in weights.items()}, path)
    return other


def test_a_source_that_cannot_be_is_one_error(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = exported
    other = fixture(folder.parents[1], FOLDERS[folder.name == FOLDERS[0]])
    for words, message in (
        ((str(bundle), "--source", str(tmp_path / "none")), "a folder, or a shipped bundle"),
        ((str(bundle), "--source", str(tmp_path)), "expected a checkpoint of a known family"),
        ((str(bundle), "--source", str(other)), "got another"),
        ((str(bundle), "--checkpoint", "x.pt"), "--checkpoint with --source only"),
        (("--reference", str(folder), "--source", str(folder)), "--source with a bundle only"),
    ):
        assert main(["verify", *words]) == 1
        assert message in capsys.readouterr().err


def test_what_a_planner_lacks_is_refused_before_anything_is_written(
    exported: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = exported
    family = folder.name.partition("_")[0]
    out = tmp_path / "made" / "plan.json"
    for source, message in (
        (folder, "expected shards of demonstrations (--calibration FILE or FOLDER with"),
        (bundle, "expected the checkpoint's folder, got a run's or a bundle"),
    ):
        assert main(["trim", str(source), "--out", str(out), "--layers", "1"]) == 1
        assert message in capsys.readouterr().err
    assert main(["ablate", str(bundle), "--out", str(out.parent), "--work", str(out.parent)]) == 1
    assert f"got one of family '{family}'" in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_shipped_bundle_is_a_source_by_its_name(tabletop_bundle: Path, tmp_path: Path) -> None:
    """For a bundle that was exported from a shipped one, and has no weights beside it."""
    bundle = shutil.copytree(tabletop_bundle, tmp_path / "mine")
    policy = policy_of_bundle(bundle, Path("tabletop"))
    assert parse_config(load(bundle).policy) == policy.cfg
