"""The table for TensorRT 10.3: every graph that ships or is exported stands in it, and planted ones
do not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tiny_policy import TINY, random_policy

from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.tensorrt.operators import check_operators, problems_of
from trimvla.policies.cogact.stages import stages
from trimvla.policies.nn.cachers import every
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.errors import BundleError

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
SHIPPED = sorted(BUNDLES.glob("*/*.onnx"))
FLOAT = TensorProto.FLOAT
DOUBLE = TensorProto.DOUBLE
INT64 = TensorProto.INT64


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_stage_is_for_tensorrt_10_3(path: Path) -> None:
    check_operators(path)


def test_there_are_shipped_stages() -> None:
    assert {path.stem for path in SHIPPED} >= {"vision", "language", "action"}


@pytest.mark.parametrize(
    "selector",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("efficientvla", "fastv")),
        "uniform",
    ],
)
def test_a_trimmed_policy_is_for_tensorrt_10_3(selector, tmp_path: Path) -> None:
    cfg = msgspec.structs.replace(TINY, language=msgspec.structs.replace(TINY.language, layers=5))
    tokens = TokenPlan(keep=8, key=2, selector=selector)
    plan = Plan(
        layers=(0, 2, 3, 4), channels=(mask(range(36)),) * 4, tokens=tokens, recompute=every(2, 2)
    )
    policy = trim(random_policy(cfg), plan)
    for stage in stages(TINY, plan):
        export_stage(policy, stage, tmp_path / f"{stage.name}.onnx")
        check_operators(tmp_path / f"{stage.name}.onnx")


def graph(
    *nodes: NodeProto, kind: int = FLOAT, opset: int = 20, domain: str = "", **constants: int
) -> onnx.ModelProto:
    """x -> nodes -> y."""
    border = [helper.make_tensor_value_info(name, kind, [1, 5000]) for name in ("x", "y")]
    tensors = [
        numpy_helper.from_array(np.array([value]), name) for name, value in constants.items()
    ]
    parts = helper.make_graph(list(nodes), "planted", border[:1], border[1:], tensors)
    return helper.make_model(
        parts, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10
    )


def branch() -> onnx.GraphProto:
    value = numpy_helper.from_array(np.zeros((1, 5000), np.float32))
    node = helper.make_node("Constant", [], ["made"], value=value)
    return helper.make_graph(
        [node], "branch", [], [helper.make_tensor_value_info("made", FLOAT, [1, 5000])]
    )


RELU = helper.make_node("Relu", ["x"], ["y"], name="fine")
PLANTED = {
    "operator": (
        graph(helper.make_node("Unique", ["x"], ["y"], name="odd")),
        "node 'odd' (Unique): not in the table",
    ),
    "k": (
        graph(helper.make_node("TopK", ["x", "k"], ["y", "i"], name="top"), k=4000),
        "K up to 3840, got 4000",
    ),
    "dynamic k": (
        graph(helper.make_node("TopK", ["x", "x"], ["y", "i"], name="top")),
        "a constant K",
    ),
    "unsorted": (
        graph(helper.make_node("TopK", ["x", "k"], ["y", "i"], sorted=0), k=4),
        "sorted = 1, got 0",
    ),
    "type": (
        graph(helper.make_node("Erf", ["x"], ["y"], name="e"), kind=DOUBLE),
        "got float64 for 'x'",
    ),
    "integers": (
        graph(helper.make_node("Clip", ["x"], ["y"], name="c"), kind=INT64),
        "got int64 for 'x'",
    ),
    "opset": (graph(RELU, opset=23), "an opset from 9 to 20, got 23"),
    "domain": (graph(RELU, domain="com.microsoft", opset=1), "the domain 'com.microsoft'"),
    "branch": (
        graph(
            helper.make_node(
                "If", ["x"], ["y"], name="if", then_branch=branch(), else_branch=branch()
            )
        ),
        "node 'if' (If): control flow",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    model, message = PLANTED[name]
    onnx.save(model, tmp_path / "planted.onnx")
    with pytest.raises(BundleError) as caught:
        check_operators(tmp_path / "planted.onnx")
    assert message in str(caught.value)
    assert "not for TensorRT 10.3" in str(caught.value)


def test_pixels_are_cast_at_once() -> None:
    inside = helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8)
    out = helper.make_node("Cast", ["bytes"], ["y"], to=FLOAT, name="late")
    assert [
        problem for problem in problems_of(graph(inside, out)) if "uint8 is for inputs" in problem
    ]


def test_a_fine_graph_has_no_problems() -> None:
    assert not list(problems_of(graph(RELU)))
