"""The contract that every backend keeps: one stage, named arrays in, named arrays out.

A runner is made for one stage of one bundle and owns what it needs on its device.
`tests/runner_contract.py` holds the contract as a reusable test. Knows no backend: its module is
imported when it is asked for. How stages follow each other is `chain.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError, SpecError
from trimvla.runtime.own_objects import parse_reference

BACKENDS = {
    "onnxruntime": "trimvla.runtime.backends.ort_runner",
    "openvino": "trimvla.runtime.backends.openvino_runner",
    "tensorrt": "trimvla.runtime.backends.tensorrt.runner",
    "tensorrt-rtx": "trimvla.runtime.backends.tensorrt.runner",
}
OWN = "trimvla.runtime.backends.own_backend"
# run the engines that `trimvla build` made; the others load a bundle's graphs
BUILT = ("tensorrt", "tensorrt-rtx")


class Runner(Protocol):
    """Executes one stage."""

    spec: StageSpec

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as fresh arrays.

        Raises:
            SpecError: an input is missing, unknown, or of another dtype or shape than the stage's
                spec.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What really runs: backend, version, provider, device, as the backend itself reports
        it.
        """
        ...

    def close(self) -> None:
        """Free the device; the runner is not used again."""
        ...


def create(
    backend: str,
    model: Path,
    spec: StageSpec,
    *,
    provider: str | None = None,
    threads: int = 0,
    engines: Path | None = None,
) -> Runner:
    """A runner for one stage.

    Args:
        backend: a key of `BACKENDS`, or with its provider "BACKEND:PROVIDER", such as
            openvino:bf16; or the user's own, "module:attribute", which is imported.
        model: the stage's graph; for a backend that runs engines, in its bundle.
        spec: its inputs and outputs.
        provider: what executes inside the backend, by the backend's own name; None is its plain
            default.
        threads: threads for one operator; 0 leaves it to the backend.
        engines: the folder of built engines, for a backend in `BUILT`; None: see `engine_folders`.

    Raises:
        BackendError: the backend is unknown, not installed, or did not give what was asked for.
        BundleError: the graph cannot be read, or does not match the spec.
    """
    module, options = find_backend(backend, provider, threads, engines)
    return module.create(model, spec, **options)


def is_ours(backend: str) -> bool:
    """Whether a backend, with or without its provider, is one of the table."""
    return backend.partition(":")[0] in BACKENDS


def find_backend(
    backend: str, provider: str | None, threads: int, engines: Path | None
) -> tuple[Any, dict[str, Any]]:
    """The backend's module, or the user's own in its place, and the options that its functions
    take; see `create`.
    """
    own = None if is_ours(backend) else parse_reference(backend)
    if own is None and not is_ours(backend):
        known = f"one of {sorted(BACKENDS)}, or module:attribute of your own"
        raise BackendError(f"expected {known}, got {backend!r} for 'backend'")
    name, _, inner = backend.partition(":")
    if own is not None:
        name = str(own)
        inner = own.words
    options: dict[str, Any] = {"provider": provider or inner or None, "threads": threads}
    if name in BUILT:
        options |= {"backend": name, "engines": engines}
    elif engines is not None:
        built = " and ".join(BUILT)
        raise BackendError(f"'engines' is for {built}: backend '{name}' loads the bundle's graphs")
    if own is not None:
        return importlib.import_module(OWN).OwnBackend(name), options
    return importlib.import_module(BACKENDS[name]), options


def check_inputs(spec: StageSpec, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise SpecError unless the inputs are exactly those of the spec."""
    names = {tensor.name for tensor in spec.inputs}
    if inputs.keys() != names:
        raise SpecError(f"expected inputs {sorted(names)}, got {sorted(inputs)}")
    for tensor in spec.inputs:
        tensor.array.validate(inputs[tensor.name])
