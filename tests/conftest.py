"""Fixtures that every test may use: where the reference data lies, and which tests are too slow for
a quick run.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.turns import turn
from trimvla.sim.rendering import choose_renderer

choose_renderer()  # before anything imports mujoco

# an example may take long on a busy machine; that says nothing about the code
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

ROOT = Path(__file__).resolve().parent.parent
SLOW_WEIGHT = 60  # what a slow test counts, in tests that are not


def _handle_what_is_ignored() -> None:
    """Under `nohup`, or behind a shell's `&`, signals are ignored, and children inherit that: what
    tests send them would end nobody. A handler that does nothing is not inherited.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_handle_what_is_ignored()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow",
        action="store_true",
        help="also run tests that need minutes (always on with CI=true)",
    )
    parser.addoption(
        "--simpler",
        action="store_true",
        help="also run tests that need ManiSkill (make test-simpler)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("simpler") and not config.getoption("--simpler"):
            item.add_marker(pytest.mark.skip(reason="needs ManiSkill: run make test-simpler"))
    slow_too = config.getoption("--slow") or os.environ.get("CI") == "true"
    if hasattr(config, "workerinput"):
        _longest_first(items, SLOW_WEIGHT if slow_too else 0)
    if slow_too:
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs minutes: run with --slow or CI=true"))


def _longest_first(items: list[pytest.Item], slow: int) -> None:
    """Workers take whole files: the long ones early, or the last one runs by itself at the end."""
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += slow if "slow" in item.keywords else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where other workers run beside it, a test marked `alone` waits for them, and they for it."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    run = Path(str(item.config.getoption("basetemp"))).parent  # a worker's own is inside the run's
    with turn(run, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Verbs set up logging for their process; a test's process goes on."""
    root = logging.getLogger()
    ours = logging.getLogger("trimvla")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"{what} is not there: {path}")
    return path


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own under a short name: a socket's whole path may be 107 bytes long."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference material that lies beside the repository; skips where it is absent."""
    return _existing(ROOT.parent / "shared", "the shared reference folder")


@pytest.fixture(scope="session")
def fixture_dir(shared_dir: Path) -> Path:
    """Arrays that the public CogACT code produced on a tiny policy; skips where they are absent."""
    return _existing(
        shared_dir / "fixtures" / "cogact_tiny_a", "the reference fixture cogact_tiny_a"
    )


@pytest.fixture(scope="session")
def tabletop_bundle() -> Path:
    """The shipped bundle; skips where it has not been exported yet."""
    return _existing(
        ROOT / "bundles" / "tabletop" / "manifest.json", "the shipped bundle 'tabletop'"
    ).parent
