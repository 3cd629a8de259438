"""The robot's state -> what a policy reads of it: a normalised tensor, or the text of its bins.

Knows the spec and one observation; not where a state comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.bundle.scale import Scale, normalise_input
from trimvla.runtime.errors import ObservationError
from trimvla.runtime.specs import describe


def check_state(state: object, spec: StateSpec | None) -> NDArray[np.float32] | None:
    """The state as float32[dim], or None for a policy that reads none, whatever the robot sends.

    Raises:
        ObservationError: it is missing, of another length, or not finite.
    """
    if spec is None:
        return None
    if state is None:
        raise ObservationError(f"expected the robot's state, {_expected(spec)}, got none")
    numbers = _numbers(state)
    if numbers is None:
        raise ObservationError(f"expected {_expected(spec)} for 'state', got {_what(state)}")
    if numbers.shape != (spec.dim,):
        raise ObservationError(
            f"expected {_expected(spec)} for 'state', got shape {list(numbers.shape)}"
        )
    if not np.isfinite(numbers).all():
        raise ObservationError(f"expected finite numbers for 'state', got {numbers.tolist()}")
    return numbers


def check_state_names(names: Sequence[str], spec: StateSpec | None) -> None:
    """ObservationError where a robot that names its state's numbers has others than the policy, or
    another order.
    """
    if spec is None or not len(names):
        return
    if isinstance(names, str) or (not spec.names and len(names) != spec.dim):
        raise ObservationError(f"expected {spec.dim} names for 'state_names', got {names!r}")
    if spec.names and tuple(names) != spec.names:
        raise ObservationError(
            f"expected a state of {list(spec.names)}, in this order, got {list(names)}"
        )


def state_vector(state: NDArray[np.float32], spec: StateSpec, scale: Scale) -> NDArray[np.float32]:
    """float32[dim] in the robot's units -> float32[padded], normalised, with zeros behind it."""
    padded = np.zeros(spec.padded, np.float32)
    padded[: spec.dim] = normalise_input(state, scale)
    return padded


def state_text(vector: NDArray[np.float32], bins: int) -> str:
    """A normalised state as its bins' numbers, with spaces between: -1 below the first, `bins` - 1
    in the last.
    """
    edges = np.linspace(-1.0, 1.0, bins + 1)[:-1]
    return " ".join(str(number) for number in np.digitize(vector, edges) - 1)


def _numbers(state: object) -> NDArray[np.float32] | None:
    """None where they are no real numbers: numpy would read texts, and drop imaginary parts."""
    try:
        values = np.asarray(state)
    except (TypeError, ValueError, RuntimeError):
        return None
    if values.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore"):  # infinite is refused
        return values.astype(np.float32)


def _what(state: object) -> str:
    if isinstance(state, np.ndarray):
        return describe(state.dtype, state.shape)
    return type(state).__name__


def _expected(spec: StateSpec) -> str:
    names = f" of {list(spec.names)}" if spec.names else ""
    return f"{spec.dim} numbers{names}"
