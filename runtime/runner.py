"""The contract that every backend keeps: one stage, named arrays in, named arrays out.

A runner is made for one stage of one bundle and owns what it needs on its device. `tests/runner_contract.py` holds the
contract as a reusable test. Knows no backend: `create` imports the one that is asked for, when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from trimvla.runtime.errors import BackendError, SpecError
from trimvla.runtime.manifest import StageSpec

BACKENDS = {
    "onnxruntime": "trimvla.runtime.ort_runner",
    "openvino": "trimvla.runtime.openvino_runner",
}


class Runner(Protocol):
    """Executes one stage."""

    spec: StageSpec

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as fresh arrays.

        Raises:
            SpecError: an input is missing, unknown, or of another dtype or shape than the stage's spec.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What really runs: backend, version, provider, device, as the backend itself reports it."""
        ...

    def close(self) -> None:
        """Free the device; the runner is not used again."""
        ...


def create(backend: str, model: Path, spec: StageSpec, *, provider: str | None = None, threads: int = 0) -> Runner:
    """A runner for one stage.

    Args:
        backend: a key of `BACKENDS`, or with its provider "BACKEND:PROVIDER", such as openvino:bf16.
        model: the stage's graph.
        spec: its inputs and outputs.
        provider: what executes inside the backend, by the backend's own name; None is its plain default.
        threads: threads for one operator; 0 leaves it to the backend.

    Raises:
        BackendError: the backend is unknown, not installed, or did not give what was asked for.
        BundleError: the graph cannot be read, or does not match the spec.
    """
    backend, _, inner = backend.partition(":")
    provider = provider or inner or None
    if backend not in BACKENDS:
        raise BackendError(f"expected one of {sorted(BACKENDS)}, got {backend!r} for 'backend'")
    return importlib.import_module(BACKENDS[backend]).create(model, spec, provider=provider, threads=threads)


def check_inputs(spec: StageSpec, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise SpecError unless the inputs are exactly those of the spec."""
    names = {tensor.name for tensor in spec.inputs}
    if inputs.keys() != names:
        raise SpecError(f"expected inputs {sorted(names)}, got {sorted(inputs)}")
    for tensor in spec.inputs:
        tensor.array.validate(inputs[tensor.name])
