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

from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.manifest import StageSpec
from trimvla.runtime.runner import check_inputs

CPU = "CPUExecutionProvider"


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
        _check_names(model, spec, self._session)

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


def create(model: Path, spec: StageSpec, *, threads: int = 0) -> OrtRunner:
    """See `runner.create`."""
    return OrtRunner(model, spec, threads=threads)


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
    except Exception as error:  # the library's exceptions share no public base
        raise BundleError(f"{model}: {error}") from error


def _check_names(model: Path, spec: StageSpec, session: ort.InferenceSession) -> None:
    for kind, want, got in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        if {tensor.name for tensor in want} != {value.name for value in got}:
            names = [value.name for value in got]
            raise BundleError(f"expected {kind} {[t.name for t in want]}, got {names} in {model.name!r}")
