"""ONNX Runtime: the default backend, on any CPU.

Requests one provider and checks which one it got: `get_available_providers()` lists providers that
do not load, and a session falls back to the CPU without an error. On CUDA, what lies between two
stages stays on the device. Waiting threads sleep instead of spinning: on a robot's few cores a
spinning pool starves the control loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from trimvla.runtime.backends.chain import (
    Chain,
    HostChain,
    Milliseconds,
    Tensors,
    chain_io,
    open_all,
)
from trimvla.runtime.backends.failures import call_failure
from trimvla.runtime.backends.runner import check_inputs
from trimvla.runtime.bundle.manifest import Manifest, StageSpec
from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.specs import describe

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# provider -> what a session is asked for: TensorRT takes the parts of a graph that it can, CUDA the
# rest. float32 is float32: CUDA's own default rounds what it multiplies to 10 bits.
OPTIONS = {CUDA: [(CUDA, {"use_tf32": "0"})], TENSORRT: [TENSORRT, (CUDA, {"use_tf32": "0"})]}
# providers with a memory of their own, by ONNX Runtime's name of it
DEVICES = {CUDA: "cuda", TENSORRT: "cuda"}
# ONNX Runtime (seen in 1.32) turns int8 weights into uint8 ones for its exact kernels, under a name
# made of the old one: where a sampler's steps share a weight it stops at the second product.
# Without that step it fuses nothing, which is exact and as fast as float32.
SHARED_WEIGHTS = "Attempt to replace the existing tensor"
TO_UNSIGNED = "QDQS8ToU8Transformer"
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


class OrtRunner:
    """One stage in one session."""

    def __init__(
        self,
        model: Path,
        spec: StageSpec,
        *,
        provider: str = CPU,
        threads: int = 0,
        frugal: bool = False,
    ) -> None:
        """See `runner.create`; `frugal`: weights stay in the mapped file and are widened where they
        are used.
        """
        self.spec = spec
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._session = _session(model, provider, threads, frugal)
        got = self._session.get_providers()
        if not got or got[0] != provider:
            raise BackendError(f"expected provider {provider!r}, got {got} for {model.name!r}")
        _check_borders(model, spec, self._session)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # the library's exceptions share no public base
            raise call_failure("onnxruntime", error) from error
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def run_on(self, device: str, inputs: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        """As `run`, but outputs are left on a device, and inputs taken from wherever they lie."""
        try:
            binding = self._session.io_binding()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, device)
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise call_failure("onnxruntime", error) from error
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`."""
        return {
            "backend": "onnxruntime",
            "version": ort.__version__,
            "provider": self._session.get_providers()[0],
        }

    def close(self) -> None:
        """See `runner.Runner`."""
        del self._session


def create(
    model: Path, spec: StageSpec, *, provider: str | None = None, threads: int = 0
) -> OrtRunner:
    """See `runner.create`."""
    return OrtRunner(model, spec, provider=provider or CPU, threads=threads)


class BoundChain(HostChain):
    """Stages whose tensors stay on a device in between."""

    def __init__(self, runners: Mapping[str, OrtRunner], device: str) -> None:
        """`runners` in the stages' order."""
        super().__init__(runners)
        self._bound = dict(runners)
        self._device = device

    def run(
        self, inputs: Mapping[str, np.ndarray], stages: Sequence[str] | None = None
    ) -> tuple[Tensors, Milliseconds]:
        """See `chain.Chain.run`."""
        values = {}
        took = {}
        stages = tuple(self._bound) if stages is None else stages
        for name in stages:
            start = time.monotonic_ns()
            runner = self._bound[name]
            for spec in runner.spec.inputs:
                if spec.name not in values:
                    values[spec.name] = ort.OrtValue.ortvalue_from_numpy(
                        spec.array.validate(inputs[spec.name])
                    )
            values |= runner.run_on(
                self._device, {spec.name: values[spec.name] for spec in runner.spec.inputs}
            )
            took[name] = (time.monotonic_ns() - start) / 1e6
        made = chain_io({name: self._bound[name] for name in stages})[1]
        try:
            return {name: values[name].numpy() for name in made}, took
        except Exception as error:  # the copy from the device is where its earlier failures show
            raise call_failure("onnxruntime", error) from error


def open_chain(
    directory: Path,
    manifest: Manifest,
    *,
    provider: str | None = None,
    threads: int = 0,
    stages: Sequence[str],
) -> Chain:
    """See `chain.open_chain`."""
    specs = {name: manifest.stages[name] for name in stages}
    runners = open_all(create, directory, specs, {"provider": provider, "threads": threads})
    return BoundChain(runners, DEVICES[provider]) if provider in DEVICES else HostChain(runners)


def session_options(threads: int) -> ort.SessionOptions:
    """Options that all sessions share: no spinning, one operator at a time, int8 products that do
    not overflow.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # x86 without VNNI adds pairs of int8 products in 16 bits, where they saturate; without effect
    # on other processors
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def make_frugal(options: ort.SessionOptions) -> list[str]:
    """Let a session hold no copy of its weights; returns the optimisers to disable.

    On the CPU a float16 graph is widened to float32, as a whole while loading: three times the file
    in memory. With these options each weight is widened just before its product and dropped after
    it: slower, and the file is enough.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    return ["ConstantFolding"]


def _session(model: Path, provider: str, threads: int, frugal: bool) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"expected provider {provider!r}, this onnxruntime offers"
            f" {ort.get_available_providers()}"
        )
    options = session_options(threads)
    disabled = make_frugal(options) if frugal else []
    try:
        return _open(model, options, OPTIONS.get(provider, [provider]), disabled)
    except NoKernel as error:
        hint = "a bfloat16 bundle runs on openvino or tensorrt"
        raise BackendError(
            f"{model.name}: {provider} has no kernel for part of it ({error}); {hint}"
        ) from error
    except Exception as error:  # the library's exceptions share no public base
        raise BundleError(f"{model}: {error}") from error


def _open(
    model: Path, options: ort.SessionOptions, providers: Sequence[Any], disabled: list[str]
) -> ort.InferenceSession:
    """A session; without fused int8 products where ONNX Runtime cannot make exact ones."""
    path = str(model)
    try:
        return ort.InferenceSession(path, options, providers, disabled_optimizers=disabled)
    except Exception as error:  # the library's exceptions share no public base
        if SHARED_WEIGHTS not in str(error):
            raise
    log.warning(
        "%s: ONNX Runtime %s has no exact int8 kernels for weights that several products share on"
        " this processor; they are computed in float32",
        model.name,
        ort.__version__,
    )
    without = [*disabled, TO_UNSIGNED]
    return ort.InferenceSession(path, options, providers, disabled_optimizers=without)


def _check_borders(model: Path, spec: StageSpec, session: ort.InferenceSession) -> None:
    """The graph's own inputs and outputs must be those that the manifest promises: names, dtypes,
    shapes.
    """
    for kind, want, got in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        expected = {tensor.name: str(tensor.array) for tensor in want}
        found = {
            value.name: describe(DTYPES.get(value.type, value.type), tuple(value.shape))
            for value in got
        }
        if expected != found:
            raise BundleError(f"{model}: expected {kind} {expected}, got {found}")
