"""Work over a Ray cluster of one machine; skips where `ray` is not installed: it is large, and only
for clusters.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spread_work import divide, refuse, squares

from trimvla.launch import cli
from trimvla.runtime.errors import BundleError
from trimvla.sim.evaluation.workers import WorkerError

os.environ.setdefault("RAY_AUTH_MODE", "token")
# this cluster's and ours; read when ray is imported
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'trimvla[ray]'")

from trimvla.sim.evaluation.ray_workers import over_cluster  # noqa: E402

HEAD = """import ray, sys
context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head with two cores that lives in processes of its own, until its input ends."""
    paths = os.pathsep.join(
        [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # of the workers, which import the work by its name
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate(timeout=60)


@pytest.fixture
def spread(cluster: str) -> Callable[..., Iterator[Any]]:
    return over_cluster(cluster)


def test_all_results_arrive_from_other_processes(spread: Callable[..., Any]) -> None:
    results = list(spread(squares, range(7), 0))
    assert sorted(value for value, _ in results) == [n * n for n in range(7)]
    assert os.getpid() not in {pid for _, pid in results}


def test_errors_keep_their_kind(spread: Callable[..., Any]) -> None:
    results = spread(refuse, [1], 1)
    assert next(results) == 1
    with pytest.raises(BundleError, match="not found"):
        next(results)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        list(spread(divide, [0], 1))


def test_episodes_are_the_same_as_on_this_machine(
    cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--policy", "expert", "--episodes", "4", "--json"]
    told = []
    for more in (["--workers", "1"], ["--ray", cluster]):
        assert cli.main([*words, *more]) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert told[0] == told[1]
