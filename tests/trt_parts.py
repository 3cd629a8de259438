"""What the tests of TensorRT share: the library that can be had here, a tiny bundle with a stage
of one's own, and what holds for every stage that is meant for a robot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx
import pytest

from tests import tiny_bundle
from trimvla.export.tensorrt import build as to_tensorrt
from trimvla.export.tensorrt.operators import check_operators
from trimvla.export.tensorrt.read_back import matrix_precision
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, load_trt
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError


def library_or_skip() -> TrtLibrary:
    """TensorRT for RTX, which parses and builds without a GPU; skips with the library's reason
    where it is absent.
    """
    try:
        return load_trt("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))


def bundle_with(directory: Path, *, precision: str = "float32", **stages: onnx.ModelProto) -> Path:
    """The tiny bundle, with other graphs in place of its stages."""
    tiny_bundle.write_bundle(directory)
    for name, model in stages.items():
        onnx.save(model, directory / f"{name}.onnx")
    bundles.write(directory, msgspec.structs.replace(tiny_bundle.manifest(), precision=precision))
    return directory


def check_stage(
    library: TrtLibrary, path: Path, spec: StageSpec, buckets: Sequence[int], precision: str
) -> None:
    """The file is in the table of TensorRT 10.3, its products are in this precision, and it
    builds.
    """
    check_operators(path)
    parsed = to_tensorrt.parse(library, path)
    assert matrix_precision(library.module, parsed.network) == precision
    config = parsed.builder.create_builder_config()
    to_tensorrt.add_profiles(parsed.builder, config, spec, buckets)
    assert parsed.builder.build_serialized_network(parsed.network, config) is not None, (
        library.complaint()
    )
