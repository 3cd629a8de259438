"""ONNX Runtime: the default backend, on any CPU.

Asks for one provider and checks what it got: `get_available_providers()` lists providers that do not load, and a
session falls back to the CPU without a word. Waiting threads sleep instead of spinning: on a robot's few cores a
spinning pool starves the control loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.manifest import StageSpec
from trimvla.runtime.runner import check_inputs
from trimvla.runtime.specs import describe

CPU = "CPUExecutionProvider"
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


class OrtRunner:
    """One stage in one session."""

    def __init__(self, model: Path, spec: StageSpec, *, provider: str = CPU, threads: int = 0) -> None:
        """See `runner.create`."""
        self.spec = spec
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._session = _session(model, provider, threads)
        got = self._session.get_providers()
        if not got or got[0] != provider:
            raise BackendError(f"expected provider {provider!r}, got {got} for {model.name!r}")
        _check_borders(model, spec, self._session)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        values = self._session.run(self._outputs, dict(inputs))
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`."""
        return {"backend": "onnxruntime", "version": ort.__version__, "provider": self._session.get_providers()[0]}

    def close(self) -> None:
        """See `runner.Runner`."""
        del self._session


def create(model: Path, spec: StageSpec, *, provider: str | None = None, threads: int = 0) -> OrtRunner:
    """See `runner.create`."""
    return OrtRunner(model, spec, provider=provider or CPU, threads=threads)


def session_options(threads: int) -> ort.SessionOptions:
    """Options that all sessions share: no spinning, one operator at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(model: Path, provider: str, threads: int) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        raise BackendError(f"expected provider {provider!r}, this onnxruntime offers {ort.get_available_providers()}")
    try:
        return ort.InferenceSession(str(model), session_options(threads), providers=[provider])
    except NoKernel as error:
        hint = "a bfloat16 bundle runs on openvino or tensorrt"
        raise BackendError(f"{model.name}: {provider} has no kernel for part of it ({error}); {hint}") from error
    except Exception as error:  # the library's exceptions share no public base
        raise BundleError(f"{model}: {error}") from error


def _check_borders(model: Path, spec: StageSpec, session: ort.InferenceSession) -> None:
    """The graph's own inputs and outputs must be those that the manifest promises: names, dtypes, shapes."""
    for kind, want, got in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        expected = {tensor.name: str(tensor.array) for tensor in want}
        found = {value.name: describe(DTYPES.get(value.type, value.type), tuple(value.shape)) for value in got}
        if expected != found:
            raise BundleError(f"{model}: expected {kind} {expected}, got {found}")
