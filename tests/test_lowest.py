"""Every lower bound in pyproject.toml at its lowest: what an old environment really gets, tried by
its verbs.

`uv` resolves direct dependencies to the lowest version that the bounds allow. torch stays the one
that is installed here: its oldest builds for the CPU alone lie on an index of their own. Skips,
with the reason, where packages are not to be had.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import pytest

from tests import turns

pytestmark = pytest.mark.slow
ROBOT = ("camera", "sim", "record", "serve", "metrics", "openvino")
EXPORT = ("export", "train")
ARM = """
[arm]
process = "sim-arm"

[control]
hz = 10.0

[control.limits]
low = [-0.05, -0.05, -0.05, -0.4, -0.4, -0.4, 0.0]
high = [0.05, 0.05, 0.05, 0.4, 0.4, 0.4, 1.0]
"""


def make(place: Path, root: Path, extras: tuple[str, ...], *more: str) -> Path:
    """An environment with the lowest versions; its folder of programs."""
    uv = shutil.which(
        "uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    )
    if uv is None:
        pytest.skip("needs uv, which the extra `dev` brings")
    links = [
        word
        for link in os.environ.get("PIP_FIND_LINKS", "").split()
        for word in ("--find-links", link)
    ]
    source = f"{root}[{','.join(extras)}]"
    for words in (
        ("venv", "--quiet", "--python", sys.executable, str(place)),
        (
            "pip",
            "install",
            "--quiet",
            "--resolution",
            "lowest-direct",
            *links,
            *more,
            "--editable",
            source,
        ),
    ):
        environ = {**os.environ, "VIRTUAL_ENV": str(place)}
        with turns.installing(root):
            done = subprocess.run(
                [uv, *words], env=environ, capture_output=True, text=True, check=False
            )
        if done.returncode:
            pytest.skip(f"the lowest versions are not to be had here: {done.stderr.strip()[-300:]}")
    return place / "bin"


@pytest.fixture(scope="module")
def robot(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a robot and the simulator need."""
    return make(tmp_path_factory.mktemp("robot") / "venv", repo_root, ROBOT)


@pytest.fixture(scope="module")
def exporter(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What exporting needs, beside the torch that is installed here."""
    try:
        torch = f"torch=={version('torch')}"
    except PackageNotFoundError:
        pytest.skip("needs torch")
    return make(tmp_path_factory.mktemp("exporter") / "venv", repo_root, EXPORT, torch)


def run(programs: Path, *words: str, seconds: float = 150.0) -> dict:
    """A verb's answer."""
    command = [programs / "trimvla", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_versions_are_the_lowest(robot: Path, repo_root: Path) -> None:
    project = msgspec.toml.decode((repo_root / "pyproject.toml").read_bytes())["project"]
    needs = [
        *project["dependencies"],
        *(need for extra in ROBOT for need in project["optional-dependencies"][extra]),
    ]
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    for need in needs:
        name, bound = re.match(r"([\w.-]+)>=([\d.]+)", need).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if "python_version" in need and sys.version_info >= (3, 11):
            continue
        got = subprocess.check_output([robot / "python", "-c", code, name], text=True).strip()
        assert got.startswith(bound), need


def test_every_verb_of_a_robot_explains_itself(robot: Path) -> None:
    for verb in (
        "doctor",
        "demo",
        "run",
        "serve",
        "keys",
        "camera",
        "eval",
        "bench",
        "record",
        "replay",
        "inspect",
    ):
        done = subprocess.run(
            [robot / "trimvla", verb, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{verb}: {done.stderr[-1000:]}"


def test_a_robot_runs_records_and_is_measured(robot: Path, tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text(ARM)
    recording = str(tmp_path / "run.mcap")
    words = ("--seconds", "15", "--record", recording, "--metrics", "0")
    told = run(robot, "run", str(tmp_path / "arm.toml"), *words)
    assert told["recording"]["messages"] > 0
    assert set(told["processes"]) >= {"arm", "control", "metrics"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_is_served(robot: Path, backend: str) -> None:
    told = run(
        robot,
        "serve",
        "tabletop",
        "--zmq",
        "0",
        "--websocket",
        "0",
        "--seconds",
        "0.5",
        "--backend",
        backend,
    )
    assert set(told["places"]) == {"groot", "openpi"}


def test_an_episode_is_played(robot: Path) -> None:
    told = run(robot, "eval", "tabletop-trimmed", "--episodes", "1", "--workers", "1")
    assert told["episodes"] == 1


EXPORT_TINY = """
import sys
from pathlib import Path
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tests.tiny_policy import random_policy
from tests.tiny_policy import export_cogact
from trimvla.runtime.bundle.plan import Plan

torch.set_num_threads(1)
place = Path(sys.argv[1])
words = "<pad> <s> </s> <empty> <unk> In : What action should the robot take to ? Out lift".split()
vocabulary = {word: i for i, word in enumerate(words)}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.save(str(place / "tokenizer.json"))
ranges = {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}
statistics = {"lab": {"action": ranges}}
export_cogact(random_policy(), Plan(), statistics, place / "tokenizer.json", place / "tiny",
              statistics_key="lab", control_hz=5.0)
print("exported")
"""


def test_a_tiny_policy_is_exported(exporter: Path, repo_root: Path, tmp_path: Path) -> None:
    """As `trimvla export` does, with parity against torch."""
    command = [exporter / "python", "-c", EXPORT_TINY, str(tmp_path)]
    done = subprocess.run(
        command, cwd=repo_root, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.endswith("exported\n"), done.stderr[-2000:]
