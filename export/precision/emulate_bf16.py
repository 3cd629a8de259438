"""bfloat16 where ONNX Runtime has no kernels for it: every operator in float32, every result
rounded to bfloat16.

That is what matrix units do, which add up in float32, and it is exact for everything that only
moves data. For the proof that a bundle carries; too slow for a robot. Knows graphs and the runner's
contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from trimvla.runtime.backends.ort_runner import CPU, session_options
from trimvla.runtime.backends.runner import check_inputs
from trimvla.runtime.bundle.manifest import StageSpec

FLOAT = TensorProto.FLOAT
BFLOAT = TensorProto.BFLOAT16


class EmulatedRunner:
    """One bfloat16 stage on ONNX Runtime's float32 kernels; keeps the runner's contract."""

    def __init__(self, model: Path, spec: StageSpec) -> None:
        """Of a graph below 2 GiB."""
        self.spec = spec
        options = session_options(0)
        # it would drop pairs of casts
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        wide = widen(onnx.load(str(model)))
        self._session = ort.InferenceSession(wide.SerializeToString(), options, providers=[CPU])

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        names = [tensor.name for tensor in self.spec.outputs]
        return dict(
            zip(names, map(np.asarray, self._session.run(names, dict(inputs))), strict=True)
        )

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`."""
        emulated = "bfloat16, each operator emulated in float32"
        return {
            "backend": "onnxruntime",
            "version": ort.__version__,
            "provider": CPU,
            "precision": emulated,
        }

    def close(self) -> None:
        """See `runner.Runner`."""
        del self._session


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with casts around every operator that touches bfloat16."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    narrow = {value.name for value in values if value.type.tensor_type.elem_type == BFLOAT}
    narrow |= {tensor.name for tensor in graph.initializer if tensor.data_type == BFLOAT}
    nodes: list[NodeProto] = []
    widened: set[str] = set()
    for node in graph.node:
        if node.op_type == "Cast" or not narrow.intersection((*node.input, *node.output)):
            nodes.append(node)
            continue
        for name in narrow.intersection(node.input) - widened:
            nodes.append(helper.make_node("Cast", [name], [wide_name(name)], to=FLOAT))
            widened.add(name)
        rounded = [name for name in node.output if name in narrow]
        node.input[:] = [wide_name(name) if name in narrow else name for name in node.input]
        node.output[:] = [f"{name}.whole" if name in narrow else name for name in node.output]
        nodes.append(node)
        nodes.extend(
            helper.make_node("Cast", [f"{name}.whole"], [name], to=BFLOAT) for name in rounded
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    return result


def wide_name(name: str) -> str:
    """A bfloat16 tensor's copy in float32."""
    return f"{name}.wide"
