"""The bench measures what it says: all layers of real bundles in turns, beside torch, and ratios
that can be redone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.bench.options import Baselines
from trimvla.launch.bench.turns import COMPILED, EAGER
from trimvla.launch.verbs.bench import Args
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.sizes.cost import vision_cost

INSTRUCTION = ("--instruction", "pick up the red cube")
FIELDS = {
    *(
        "name",
        "layer",
        "part",
        "subject",
        "bundle",
        "backend",
        "p50_ms",
        "p99_ms",
        "ratio_to_dense",
        "ratio_low",
    ),
    *("ratio_high", "ratio_to_eager_dense", "over_l0_ms", "floor_ms", "floor_by"),
}
WITHOUT_TORCH = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from trimvla.launch import cli
sys.exit(cli.main(sys.argv[1:]))
"""
PARTS = {
    "L0": ["vision", "language", "action", "total"],
    "L1": ["preprocess", "total"],
    "L2": ["total"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def bench(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> dict:
    assert cli.main(["bench", *map(str, words), "--warmup", "1", "--json"]) == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def parts(rows: list[dict]) -> dict[str, list[str]]:
    return {
        layer: [row["part"] for row in group]
        for layer, group in groupby(rows, lambda row: row["layer"])
    }


def test_a_bundle_alone_has_every_layer(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "samples.json"
    result = bench(capsys, tiny, *INSTRUCTION, "--rounds", "4", "--samples", file)
    rows = result["rows"]
    assert parts(rows) == {**PARTS, "L3": ["total"]}
    assert all(row.keys() == FIELDS for row in rows)
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert result["runs_on"]["vision"]["backend"] == "onnxruntime"
    assert min(result["machine"].values()) > 0
    assert "No floor for 'tiny'" in result["notes"][0]  # its manifest has no sizes
    samples = json.loads(file.read_text())
    assert {len(took) for took in samples.values()} == {4}
    for row in rows:
        took = samples[f"tiny {row['layer']} {row['part']}"]
        assert row["p50_ms"] == pytest.approx(np.median(took), abs=1e-3)
    extra = np.subtract(samples["tiny L3 total"], samples["tiny L0 total"])
    assert result["runtime_cost_ms"] == pytest.approx(np.median(extra), abs=1e-3)
    # of four turns
    assert result["runtime_cost_interval_ms"] == pytest.approx([extra.min(), extra.max()], abs=1e-3)
    graphs = ("graphs in a row", "policy in its own", "total")
    own = sum(row["ms"] for row in result["breakdown"] if not row["part"].startswith(graphs))
    assert result["own_parts_ms"] == pytest.approx(own, abs=1e-3)


def test_a_bundle_against_itself_in_two_backends(
    tabletop_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same policy on both sides: ratios near 1.

    Eager torch computes the same (checked inside) in its own time.
    """
    words = (tabletop_bundle, "--against", "tabletop", "--rounds", "4", "--baselines", "eager")
    result = bench(capsys, *words)
    rows = {(row["name"], row["layer"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    assert result["backends"] == ["onnxruntime", "torch-eager"]
    for layer in ("L0", "L1", "L2", "L3"):
        assert rows["tabletop (dense)", layer]["ratio_to_dense"] == 1.0
        row = rows["tabletop", layer]
        assert row["ratio_low"] <= row["ratio_to_dense"] <= row["ratio_high"]
        assert 0.5 < row["ratio_to_dense"] < 2.0
    eager = rows["tabletop (dense)@torch-eager", "L0"]
    assert eager["ratio_to_eager_dense"] == 1.0
    assert 0.5 < rows["tabletop@torch-eager", "L2"]["ratio_to_dense"] < 2.0
    faster = rows["tabletop", "L0"]["ratio_to_eager_dense"]
    assert faster == pytest.approx(eager["p50_ms"] / rows["tabletop", "L0"]["p50_ms"], rel=0.5)
    stages = [rows[f"tabletop/{stage}", "L0"] for stage in ("vision", "language", "action")]
    assert rows["tabletop", "L0"]["floor_ms"] == pytest.approx(
        sum(row["floor_ms"] for row in stages), abs=5e-3
    )
    vision = vision_cost(PRESETS["tabletop"]).flops / result["machine"]["gflops"] / 1e6
    assert stages[0]["floor_ms"] == pytest.approx(vision, rel=0.02)
    assert [row["floor_by"] for row in stages] == ["operations"] * 3


def test_without_torch_there_is_one_clear_line(tiny: Path) -> None:
    """Torch is hidden from the import system of a process of its own: as it is where nobody
    installed it.
    """
    words = (tiny, "--against", tiny, *INSTRUCTION, "--rounds", "1")
    status, result = bench_without_torch(*words)
    assert (status, result["backends"]) == (0, ["onnxruntime"])
    assert any("pip install 'trimvla[export]'" in note for note in result["notes"])
    status, result = bench_without_torch(*words, "--baselines", "all")
    assert status == 1
    assert "trimvla[export]" in result["error"]


def bench_without_torch(*words: object) -> tuple[int, dict]:
    """Exit status and JSON of the verb."""
    line = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "bench",
        *map(str, words),
        "--warmup",
        "1",
        "--json",
    ]
    run = subprocess.run(line, check=False, capture_output=True, text=True)
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("against", "baselines", "expected"),
    [
        (None, "auto", ()),
        ("tabletop", "auto", (EAGER, COMPILED)),
        ("tabletop", "none", ()),
        (None, "eager", (EAGER,)),
        (None, "all", (EAGER, COMPILED)),
    ],
)
def test_which_baselines_are_measured(
    against: str | None, baselines: Baselines, expected: tuple[str, ...]
) -> None:
    assert Args(against=against, baselines=baselines).torch_backends == expected


def test_baselines_need_the_checkpoint(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, tiny, *INSTRUCTION, "--rounds", "1", "--baselines", "eager", status=1)
    assert "tiny.safetensors" in result["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tabletop", "--rounds", "0"), "expected --rounds >= 1"),
        (("tabletop", "--threads", "-1"), "expected --threads >= 0"),
        (("tabletop", "--samples", "times.csv"), "expected .npz or .json"),
        (("no-such-bundle",), "shipped bundle (tabletop"),
        (("tabletop", "--against", "no-such-bundle"), "got 'no-such-bundle'"),
    ],
)
def test_what_cannot_be_measured(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in bench(capsys, *words, status=1)["error"]


def test_the_other_side_must_be_dense(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trimmed = tiny_bundle.write_bundle(tmp_path / "trimmed")
    manifest = json.loads((trimmed / "manifest.json").read_text())
    (trimmed / "manifest.json").write_text(json.dumps({**manifest, "plan": {"layers": [0]}}))
    error = bench(capsys, tiny, "--against", trimmed, "--rounds", "1", status=1)["error"]
    assert "expected a dense bundle for --against" in error


def test_a_process_that_cannot_run_says_why(tmp_path: Path) -> None:
    from trimvla.launch.bench.socket_layer import socket_policy
    from trimvla.launch.system.supervisor import ProcessEndedError
    from trimvla.runtime.bundle.manifest import STATISTICS

    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    statistics = bundle / STATISTICS
    statistics.write_text(statistics.read_text().replace("0.05", "0.07"))
    picture = np.zeros((8, 8, 3), np.uint8)
    with (
        pytest.raises(ProcessEndedError, match=r"process 'policy' ended .*sha256"),
        socket_policy(bundle, picture, "pick up the red cube") as process,
    ):
        process.connect()
