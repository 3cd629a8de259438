"""A name in a file from elsewhere runs no code: no bundle and no recording imports anything.

Each file names `spy:...`, a module in the current directory that leaves a mark when it is imported.
The verbs are called in that directory, as a user calls them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import tiny_bundle
from tests.test_hostile_recordings import chunk
from tests.test_hostile_recordings import write as write_recording
from trimvla.launch import cli
from trimvla.policies.trimming import tokens
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import TokenPlan

SPY = (
    "from pathlib import Path\nPath('imported').touch()\ndef anything(*args, **kwargs):\n    pass\n"
)
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory of the verbs."""
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(tokens.SELECTORS)
    yield tmp_path
    sys.modules.pop("spy", None)
    tokens.SELECTORS.clear()
    tokens.SELECTORS.update(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the program: exit status and answer."""

    def call(*words: str) -> tuple[int, dict[str, Any]]:
        status = cli.main([*words, "--json"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return status, json.loads(captured.out.splitlines()[-1])

    return call


def imported(here: Path) -> bool:
    return (here / "imported").exists()


def test_the_spy_is_seen(here: Path, run: Run) -> None:
    """Named by a person, it is imported: the test can fail."""
    status, told = run("eval", "tabletop", "--env", "spy:anything", "--episodes", "1")
    assert status == 1
    assert "expected a gymnasium.Env, or a task, got NoneType" in told["error"]
    assert imported(here)


def changed(here: Path, source: Path, **fields: Any) -> str:
    """A bundle whose manifest says something else, and is consistent in itself."""
    target = here / source.name
    shutil.copytree(source, target)
    (target / bundles.MANIFEST).unlink()
    manifest = bundles.load(source)
    bundles.write(target, msgspec.structs.replace(manifest, **fields))
    return str(target)


def with_selector(here: Path) -> str:
    bundle = tiny_bundle.write_bundle(here / "made" / "tiny", kept=(0, 2))
    manifest = bundles.load(bundle)
    named = TokenPlan(selector="spy:anything", keep=2, after=1, rows="none")
    return changed(here, bundle, plan=msgspec.structs.replace(manifest.plan, tokens=named))


def test_a_bundle_runs_without_the_selector_of_its_plan(here: Path, run: Run) -> None:
    bundle = with_selector(here)
    status, told = run("eval", bundle, "--episodes", "1", "--execute", "16", "--workers", "1")
    assert status == 0, told
    assert run("bench", bundle, "--rounds", "1", "--warmup", "0")[0] == 0
    assert not imported(here)


@pytest.fixture
def trimmed(here: Path, repo_root: Path) -> str:
    """The shipped trimmed bundle and its checkpoint, with a selector of somebody's in its plan."""
    source = repo_root / "bundles" / "tabletop-trimmed"
    if not source.exists():
        pytest.skip("the shipped bundle 'tabletop-trimmed' is not there")
    plan = bundles.load(source).plan
    assert plan.tokens is not None
    named = msgspec.structs.replace(plan.tokens, selector="spy:anything")
    (here / "tabletop.safetensors").symlink_to(repo_root / "bundles" / "tabletop.safetensors")
    return changed(here, source, plan=msgspec.structs.replace(plan, tokens=named))


@pytest.mark.parametrize(
    "words", [("verify",), ("bench", "--baselines", "eager", "--rounds", "1", "--warmup", "0")]
)
def test_its_torch_twin_needs_the_selectors_name(
    words: tuple[str, ...], here: Path, run: Run, trimmed: str
) -> None:
    status, told = run(words[0], trimmed, *words[1:])
    assert status == 1
    assert "imported only where you name it: --selector spy:anything" in told["error"]
    assert not imported(here)
    _, told = run(words[0], trimmed, *words[1:], "--selector", "other:anything")
    assert (
        "expected the token selector of bundle 'tabletop-trimmed', 'spy:anything', for --selector"
        in told["error"]
    )
    assert not imported(here)
    _, told = run(words[0], trimmed, *words[1:], "--selector", "spy:anything")
    assert "from 'spy:anything', got NoneType" in told["error"], (
        "a person named it: it is imported and tried"
    )
    assert imported(here)


def test_a_recordings_backend_is_shown_and_not_imported(here: Path, run: Run) -> None:
    bundle = tiny_bundle.write_bundle(here / "made" / "tiny")
    section = {"bundle": "tabletop", "backend": "spy:anything", "process": "policy"}
    facts = {"system": json.dumps({"brain": section, "arm": {"process": "spy:anything"}})}
    recording = write_recording(here / "a.mcap", [("chunk", chunk())], facts)
    status, told = run("replay", str(recording), "--bundle", str(bundle))
    assert status == 1
    assert "expected --backend" in told["error"], told
    assert "'spy:anything', which is none of ours" in told["error"]
    assert not imported(here)


def test_a_plan_is_imported_by_export_alone(here: Path, run: Run) -> None:
    """Reading it is no reason: `cost` needs its numbers only."""
    plan = {"tokens": {"keep": 32, "after": 3, "selector": "spy:anything", "rows": "none"}}
    (here / "plan.json").write_text(json.dumps(plan))
    status, _ = run("cost", "plan.json", "--preset", "tabletop")
    assert status == 0
    assert not imported(here)
    status, told = run("export", "tabletop", "--plan", "plan.json", "--out", "out")
    assert status == 1
    assert (
        "plan.json: tokens.selector: expected int64[2, 32], ascending indices below 256"
        in told["error"]
    )
    assert imported(here)
    assert not (here / "out").exists()
