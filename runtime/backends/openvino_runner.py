"""OpenVINO: the fastest backend on an x86 processor, in float32, bfloat16 or int8.

Takes a whole graph or refuses it, so there is nothing to fall back to; but its own choice of
precision is silent (bfloat16 where the processor has it), so the precision is always asked for, and
read back from the compiled graph. Every prompt length is a compiled model of its own, of static
shapes. OpenVINO's own package is used, not its plug-in for ONNX Runtime: that one refuses
processors of other makers (microsoft/onnxruntime#31981), and cannot be read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.backends.failures import call_failure
from trimvla.runtime.backends.runner import check_inputs
from trimvla.runtime.bundle.manifest import MANIFEST, StageSpec, TensorSpec, parse
from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.specs import describe
from trimvla.runtime.text_files import read_bytes

DEVICE = "CPU"
GRAPH = "graph"  # the default: what the graph itself is written in
PROVIDERS = (GRAPH, "f32", "bf16")
NEEDS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # precision -> the processor's capability
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention")
NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}
Shapes = tuple[tuple[int, ...], ...]


class OpenVinoRunner:
    """One stage, compiled once for every prompt length."""

    def __init__(
        self,
        library: Any,  # noqa: ANN401
        model: Path,
        spec: StageSpec,
        provider: str | None,
        threads: int,
    ) -> None:
        """`library` is the module `openvino`; else see `runner.create`."""
        self.spec = spec
        self._library = library
        self._model = model
        self._core = library.Core()
        self._graph = graph = self._read()
        check_borders(model, spec, graph)
        self._provider = provider or GRAPH
        self._asked = own_precision(graph) if self._provider == GRAPH else self._provider
        # static and dynamic: an operator's name
        self._quantised = b"QuantizeLinear" in model.read_bytes()
        self._check_asked()
        self._threads = threads
        self._requests: dict[Shapes, Any] = {}
        self.precision = ""
        for length in bucket_lengths(model) if symbolic(spec) else (0,):
            self._request(tuple(static_shape(tensor, length) for tensor in spec.inputs))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        request = self._request(tuple(inputs[tensor.name].shape for tensor in self.spec.inputs))
        try:
            got = request.infer(dict(inputs))
        except RuntimeError as error:
            raise call_failure("openvino", error) from error
        return {tensor.name: np.array(got[tensor.name]) for tensor in self.spec.outputs}

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`; `precision` counts the matrix products by what they were compiled
        to.
        """
        return {
            "backend": "openvino",
            "version": str(self._library.__version__),
            "provider": self._provider,
            "device": str(self._core.get_property(DEVICE, "FULL_DEVICE_NAME")),
            "precision": self.precision,
        }

    def close(self) -> None:
        """See `runner.Runner`."""
        self._requests.clear()

    def _read(self) -> Any:  # noqa: ANN401 - the library has no types
        try:
            return self._core.read_model(str(self._model))
        except RuntimeError as error:
            raise BundleError(f"{self._model}: {first_line(error)}") from error

    def _check_asked(self) -> None:
        if self._provider not in PROVIDERS:
            raise BackendError(
                f"expected one of {list(PROVIDERS)} behind 'openvino:', got {self._provider!r}"
            )
        can = self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        if NEEDS[self._asked] not in can:
            raise BackendError(
                f"{self._model.name}: this processor does not compute in {NAMES[self._asked]}"
                f" (OpenVINO offers {', '.join(sorted(can))}); ask for openvino:f32"
            )

    def _request(self, shapes: Shapes) -> Any:  # noqa: ANN401 - the library has no types
        """The compiled model for these input shapes, compiled where there is none yet."""
        if shapes not in self._requests:
            graph = self._graph.clone()  # of what was read at first: the file may be another by now
            graph.reshape(
                {
                    tensor.name: list(shape)
                    for tensor, shape in zip(self.spec.inputs, shapes, strict=True)
                }
            )
            try:
                compiled = self._core.compile_model(graph, DEVICE, self._options())
            except RuntimeError as error:
                raise BackendError(
                    f"{self._model.name}: OpenVINO cannot run it: {first_line(error)}"
                ) from error
            self.precision = check_precision(
                products(compiled), self._asked, self._model.name, self._quantised
            )
            self._requests[shapes] = compiled.create_infer_request()
        return self._requests[shapes]

    def _options(self) -> dict[str, Any]:
        """One call at a time, cores left to the control loop.

        A bfloat16 graph stays what it is under the hint f32.
        """
        own = self._provider == GRAPH and self._asked == "bf16"
        return {
            "INFERENCE_PRECISION_HINT": "f32" if own else self._asked,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }


