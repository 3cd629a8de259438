"""What every runner must do, as one reusable test: give it a runner and inputs that fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from trimvla.runtime.backends.chain import Chain, chain_io
from trimvla.runtime.backends.runner import Runner
from trimvla.runtime.errors import SpecError


def check_runner(runner: Runner, inputs: Mapping[str, np.ndarray]) -> None:
    """Outputs fit the spec, repeat bit for bit, are the caller's own; wrong inputs are refused; it
    says what it is.
    """
    first = runner.run(inputs)
    assert first.keys() == {tensor.name for tensor in runner.spec.outputs}
    for tensor in runner.spec.outputs:
        tensor.array.validate(first[tensor.name])
    _check_outputs_are_fresh(runner, inputs, first)
    _check_refusals(runner, inputs)
    assert {"backend", "provider", "version"} <= runner.describe().keys()


def _check_outputs_are_fresh(
    runner: Runner, inputs: Mapping[str, np.ndarray], first: dict[str, np.ndarray]
) -> None:
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


def check_chain(
    chain: Chain, host: Chain, inputs: Mapping[str, np.ndarray], tolerance: float = 0.0
) -> None:
    """A chain gives what its stages give one after the other on the host, again and again, and
    times each of them.

    `inputs` may hold more than the chain takes; `host` is the same bundle in ONNX Runtime.
    """
    wanted, made = chain_io(chain.runners)
    given = {name: inputs[name] for name in wanted}
    expected, _ = host.run(given)
    first, took = chain.run(given)
    second, _ = chain.run(given)
    assert set(made) <= first.keys()
    assert list(took) == list(chain.runners)
    for name in made:
        np.testing.assert_allclose(first[name], expected[name], atol=tolerance, rtol=0)
        np.testing.assert_array_equal(second[name], first[name])
        assert not np.shares_memory(second[name], first[name])
    with pytest.raises(SpecError, match=wanted[0]):
        chain.run({**given, wanted[0]: given[wanted[0]].astype(np.float64)})
