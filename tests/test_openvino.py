"""OpenVINO keeps the runner's contract, runs in the precision that was asked for, and says which
one that is.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from runner_contract import check_runner
from test_runtime_runner import INPUTS
from tiny_bundle import IMAGE, VISUAL, manifest, write_bundle

from trimvla.export.precision.half import halve
from trimvla.launch import cli
from trimvla.launch.bench.subjects import with_dense
from trimvla.launch.verbs.bench import Args
from trimvla.runtime.backends.openvino_runner import bucket_lengths, check_precision
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.inference.policy import Policy

openvino = pytest.importorskip("openvino")
CAN = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
WIDE = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("openvino") / "tiny")


@pytest.mark.parametrize("stage", INPUTS)
def test_every_stage_keeps_the_contract(bundle: Path, stage: str) -> None:
    path = bundle / f"{stage}.onnx"
    spec = manifest().stages[stage]
    runner = create("openvino", path, spec, threads=1)
    check_runner(runner, INPUTS[stage])
    told = runner.describe()
    assert (told["backend"], told["provider"]) == ("openvino", "graph")
    assert "bfloat16" not in told["precision"]
    expected = create("onnxruntime", path, spec, threads=1).run(INPUTS[stage])
    for name, value in runner.run(INPUTS[stage]).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    runner.close()


def test_a_policy_acts_and_every_prompt_length_is_compiled_while_loading(bundle: Path) -> None:
    picture = np.full((12, 16, 3), 9, np.uint8)
    ours, theirs = (
        Policy.load(bundle, backend=name, threads=1) for name in ("openvino", "onnxruntime")
    )
    assert ours.manifest.prompt is not None
    assert bucket_lengths(bundle / "language.onnx") == ours.manifest.prompt.buckets
    got, expected = (
        policy.infer(picture, "pick up the red cube").sample for policy in (ours, theirs)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def product(path: Path, precision: str) -> StageSpec:
    """A stage that is one matrix product with a weight, in a precision."""
    rng = np.random.default_rng(0)
    shape = [1, 4, WIDE]
    border = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("x", "y")
    ]
    weight = onnx.numpy_helper.from_array(rng.standard_normal((WIDE, WIDE), dtype=np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", border[:1], border[1:], [weight])
    model = ir.from_proto(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
        )
    )
    if precision != "float32":
        halve(model, precision)
    ir.save(model, path)
    spec = {"dtype": "float32", "shape": (1, 4, WIDE)}
    return StageSpec(path.name, (VISUAL.__class__("x", **spec),), (VISUAL.__class__("y", **spec),))


X = {"x": np.random.default_rng(1).standard_normal((1, 4, WIDE), dtype=np.float32)}


def test_float32_is_not_lowered_without_a_word(tmp_path: Path) -> None:
    spec = product(tmp_path / "a.onnx", "float32")
    exact = create("onnxruntime", tmp_path / "a.onnx", spec).run(X)["y"]
    runner = create("openvino", tmp_path / "a.onnx", spec)
    assert runner.describe()["precision"] == "1 in float32"
    np.testing.assert_allclose(runner.run(X)["y"], exact, atol=1e-4)


@pytest.mark.skipif("BF16" not in CAN, reason="this processor has no bfloat16")
@pytest.mark.parametrize(
    ("written", "asked"), [("float32", "openvino:bf16"), ("bfloat16", "openvino")]
)
def test_bfloat16_is_given_where_it_is_asked_for(tmp_path: Path, written: str, asked: str) -> None:
    exact = create("onnxruntime", tmp_path / "a.onnx", product(tmp_path / "a.onnx", "float32")).run(
        X
    )["y"]
    runner = create(asked, tmp_path / "b.onnx", product(tmp_path / "b.onnx", written))
    assert runner.describe()["precision"] == "1 in bfloat16"
    error = np.linalg.norm(runner.run(X)["y"] - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 2e-2


@pytest.mark.skipif("FP16" in CAN, reason="this processor has float16")
def test_float16_that_the_processor_has_not_is_refused_unless_float32_is_asked_for(
    tmp_path: Path,
) -> None:
    spec = product(tmp_path / "a.onnx", "float16")
    with pytest.raises(BackendError, match=r"does not compute in float16 .*ask for openvino:f32"):
        create("openvino", tmp_path / "a.onnx", spec)
    assert (
        create("openvino:f32", tmp_path / "a.onnx", spec).describe()["precision"] == "1 in float32"
    )


def test_another_precision_than_asked_is_an_error() -> None:
    assert check_precision(Counter(int8=3, float32=1), "f32", "a.onnx") == "3 in int8, 1 in float32"
    with pytest.raises(BackendError, match="asked for float32, OpenVINO compiled 2 in bfloat16"):
        check_precision(Counter(bfloat16=2), "f32", "a.onnx")
    with pytest.raises(
        BackendError, match="asked for int8 and float32, OpenVINO compiled 2 in float32"
    ):
        check_precision(Counter(float32=2), "f32", "a.onnx", quantised=True)
    with pytest.raises(BackendError, match="asked for bfloat16, OpenVINO compiled 2 in float32"):
        check_precision(Counter(float32=2), "bf16", "a.onnx")


def test_what_cannot_be_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = manifest().stages["vision"]
    with pytest.raises(
        BackendError, match=r"one of \['graph', 'f32', 'bf16'\] behind 'openvino:', got 'f8'"
    ):
        create("openvino:f8", bundle / "vision.onnx", spec)
    with pytest.raises(BundleError, match=r"expected outputs .*image.* got .*visual"):
        create("openvino", bundle / "vision.onnx", StageSpec("", (IMAGE,), (IMAGE,)))
    (tmp_path / "vision.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"vision\.onnx"):
        create("openvino", tmp_path / "vision.onnx", spec)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"not installed .*pip install 'trimvla\[openvino\]'"):
        create("openvino", bundle / "vision.onnx", spec)


def test_the_dense_bundle_joins_on_every_backend() -> None:
    names = ("a@openvino", "b@openvino:bf16", "c@onnxruntime")
    assert with_dense(names, "dense", "onnxruntime") == [
        "dense@openvino",
        "dense@openvino:bf16",
        *names,
    ]
    assert with_dense(names, None, "onnxruntime") == list(names)
    assert Args().also == ()


def test_a_benchmark_has_other_backends_in_the_same_table(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(bundle), "--rounds", "2", "--warmup", "1", "--json", "--also"]
    assert cli.main([*words, f"{bundle}@openvino"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    subjects = {row["subject"]: row["backend"] for row in result["rows"]}
    assert subjects == {"tiny": "onnxruntime", "tiny@openvino": "openvino"}
    assert result["also_runs_on"]["tiny@openvino"]["vision"]["precision"] == "1 in float32"
    assert {row["layer"] for row in result["rows"] if row["subject"] == "tiny@openvino"} == {
        "L0",
        "L1",
        "L2",
    }
    assert cli.main([*words, "tiny"]) == 1
    assert "expected BUNDLE@BACKEND for --also, got 'tiny'" in capsys.readouterr().out