def create(
    model: Path, spec: StageSpec, *, provider: str | None = None, threads: int = 0
) -> OpenVinoRunner:
    """See `runner.create`.

    `provider` is what floating-point products compute in: "graph" (the default: as they are
    written), "f32" or "bf16". Int8 products of a quantised graph stay int8.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"backend 'openvino' is not installed ({error}): pip install 'trimvla[openvino]'"
        ) from error
    return OpenVinoRunner(openvino, model, spec, provider, threads)


def own_precision(graph: Any) -> str:  # noqa: ANN401 - the library has no types
    """What a graph's floating-point products are written in, by its most frequent type."""
    written = [node for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    types = Counter(str(node.get_output_element_type(0).get_type_name()) for node in written)
    return next((name for name, _ in types.most_common() if name in NEEDS), "f32")


def products(compiled: Any) -> Counter[str]:  # noqa: ANN401 - the library has no types
    """Precisions of the matrix products of a compiled model, read back from it."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in PRODUCTS:
            name = str(info["runtimePrecision"].astype(str))
            found[NAMES.get(name, name)] += 1
    return found


def check_precision(found: Counter[str], asked: str, model: str, quantised: bool = False) -> str:
    """How many products in which precision, as text; BackendError where some are in one that nobody
    asked for.

    OpenVINO computes dynamically quantised products in floating point: that is no int8 either.
    """
    counts = ", ".join(f"{count} in {name}" for name, count in found.most_common()) or "no products"
    other = found.keys() - {NAMES[asked], "int8", "float32"}
    lost = asked != "f32" and found and not found.keys() & {NAMES[asked], "int8"}
    if other or lost or (quantised and "int8" not in found):
        wanted = f"int8 and {NAMES[asked]}" if quantised else NAMES[asked]
        raise BackendError(f"{model}: asked for {wanted}, OpenVINO compiled {counts}")
    return counts


def check_borders(model: Path, spec: StageSpec, graph: Any) -> None:  # noqa: ANN401 - the library has no types
    """The graph's own inputs and outputs must be those that the manifest promises: names, dtypes,
    shapes.
    """
    for kind, want, got in (
        ("inputs", spec.inputs, graph.inputs),
        ("outputs", spec.outputs, graph.outputs),
    ):
        expected = {tensor.name: str(tensor.array) for tensor in want}
        shapes = {tensor.name: tensor.shape for tensor in want}
        found = {
            value.any_name: border_text(value, shapes.get(value.any_name, ())) for value in got
        }
        if expected != found:
            raise BundleError(f"{model}: expected {kind} {expected}, got {found}")


def border_text(value: Any, named: tuple[int | str, ...]) -> str:  # noqa: ANN401 - the library has no types
    """Dtype and shape of a border; axes without a length take the spec's name for them."""
    sizes = [None if axis.is_dynamic else axis.get_length() for axis in value.partial_shape]
    names = named if len(named) == len(sizes) else (None,) * len(sizes)
    shape = tuple(
        size if size is not None else name for size, name in zip(sizes, names, strict=True)
    )
    return describe(value.element_type.to_dtype().name, shape)


def symbolic(spec: StageSpec) -> bool:
    """Whether an input has an axis that takes the prompt's length."""
    return any(isinstance(axis, str) for tensor in spec.inputs for axis in tensor.shape)


def static_shape(tensor: TensorSpec, length: int) -> tuple[int, ...]:
    """The shape for a prompt of this length."""
    return tuple(length if isinstance(axis, str) else axis for axis in tensor.shape)


def bucket_lengths(model: Path) -> tuple[int, ...]:
    """Prompt lengths from the manifest beside a graph; none for a graph by itself, which compiles
    when it is used.
    """
    path = model.with_name(MANIFEST)
    if not path.is_file():
        return ()
    return parse(read_bytes(path, "a manifest", error=BundleError), path).buckets


def first_line(error: Exception) -> str:
    """The reason in one of the library's long messages: its last line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
