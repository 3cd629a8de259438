"""What every runner must do, as one reusable test: give it a runner and inputs that fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from trimvla.runtime.errors import SpecError
from trimvla.runtime.runner import Runner


def check_runner(runner: Runner, inputs: Mapping[str, np.ndarray]) -> None:
    """Outputs fit the spec, repeat bit for bit, are the caller's own; wrong inputs are refused; it says what it is."""
    first = runner.run(inputs)
    assert first.keys() == {tensor.name for tensor in runner.spec.outputs}
    for tensor in runner.spec.outputs:
        tensor.array.validate(first[tensor.name])
    _check_outputs_are_fresh(runner, inputs, first)
    _check_refusals(runner, inputs)
    assert {"backend", "provider", "version"} <= runner.describe().keys()


def _check_outputs_are_fresh(runner: Runner, inputs: Mapping[str, np.ndarray], first: dict[str, np.ndarray]) -> None:
    kept = {name: value.copy() for name, value in first.items()}
    second = runner.run(inputs)
    for name, value in kept.items():
        np.testing.assert_array_equal(second[name], value)
        assert not np.shares_memory(second[name], first[name])
        second[name] += 1  # a caller may write into its result
        np.testing.assert_array_equal(first[name], value)


def _check_refusals(runner: Runner, inputs: Mapping[str, np.ndarray]) -> None:
    name = next(iter(inputs))
    value = inputs[name]
    wrong = (
        {key: array for key, array in inputs.items() if key != name},
        {**inputs, "surplus": value},
        {**inputs, name: value.astype(np.float64)},
        {**inputs, name: value[None]},
    )
    for case in wrong:
        with pytest.raises(SpecError, match=f"{name}|surplus"):
            runner.run(case)
