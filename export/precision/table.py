"""A bundle's graphs in another precision: float32 stage files -> the same files in the precision
that was asked for.

The table defines what each precision is. Stage borders, norms, softmax, sums (so the residual
stream and the sampler's state) and the choice of tokens stay in float32 in all of them. Graphs are
rewritten after their export; the proof against float32 torch is `verify`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trimvla.export.graphs.to_onnx import store_in_half, strip
from trimvla.export.precision.half import halve
from trimvla.export.precision.int8 import multiplied, quantise
from trimvla.export.precision.ranges import CalibrationFrames, activation_ranges
from trimvla.policies.sizes.memory import SPELLINGS
from trimvla.policies.trimming.calibrate import Calibration, check_calibration
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """What products of matrices compute in. `calibrated`: activations need ranges from frames."""

    products: str
    for_whom: str
    calibrated: bool = False


PRECISIONS = {
    "float32": Precision("float32", "everything"),
    "float16": Precision("float16", "TensorRT; ONNX Runtime's CPU kernels compute it in float32"),
    "bfloat16": Precision(
        "bfloat16", "TensorRT, OpenVINO on processors with bfloat16; not ONNX Runtime's CPU kernels"
    ),
    "int8": Precision(
        "int8", "TensorRT, OpenVINO and ONNX Runtime: explicit, static, symmetric", calibrated=True
    ),
    "int8-dynamic": Precision("int8", "ONNX Runtime on a CPU; not TensorRT, not OpenVINO"),
}


def precision_named(text: str) -> str:
    """A key of `PRECISIONS` for what a user wrote. Raises ConfigError, which lists them."""
    name = SPELLINGS.get(text, text)
    if name not in PRECISIONS:
        raise ConfigError(f"expected one of {', '.join(PRECISIONS)} for 'dtype', got {text!r}")
    return name


def convert(
    stages: Mapping[str, Path],
    precision: str,
    cfg: Any,  # noqa: ANN401
    data: CalibrationFrames | None = None,
) -> None:
    """Rewrite float32 stage files in a precision.

    Args:
        stages: stage -> its file, in the order in which they run.
        precision: a key of `PRECISIONS`.
        cfg: the policy's.
        data: calibration frames, where the precision needs them.

    Raises:
        ConfigError: an unknown precision, frames missing or of another policy.
    """
    kind = PRECISIONS[precision_named(precision)]
    if precision == "float32":
        return
    ranges: Mapping[str, Mapping[str, float] | None] = dict.fromkeys(stages)
    if kind.calibrated:
        if data is None:
            raise ConfigError(f"expected calibration frames for {precision}, got none")
        if isinstance(data, Calibration):
            check_calibration(data, cfg)
        ranges = activation_ranges(
            stages, {name: multiplied(load(path)) for name, path in stages.items()}, data, cfg
        )
    for name, path in stages.items():
        model = load(path)
        if kind.products == "int8":
            quantise(model, ranges[name])
        else:
            halve(model, kind.products)
        save(model, path)


def load(path: Path) -> ir.Model:
    """A stage's graph; large weights stay on the disk until they are looked at."""
    return ir.load(path)


def forget_shapes(model: ir.Model) -> None:
    """What every reader infers takes no room in the file; types and shapes of the border stay."""
    border = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value not in border:
                value.shape = value.type = None


def save(model: ir.Model, path: Path) -> None:
    """Write a graph in place of the old one, weights where they were, checked."""
    strip(model)
    store_in_half(model)
    forget_shapes(model)
    beside = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=beside.name if beside.exists() else None)
    onnx.checker.check_model(str(path), full_check=True)
