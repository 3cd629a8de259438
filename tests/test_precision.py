"""Bundles in lower precisions: what their graphs compute in, how far from float32 they are, and
that they say so.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from runner_contract import check_runner
from tiny_policy import TINY, export_cogact, inputs, random_policy

from trimvla.export import bundle as bundle_module
from trimvla.export import verify
from trimvla.export.compare import Limit, LowerComparison, report
from trimvla.export.precision.emulate_bf16 import EmulatedRunner, widen
from trimvla.export.precision.half import halve
from trimvla.export.precision.int8 import columns, round_up
from trimvla.export.precision.table import PRECISIONS
from trimvla.export.streaming.placeholders import placeholder_tokenizer
from trimvla.export.tensorrt.build import parse
from trimvla.export.tensorrt.operators import check_operators, describe
from trimvla.export.tensorrt.read_back import matrix_precision
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.runtime.backends.runner import create
from trimvla.runtime.backends.tensorrt.library import load_trt
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import BackendError, BundleError, ConfigError

STATISTICS = {
    "lab": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}}
}
PLAN = Plan(layers=(0, 1, 2), tokens=TokenPlan(keep=8, key=2, after=1), recompute=(0,))
FOR_TENSORRT = [name for name in PRECISIONS if name != "int8-dynamic"]


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def frames() -> Calibration:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, TINY.image_size, TINY.image_size, 3), np.uint8)
    ids = np.concatenate([inputs()[1].numpy() for _ in range(4)])
    return Calibration(TINY.fingerprint, images, ids, np.full(4, 9))


def export(out: Path, precision: str, calibration: Calibration | None = None):
    """A bundle beside the float32 one, whose graphs it takes instead of tracing torch again."""
    tokenizer = out.with_name("tokenizer.json")
    tokenizer.write_text(placeholder_tokenizer(TINY.prompt))
    settings = {
        "statistics_key": "lab",
        "control_hz": 5.0,
        "created_utc": "2026-01-01T00:00:00+00:00",
    }
    return export_cogact(
        random_policy(),
        PLAN,
        STATISTICS,
        tokenizer,
        out,
        precision=precision,
        calibration=calibration,
        **settings,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle a precision."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("precisions")
    found = {precision: root / precision for precision in PRECISIONS}
    export(found["float32"], "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_stage", copying(found["float32"]))
        for precision in list(PRECISIONS)[1:]:
            export(
                found[precision], precision, frames() if PRECISIONS[precision].calibrated else None
            )
    return found


def copying(directory: Path):
    """In place of `export_stage`: the float32 graphs of a finished bundle."""
    return lambda policy, stage, path: [shutil.copyfile(directory / path.name, path)]


def product_types(path: Path) -> Counter[str]:
    """Element types of what is multiplied."""
    model = onnx.load(str(path))
    types = describe(model).types
    return Counter(
        types[node.input[0]] for node in model.graph.node if node.op_type in ("MatMul", "Gemm")
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_says_what_it_is_and_carries_the_proof(
    exported: dict[str, Path], precision: str
) -> None:
    manifest = bundles.load(exported[precision])
    assert manifest.precision == precision
    groups = manifest.parity["groups"]
    assert groups.keys() == {"visual", "cognition", "kept", "actions", "end_to_end"}
    for name, limit in verify.LIMITS.get(precision, {}).items():
        assert groups[name]["worst"] <= groups[name]["tolerance"] == limit.worst
        assert groups[name]["typical"] <= groups[name]["typical_tolerance"] == limit.typical
    exact = groups["visual"]["worst"] < 1e-4
    assert exact == (precision == "float32")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_products_are_halved_and_sensitive_parts_are_not(
    exported: dict[str, Path], precision: str
) -> None:
    for path in exported[precision].glob("*.onnx"):
        model = onnx.load(str(path))
        types = describe(model).types
        assert product_types(path).most_common(1)[0][0] == precision
        for node in model.graph.node:
            if node.op_type in (
                "Softmax",
                "LayerNormalization",
                "ReduceMean",
                "Sub",
                "TopK",
                "ReduceL2",
            ):
                assert types[node.input[0]] != precision, node.name
        assert all(
            types[value.name] != precision for value in (*model.graph.input, *model.graph.output)
        )


def test_int8_is_explicit_and_symmetric_and_leaves_the_samplers_attention(
    exported: dict[str, Path],
) -> None:
    for path in exported["int8"].glob("*.onnx"):
        model = onnx.load(str(path))
        made = {name: node for node in model.graph.node for name in node.output}
        constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        quantised = [
            node
            for node in model.graph.node
            if node.op_type == "MatMul" and made[node.input[0]].op_type == "DequantizeLinear"
        ]
        assert quantised
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert constants[node.input[2]].dtype == np.int8
                assert not constants[node.input[2]].any()
        if path.stem == "action":  # 1 full step: two MLP products in each block
            assert len(quantised) == 2 * TINY.head.depth


@pytest.mark.parametrize("precision", FOR_TENSORRT)
def test_what_is_for_tensorrt_stands_in_its_table(
    exported: dict[str, Path], precision: str
) -> None:
    for path in exported[precision].glob("*.onnx"):
        check_operators(path)


def test_dynamic_int8_is_not_for_tensorrt(exported: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match="DynamicQuantizeLinear"):
        check_operators(exported["int8-dynamic"] / "vision.onnx")


def test_two_int8_exports_are_the_same_bytes(
    exported: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(bundle_module, "export_stage", copying(exported["float32"]))
    again = export(tmp_path / "int8", "int8", frames())
    assert again.files == bundles.load(exported["int8"]).files


def test_what_an_export_refuses(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "export_stage", copying(exported["float32"]))
    with pytest.raises(
        ConfigError,
        match="one of float32, float16, bfloat16, int8, int8-dynamic for 'dtype', got 'fp4'",
    ):
        export(tmp_path / "a", "fp4")
    with pytest.raises(ConfigError, match="expected calibration frames for int8, got none"):
        export(tmp_path / "a", "int8")
    tight = {name: Limit(1e-9, 1e-9) for name in verify.LIMITS["float16"]}
    monkeypatch.setitem(verify.LIMITS, "float16", tight)
    with pytest.raises(BundleError, match="differs from torch: visual"):
        export(tmp_path / "a", "fp16")
    assert not (tmp_path / "a").exists()


def test_a_lower_precision_is_judged_by_its_worst_and_by_its_median() -> None:
    comparison = LowerComparison.within("actions", Limit(worst=0.5, typical=0.1))
    for key, error in enumerate((0.01, 0.02, 0.4)):
        comparison.add(str(key), np.array([3.0, 4.0]), np.array([3.0, 4.0 + 5 * error]))
    told = report({"actions": comparison})
    assert told.ok
    assert told.groups["actions"].worst == pytest.approx(0.4)
    assert told.groups["actions"].typical == pytest.approx(0.02)
    comparison.add("3", np.array([3.0, 4.0]), np.array([3.0, 7.0]))
    comparison.add("4", np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    reasons = [failure.reason for failure in report({"actions": comparison}).failed]
    assert any("difference of at most 0.5, got 0.6" in reason for reason in reasons)
    assert any("0.1 for the median" in reason for reason in reasons)


def test_bfloat16_is_emulated_to_the_bit(exported: dict[str, Path]) -> None:
    """y = (x + 1) * x in bfloat16, against numpy's rounding of the same two operators."""
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["b", "one"], ["sum"]),
        helper.make_node("Mul", ["sum", "b"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in ("x", "y")]
    one = helper.make_tensor("one", TensorProto.BFLOAT16, [1], [1.0])
    model = helper.make_model(
        helper.make_graph(nodes, "small", border[:1], border[1:], [one]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        widen(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal(64, dtype=np.float32)
    half = torch.from_numpy(x).to(torch.bfloat16)
    expected = ((half + 1) * half).float().numpy()
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert not np.array_equal(expected, (x + 1) * x)
    manifest = bundles.load(exported["bfloat16"])
    runner = EmulatedRunner(exported["bfloat16"] / "vision.onnx", manifest.stages["vision"])
    check_runner(runner, {"image": inputs()[0].numpy()})


def test_bfloat16_on_onnx_runtime_is_refused_with_a_way_out(exported: dict[str, Path]) -> None:
    spec = bundles.load(exported["bfloat16"]).stages["vision"]
    with pytest.raises(
        BackendError, match=r"no kernel .* a bfloat16 bundle runs on openvino or tensorrt"
    ):
        create("onnxruntime", exported["bfloat16"] / "vision.onnx", spec)


def test_convolutions_are_halved_by_their_channels() -> None:
    """A kernel of 3 x 3 is no small side; 3 colours are. The sum of two activations stays."""
    rng = np.random.default_rng(0)
    shapes = {"pixels": (16, 3, 7, 7), "inner": (16, 16, 3, 3), "few": (7, 16, 1, 1)}
    weights = {name: 0.1 * rng.normal(size=shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "pixels"], ["a"], pads=[3] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "inner"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Conv", ["d", "few"], ["y"]),
    ]
    stored = [
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in weights.items()
    ]
    border = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (("x", 3), ("y", 7))
    ]
    graph = helper.make_graph(nodes, "convolutions", border[:1], border[1:], stored)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(whole))
    halve(half, "float16")
    made = ir.serde.serialize_model(half)
    onnx.checker.check_model(made, full_check=True)
    types = describe(made).types
    taken = {node.input[1]: types[node.input[0]] for node in made.graph.node if len(node.input) > 1}
    assert taken == {
        "pixels": "float32",
        "inner.half": "float16",
        "c.float": "float32",
        "few": "float32",
    }
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected, got = (
        np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])
        for model in (whole, made)
    )
    assert 0 < np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()


def test_scales() -> None:
    whole, scale = columns(np.array([[1.0, -4.0], [0.5, 2.0]]))
    np.testing.assert_array_equal(whole, [[127, -127], [64, 64]])
    np.testing.assert_allclose(scale * 127, [1.0, 4.0])
    assert round_up(1.0) == 1.0
    assert 0 < round_up(0.3) - 0.3 < 0.3 / 128


@pytest.mark.parametrize("precision", FOR_TENSORRT)
def test_tensorrt_reads_the_precision_that_the_manifest_says(
    exported: dict[str, Path], precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    library = load_trt("tensorrt-rtx")
    for path in exported[precision].glob("*.onnx"):
        parsed = parse(library, path)
        assert matrix_precision(library.module, parsed.network) == precision
