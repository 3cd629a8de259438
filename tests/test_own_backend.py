"""A backend of one's own is held to the contract, and none is imported because a file names it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_bundle
from tests.runner_contract import check_runner
from trimvla.launch import cli
from trimvla.runtime.backends import ort_runner
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError, BackendUnavailableError
from trimvla.runtime.inference.policy import Policy

HERE = "tests.test_own_backend"
ASKED: list[tuple[str | None, int]] = []


class Sloppy:
    """Checks nothing and hands out the same buffers again."""

    def __init__(self, model: Path, spec: StageSpec) -> None:
        self._runner = ort_runner.create(model, spec)
        self._spec = spec
        self._buffers: dict[str, np.ndarray] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, value in self._runner.run(inputs).items():
            self._buffers.setdefault(name, value.copy())[...] = value
        return self._buffers

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        self._runner.close()


def sloppy(model: Path, spec: StageSpec, provider: str | None, threads: int) -> Sloppy:
    ASKED.append((provider, threads))
    return Sloppy(model, spec)


class Wrong(Sloppy):
    """Spoils what comes out of the last stage."""

    change: Any

    def run(self, inputs: Mapping[str, np.ndarray]) -> Any:
        found = super().run(inputs)
        return type(self).change(found) if "actions" in found else found


def wrong(change: Any) -> Any:
    def make(model: Path, spec: StageSpec, *, provider: Any = None, threads: int = 0) -> Wrong:
        made = type("Made", (Wrong,), {"change": staticmethod(change)})
        return made(model, spec)

    return make


def lose(found: dict[str, np.ndarray]) -> Any:
    raise RuntimeError("CUDA error: device lost")


def fail(found: dict[str, np.ndarray]) -> Any:
    raise KeyError("nothing")


narrow = wrong(lambda found: {"actions": found["actions"][:, :, :6]})
doubled = wrong(lambda found: {"actions": found["actions"].astype(np.float64)})
renamed = wrong(lambda found: {"action": found["actions"]})
listed = wrong(lambda found: [found["actions"]])
lost = wrong(lose)
failing = wrong(fail)


def empty(model: Path, spec: StageSpec, *, provider: Any, threads: int) -> object:
    return object()


def broken(model: Path, spec: StageSpec, *, provider: Any, threads: int) -> object:
    return 1 / 0


def two(model: Path, spec: StageSpec) -> object:
    return object()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle.write_bundle(tmp_path / "tiny")


def test_even_a_sloppy_one_keeps_the_contract(bundle: Path) -> None:
    manifest = tiny_bundle.manifest()
    spec = manifest.stages["action"]
    runner = create(f"{HERE}:sloppy", bundle / spec.file, spec)
    rng = np.random.default_rng(0)
    inputs = {
        tensor.name: rng.normal(size=[int(axis) for axis in tensor.shape]).astype(tensor.dtype)
        for tensor in spec.inputs
    }
    check_runner(runner, inputs)
    assert runner.describe()["backend"] == f"{HERE}:sloppy"
    runner.close()


def test_it_gives_what_ours_gives(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    asked = importlib.import_module(HERE).ASKED  # the copy that the backend was imported from
    asked.clear()
    own = Policy.load(bundle, backend=f"{HERE}:sloppy:fast", threads=2)
    ours = Policy.load(bundle)
    chunk = own.infer(image, "stack the red cube", seed=1).actions
    np.testing.assert_array_equal(chunk, ours.infer(image, "stack the red cube", seed=1).actions)
    assert asked == [("fast", 2)] * 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("narrow", r"expected float32\[1, 16, 7\] for 'actions', got float32\[1, 16, 6\]"),
        ("doubled", r"expected float32\[1, 16, 7\] for 'actions', got float64"),
        ("renamed", r"expected outputs \['actions'\], got \['action'\]"),
        ("listed", r"expected outputs \['actions'\], got list"),
        ("failing", "'nothing'"),
        ("lost", "CUDA error: device lost"),
    ],
)
def test_what_a_wrong_one_gives_never_reaches_the_robot(
    name: str, words: str, bundle: Path
) -> None:
    policy = Policy.load(bundle, backend=f"{HERE}:{name}")
    with pytest.raises(BackendError, match=words) as caught:
        policy.infer(np.zeros((8, 8, 3), np.uint8), "stack the red cube")
    assert isinstance(caught.value, BackendUnavailableError) == (name == "lost")
    policy.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            f"{HERE}:empty",
            "expected a runner of 'vision.onnx', got object without run, describe, close",
        ),
        (f"{HERE}:broken", "ZeroDivisionError: division by zero"),
        (f"{HERE}:two", r"expected a function \(model, spec, provider, threads\)"),
        (f"{HERE}:none", "expected 'none' in 'tests.test_own_backend'"),
        ("no_such_pkg:create", "'backend': expected a module 'no_such_pkg'"),
        ("onnx", r"or module:attribute of your own, got 'onnx' for 'backend'"),
    ],
)
def test_what_is_no_backend(name: str, words: str, bundle: Path) -> None:
    with pytest.raises(BackendError, match=words):
        Policy.load(bundle, backend=name)


def test_a_verb_takes_it_by_name(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(bundle), "--episodes", "1", "--execute", "16", "--workers", "1", "--json"]
    assert cli.main([*words, "--backend", f"{HERE}:sloppy"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["backend"] == f"{HERE}:sloppy"
