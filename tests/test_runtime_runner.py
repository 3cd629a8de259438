"""ONNX Runtime keeps the runner's contract and never gives something else than was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from runner_contract import check_chain, check_runner
from tiny_bundle import COGNITION, HORIZON, IMAGE, VISUAL, WIDTH, manifest, write_bundle

from trimvla.launch import cli
from trimvla.runtime.backends.chain import open_chain
from trimvla.runtime.backends.ort_runner import CPU, CUDA, BoundChain, session_options
from trimvla.runtime.backends.ort_runner import create as open_stage
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.manifest import StageSpec, TensorSpec
from trimvla.runtime.errors import BackendError, BundleError

INPUTS = {
    "vision": {"image": np.full((1, 8, 8, 3), 7, np.uint8)},
    "language": {
        "visual": np.ones((1, 4, WIDTH), np.float32),
        "input_ids": np.arange(12, dtype=np.int64)[None],
        "last": np.array([9], np.int64),
    },
    "action": {
        "cognition": np.ones((1, WIDTH), np.float32),
        "noise": np.ones((1, HORIZON, 7), np.float32),
    },
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("stage", INPUTS)
def test_every_stage_keeps_the_contract(bundle: Path, stage: str) -> None:
    runner = create("onnxruntime", bundle / f"{stage}.onnx", manifest().stages[stage], threads=1)
    check_runner(runner, INPUTS[stage])
    assert runner.describe()["provider"] == CPU
    runner.close()


ALL_INPUTS = {**INPUTS["vision"], **INPUTS["language"], **INPUTS["action"]}


def test_bound_stages_are_the_same_chain(bundle: Path) -> None:
    """What CUDA's provider gets, on the CPU's memory."""
    host = open_chain(bundle, manifest())
    runners = {
        name: open_stage(bundle / spec.file, spec) for name, spec in manifest().stages.items()
    }
    check_chain(BoundChain(runners, "cpu"), host, ALL_INPUTS)


def test_on_cuda(bundle: Path) -> None:
    try:
        chain = open_chain(bundle, manifest(), provider=CUDA)
    except BackendError as error:
        pytest.skip(str(error))
    assert {runner.describe()["provider"] for runner in chain.runners.values()} == {CUDA}
    check_chain(chain, open_chain(bundle, manifest()), ALL_INPUTS, tolerance=1e-4)


@pytest.mark.parametrize("verb", ["bench", "eval"])
def test_a_provider_is_asked_for_on_the_command_line(
    bundle: Path, verb: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main([verb, str(bundle), "--provider", "AbacusExecutionProvider"]) == 1
    assert (
        "expected provider 'AbacusExecutionProvider', this onnxruntime offers"
        in capsys.readouterr().err
    )


def test_an_unknown_backend_is_refused(bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"'onnxruntime'.* got 'abacus' for 'backend'"):
        create("abacus", bundle / "vision.onnx", manifest().stages["vision"])


def test_a_provider_that_is_not_there_is_refused(bundle: Path) -> None:
    with pytest.raises(
        BackendError, match="expected provider 'AbacusExecutionProvider', this onnxruntime offers"
    ):
        create(
            "onnxruntime",
            bundle / "vision.onnx",
            manifest().stages["vision"],
            provider="AbacusExecutionProvider",
        )


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fallback_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may be listed and still not load; the session then runs on the CPU without a
    word.
    """
    listed = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in listed:
        pytest.skip("this machine may really have CUDA")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [*listed, "CUDAExecutionProvider"]
    )
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        create(
            "onnxruntime",
            bundle / "vision.onnx",
            manifest().stages["vision"],
            provider="CUDAExecutionProvider",
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StageSpec("", (COGNITION,), (VISUAL,)), "expected inputs .*cognition.* got .*image"),
        (StageSpec("", (IMAGE,), (COGNITION,)), "expected outputs .*cognition.* got .*visual"),
        (
            StageSpec("", (TensorSpec("image", "float32", IMAGE.shape),), (VISUAL,)),
            "expected inputs .*float32.*uint8",
        ),
        (
            StageSpec("", (TensorSpec("image", "uint8", (1, 9, 9, 3)),), (VISUAL,)),
            "expected inputs .*9, 9.*8, 8",
        ),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says(
    bundle: Path, spec: StageSpec, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        create("onnxruntime", bundle / "vision.onnx", spec)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "vision.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"vision\.onnx"):
        create("onnxruntime", tmp_path / "vision.onnx", manifest().stages["vision"])


def test_waiting_threads_sleep() -> None:
    options = session_options(threads=2)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


def test_products_of_int8_do_not_overflow() -> None:
    """Both factors at their largest: without VNNI, 16 bits hold no sum of two such products."""
    session = onnxruntime.InferenceSession(
        largest_product(width=64), session_options(1), providers=[CPU]
    )
    [product] = session.run(None, {"x": np.ones((2, 64), np.float32)})
    np.testing.assert_allclose(np.asarray(product), np.full((2, 8), 64.0), rtol=1e-6)


def test_products_of_int8_may_share_a_weight(tmp_path: Path) -> None:
    """As the steps of a sampler do: exact all the same, on any processor."""
    (tmp_path / "action.onnx").write_bytes(largest_product(width=64, products=3))
    x = TensorSpec("x", "float32", (2, 64))
    spec = StageSpec("action.onnx", (x,), (TensorSpec("y", "float32", (2, 8)),))
    runner = create("onnxruntime", tmp_path / "action.onnx", spec, threads=1)
    product = runner.run({"x": np.ones((2, 64), np.float32)})["y"]
    np.testing.assert_allclose(product, np.full((2, 8), 3 * 64.0), rtol=1e-6)


def largest_product(width: int, products: int = 1) -> bytes:
    """An int8 product as bundles have it: x, quantised, times a matrix of ones, which is stored as
    127 / 127; or the sum of several such products.
    """
    arrays = {
        "scale": np.array(1 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "weight": np.full((width, 8), 127, np.int8),
        "scales": np.full(8, 1 / 127, np.float32),
        "zeros": np.zeros(8, np.int8),
    }
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])]
    for k in range(products):
        nodes += [
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [f"data{k}"]),
            helper.make_node(
                "DequantizeLinear", ["weight", "scales", "zeros"], [f"matrix{k}"], axis=1
            ),
            helper.make_node("MatMul", [f"data{k}", f"matrix{k}"], [f"y{k}"]),
        ]
    nodes.append(helper.make_node("Sum", [f"y{k}" for k in range(products)], ["y"]))
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])
    graph = helper.make_graph(nodes, "product", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()
