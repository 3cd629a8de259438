"""Requested precision against built precision: that of a strongly typed network, and that of the
built engine.

A builder may fall back without a word (NVIDIA/TensorRT#4590: FP8 and FP4 flags that built FP32), so
what was built is read back through the engine inspector and compared tensor by tensor. Loading an
engine needs a GPU; without one nothing was read back, and the answer records that. Imports no
backend: the library comes in as an argument.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trimvla.runtime.backends.tensorrt.device import Device
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, dtype_name
from trimvla.runtime.errors import BackendError

# The inspector's "Format/Datatype" -> ours: "Row major linear FP16 format" in some versions, "Half"
# in others.
WRITTEN = (
    (re.compile(r"\b(BF16|BFloat16)\b", re.IGNORECASE), "bfloat16"),
    (re.compile(r"\b(FP16|Half)\b", re.IGNORECASE), "float16"),
    (re.compile(r"\b(FP32|Float)\b", re.IGNORECASE), "float32"),
    (re.compile(r"\b(FP8|Float8)\b", re.IGNORECASE), "float8"),
    (re.compile(r"\b(FP4|Float4)\b", re.IGNORECASE), "float4"),
    (re.compile(r"\bUINT8\b", re.IGNORECASE), "uint8"),
    (re.compile(r"\bINT8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bINT4\b", re.IGNORECASE), "int4"),
    (re.compile(r"\bINT32\b", re.IGNORECASE), "int32"),
    (re.compile(r"\bINT64\b", re.IGNORECASE), "int64"),
    (re.compile(r"\bBOOL\b", re.IGNORECASE), "bool"),
)


def asked_types(network: Any) -> dict[str, str]:  # noqa: ANN401 - the library has no types
    """Tensor -> dtype, for every output of every layer of a parsed network."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    outputs = (layer.get_output(index) for layer in layers for index in range(layer.num_outputs))
    return {tensor.name: dtype_name(tensor.dtype) for tensor in outputs}


def matrix_precision(trt: Any, network: Any) -> str:  # noqa: ANN401 - the library has no types
    """What most matrix products of a parsed network compute in; "none" where it has none.

    A product is in int8 where both factors come from a DequantizeLinear; the builder fuses the
    three. One of these is enough: a graph is never quantised as a whole.
    """
    kinds = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    integers = dequantised(trt, layers)
    found = Counter(
        "int8"
        if integers.issuperset(factor_names(layer))
        else dtype_name(layer.get_output(0).dtype)
        for layer in layers
        if layer.type in kinds
    )
    if found["int8"]:
        return "int8"
    return found.most_common(1)[0][0] if found else "none"


def factor_names(layer: Any) -> list[str]:  # noqa: ANN401 - the library has no types
    """Names of a layer's inputs."""
    return [
        layer.get_input(index).name
        for index in range(layer.num_inputs)
        if layer.get_input(index) is not None
    ]


def dequantised(trt: Any, layers: Iterable[Any]) -> set[str]:  # noqa: ANN401 - the library has no types
    """Tensors that hold dequantised integers, also moved or reshaped ones."""
    found: set[str] = set()
    for layer in layers:  # in the graph's order
        moved = layer.type == trt.LayerType.SHUFFLE and layer.get_input(0).name in found
        if moved or layer.type == trt.LayerType.DEQUANTIZE:
            found.add(layer.get_output(0).name)
    return found


def read_back(
    library: TrtLibrary, engine: bytes | memoryview, asked: Mapping[str, str], device: Device
) -> dict[str, Any]:
    """Load an engine and compare it with what was asked.

    Args:
        library: what built it.
        engine: the serialised engine.
        asked: see `asked_types`.
        device: this machine's.

    Returns:
        {"ok": True, "layers", "compared", "types": {dtype: outputs}}, or {"ok": None, "why"} where
        there is no GPU to
        load it on: then nothing is known about it.

    Raises:
        BackendError: it does not load, cannot be read, or was built in another precision.
    """
    if not device.has_gpu:
        return {
            "ok": None,
            "why": "not read back: an engine loads on a GPU only, and this machine has none",
        }
    runtime = library.module.Runtime(library.logger)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise BackendError(f"the built engine does not load on {device.gpu}: {library.complaint()}")
    written = library.module.LayerInformationFormat.JSON
    information = json.loads(loaded.create_engine_inspector().get_engine_information(written))
    return compare(information, asked)


def compare(information: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
    """An inspector's report against the asked types: see `read_back`.

    Tensors inside fused layers have no report.

    Raises:
        BackendError: another precision than asked, an unknown way of writing one, or nothing that
            can be compared.
    """
    built = list(built_types(information))
    wrong = [
        f"'{name}': asked {asked[name]}, built {got}"
        for name, got in built
        if asked.get(name, got) != got
    ]
    if wrong:
        raise BackendError(
            f"the engine was built in another precision than asked: {'; '.join(wrong[:5])}"
        )
    compared = sum(name in asked for name, _ in built)
    if not compared:
        raise BackendError(
            f"the engine's report names none of {len(asked)} asked tensors: nothing was compared"
        )
    types = dict(Counter(got for _, got in built).most_common())
    return {"ok": True, "layers": len(information["Layers"]), "compared": compared, "types": types}


def built_types(information: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(tensor, dtype) of every output of every layer in an inspector's report."""
    for layer in information.get("Layers", ()):
        # names alone: the engine was built without detailed verbosity
        if not isinstance(layer, Mapping):
            raise BackendError(
                f"expected detailed layers in the engine's report, got the name {layer!r}"
            )
        for output in layer.get("Outputs", ()):
            yield output["Name"], written_type(output["Format/Datatype"])


def written_type(text: str) -> str:
    """The dtype in the inspector's words; BackendError where they are unknown."""
    for pattern, name in WRITTEN:
        if pattern.search(text):
            return name
    raise BackendError(f"expected a known data type in the engine's report, got {text!r}")
