"""What the tests of TensorRT share: the library that can be had here, and a tiny bundle with a
stage of one's own.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest

from tests import tiny_bundle
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, load_trt
from trimvla.runtime.bundle import manifest as bundles
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
