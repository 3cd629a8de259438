"""A backend of the user's own: `module:attribute`, a function that makes a runner for one stage.

What it gives is held to the contract of `runner.py` at every call: inputs and outputs are those of
the stage's spec, outputs are the caller's own, and a failure is one of our errors. Knows no
library; docs/guides/own-backend.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.backends.failures import call_failure
from trimvla.runtime.backends.runner import Runner, check_inputs
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.errors import BackendError, SpecError, TrimvlaError
from trimvla.runtime.own_objects import blame, load_function

TAKES = ("model", "spec", "*provider", "*threads")
CONTRACT = ("run", "describe", "close")


class OwnBackend:
    """In a backend module's place: `create` makes a checked runner."""

    def __init__(self, name: str) -> None:
        """Import it. Raises BackendError for what is no such function."""
        self._name = name
        self._create: Callable[..., Any] = load_function(name, "'backend'", TAKES, BackendError)

    def create(
        self, model: Path, spec: StageSpec, *, provider: str | None = None, threads: int = 0
    ) -> OwnRunner:
        """See `runner.create`."""
        try:
            made = self._create(model, spec, provider=provider, threads=threads)
        except TrimvlaError:
            raise
        except Exception as error:
            raise BackendError(f"{self._name}: {model.name}: {blame(error)}") from error
        lacking = [each for each in CONTRACT if not callable(getattr(made, each, None))]
        if lacking:
            got = f"{type(made).__name__} without {', '.join(lacking)}"
            raise BackendError(f"{self._name}: expected a runner of {model.name!r}, got {got}")
        return OwnRunner(self._name, made, spec)


class OwnRunner:
    """One stage, executed by somebody else's runner."""

    def __init__(self, name: str, runner: Runner, spec: StageSpec) -> None:
        self.spec = spec
        self._name = name
        self._runner = runner

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `runner.Runner`."""
        check_inputs(self.spec, inputs)
        try:
            outputs = self._runner.run(inputs)
        except TrimvlaError:
            raise
        except Exception as error:
            raise call_failure(self._name, error) from error
        return self._checked(outputs)

    def _checked(self, outputs: object) -> dict[str, np.ndarray]:
        """Copies of the outputs: a runner may use its buffers again."""
        names = [tensor.name for tensor in self.spec.outputs]
        got = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        if not isinstance(outputs, Mapping) or set(outputs) != set(names):
            raise BackendError(f"{self._name}: expected outputs {names}, got {got}")
        try:
            return {
                tensor.name: np.array(tensor.array.validate(outputs[tensor.name]))
                for tensor in self.spec.outputs
            }
        except SpecError as error:
            raise BackendError(f"{self._name}: {error}") from None

    def describe(self) -> dict[str, str]:
        """See `runner.Runner`; fields that the runner does not give are unknown."""
        unknown = {"version": "unknown", "provider": "unknown"}
        return {"backend": self._name, **unknown, **self._runner.describe()}

    def close(self) -> None:
        """See `runner.Runner`."""
        self._runner.close()
