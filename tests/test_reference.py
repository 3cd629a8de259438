"""Agreement with the arrays that the public code gave, and what the comparison says when there is
none.
"""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch

from trimvla.export.compare import Comparison, ScaledComparison, cosine, max_abs_difference
from trimvla.export.reference.architecture import policy_config
from trimvla.export.reference.checks import verify_reference
from trimvla.export.reference.cogact import GROUPS
from trimvla.runtime.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def report(fixture_dir):
    return verify_reference(fixture_dir)


@pytest.fixture
def copy(fixture_dir, tmp_path):
    """A reference directory that a test may damage."""
    return shutil.copytree(fixture_dir, tmp_path / "reference", copy_function=shutil.copyfile)


def store(directory, **changes):
    """Replace, add or (None) remove arrays of a copy."""
    arrays = dict(np.load(directory / "reference.npz"))
    arrays |= {key.replace("__", "/"): value for key, value in changes.items()}
    np.savez(
        directory / "reference.npz",
        **{key: value for key, value in arrays.items() if value is not None},
    )


@pytest.mark.parametrize("group", [group.name for group in GROUPS])
def test_every_group_agrees_with_the_public_code(report, group):
    result = report.groups[group]
    assert result.compared > 0
    assert result.worst <= result.tolerance, result.worst_key


def test_the_whole_report_is_good_and_json(report):
    assert report.ok
    assert report.failed == report.absent == []
    assert report.compared == sum(group.compared for group in report.groups.values())
    plain = msgspec.to_builtins(report)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_differences_are_named(copy):
    wrong = np.load(copy / "reference.npz")["vision/projected"].copy()
    wrong[0, 3, 5] += 1e-3
    store(copy, vision__projected=wrong, llm__final_normed=np.zeros((1, 2, 3), np.float32))
    report = verify_reference(copy)
    assert not report.ok
    reasons = {failure.key: failure.reason for failure in report.failed}
    assert "0.001" in reasons["vision/projected"]
    assert "got [1, 34, 64]" in reasons["llm/final_normed"]
    assert report.groups["vision"].worst == pytest.approx(1e-3, rel=0.02)


def test_what_nothing_computes_is_a_failure(copy):
    store(copy, vision__unheard_of=np.zeros(3))
    (failure,) = verify_reference(copy).failed
    assert (failure.group, failure.key) == ("vision", "vision/unheard_of")


def test_missing_parts_are_said(copy):
    store(copy, action__noise=None, diffusion__betas100=None)
    groups = {failure.group for failure in verify_reference(copy).failed}
    assert {"dit", "ddim"} <= groups


def test_unreadable_directories_are_refused(copy, tmp_path):
    with pytest.raises(ConfigError, match=r"architecture\.json"):
        verify_reference(tmp_path / "nowhere")
    (copy / "reference.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"reference\.npz"):
        verify_reference(copy)
    (copy / "checkpoints" / "tiny.pt").unlink()
    with pytest.raises(CheckpointError, match=r"exactly one \.pt"):
        verify_reference(copy)


def test_architecture_must_be_complete_and_known(fixture_dir):
    architecture = json.loads((fixture_dir / "architecture.json").read_text())
    assert policy_config(architecture).language.width == architecture["llm"]["hidden_size"]
    with pytest.raises(ConfigError, match="hidden_act"):
        policy_config({**architecture, "llm": {**architecture["llm"], "hidden_act": "relu"}})
    del architecture["llm"]["rope_theta"]
    with pytest.raises(ConfigError, match="rope_theta"):
        policy_config(architecture)


@pytest.mark.parametrize(("got", "expected"), [([1.0, 2.5], 0.5), ([1.0, 2.0], 0.0)])
def test_difference(got, expected):
    assert max_abs_difference(np.array([1.0, 2.0]), np.array(got)) == expected


def test_rounding_of_large_arrays_is_no_difference_but_an_error_is():
    large = np.full(1000, 12.0)
    step = np.zeros(1000)
    step[7] = 5e-4
    row = ScaledComparison("visual", 1e-4)
    row.add("rounded", large, large + step)
    row.add("zeros", step * 0, step * 0)
    assert row.failed == []
    assert row.worst == pytest.approx(5e-4 / 12)
    row.add("wrong", large, large + 10 * step)
    row.add("small", large / 100, large / 100 + step)
    row.add("broken", large, large + np.nan)
    row.add("hidden", large * np.inf, large)
    assert [failure.key for failure in row.failed] == ["wrong", "small", "broken", "hidden"]


def test_not_a_number_never_passes():
    assert max_abs_difference(np.array([np.nan]), np.array([0.0])) > 1e300
    assert max_abs_difference(np.array([0.0]), np.array([np.inf])) > 1e300


def test_every_stored_array_is_compared_or_known_to_be_something_else(fixture_dir):
    """Inputs of other arrays, and what comes of known mistakes."""
    others = (
        "in/image",
        "llm/attention_mask",
        "action/noise",
        "batch/image2",
        "batch/attention_mask",
        "batch/noise",
    )
    others += ("ensemble/chunks", "simpler/chunks", "bi/scores_pooled_over_tokens")
    ends = ("/image", "/input_ids")
    keys = [key for key in np.load(fixture_dir / "reference.npz") if not key.startswith(others)]
    keys = [
        key
        for key in keys
        if "/trap_" not in key and not (key.startswith("bi/") and key.endswith(ends))
    ]
    assert [key for key in keys if not any(group.covers(key) for group in GROUPS)] == []


def test_known_mistakes_are_told_apart(fixture_dir):
    """Renumbered positions, and importance from the normed last layer, must not pass for the real
    thing.
    """
    arrays = np.load(fixture_dir / "reference.npz")
    real, trap = (arrays[f"bi/{name}"] for name in ("scores", "trap_last_layer_postnorm"))
    assert max_abs_difference(real, trap) > 1e-3
    for key in arrays:
        if key.endswith("/trap_renumbered_positions"):
            assert (
                max_abs_difference(
                    arrays[key],
                    arrays[key.replace("trap_renumbered_positions", "cognition_feature")],
                )
                > 1e-3
            )


@pytest.fixture(scope="module")
def exported_report(fixture_dir):
    return verify_reference(fixture_dir, through="onnx")


@pytest.mark.slow
@pytest.mark.parametrize("group", [group.name for group in GROUPS if group.staged])
def test_exported_stages_agree_too(exported_report, group):
    result = exported_report.groups[group]
    assert result.through == "onnxruntime"
    assert result.worst <= result.tolerance, result.worst_key


@pytest.mark.slow
def test_the_whole_report_through_exported_stages_is_good(exported_report):
    assert exported_report.ok, exported_report.failed
    assert exported_report.absent == []


def test_cosine_of_vectors():
    assert cosine(np.array([1.0, 0.0]), np.array([2.0, 0.0])) == 1.0
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 3.0])) == 0.0
    assert cosine(np.zeros(2), np.zeros(2)) == 1.0
    assert cosine(np.zeros(2), np.ones(2)) == cosine(np.array([np.nan]), np.ones(1)) == -1.0


def test_comparison_keeps_the_worst_of_many():
    comparison = Comparison("group", tolerance=0.1)
    for key, value in (("a", 0.01), ("b", 0.05), ("c", 0.02)):
        comparison.add(key, np.ones(4), np.full(4, 1 + value))
    assert comparison.worst_key == "b"
    assert comparison.worst == pytest.approx(0.05)
    assert comparison.failed == []
