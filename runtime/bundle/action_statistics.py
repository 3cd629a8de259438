"""A data set's statistics: read, and checked against the actions and the state that they scale,
number by number.

One layout, `{key: {"action": {"q01": [A], "q99": [A], "mask": [A]}, "state": {"mean": [S], "std":
[S]}}}`: the official one of OpenVLA, with further lists; `policies.statistics` brings other files
into it. Only the chosen key is looked at: what is wrong with a neighbour is no reason to refuse it.
Knows no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimvla.runtime.bundle.inputs_and_output import ActionKind, ActionSpec, StateSpec, Statistics
from trimvla.runtime.bundle.scale import LISTS, MIN_SPREAD, Scale
from trimvla.runtime.errors import BundleError, TrimvlaError
from trimvla.runtime.text_files import read_json

WHAT = "action statistics"
MAX_STATISTICS_BYTES = 16 << 20  # of all data sets that one policy was trained on
ACTION = "action"
STATE = "state"
NUMBERS = (
    "q01",
    "q99",
    "mean",
    "std",
    "min",
    "max",
)  # lists of the layout; a mode reads two of them
MOVING = ("delta", "velocity")  # kinds of which a constant other than 0 is a motion that never ends
LARGEST = 1e6  # of any unit of any robot

Error = type[TrimvlaError]


@dataclass(frozen=True)
class _Wanted:
    """What a feature's lists must fit."""

    feature: str
    mode: Statistics = "quantiles"
    dim: int | None = None
    kinds: Sequence[ActionKind] = ()
    binary_gripper: bool = True
    epsilon: float = 0.0

    @property
    def numbers(self) -> str:
        """For messages."""
        return "action dimension" if self.feature == ACTION else "number of the state"


def load_statistics(
    path: Path, key: str, action: ActionSpec | None = None, *, error: Error = BundleError
) -> Scale:
    """One key of a statistics file; `action` is what they must fit, see `chosen`."""
    return chosen(read_table(path, error=error), key, action, where=str(path), error=error)


def read_table(path: Path, *, error: Error = BundleError) -> dict[str, Any]:
    """A statistics file: data sets by their names, none of them looked at yet."""
    table = read_json(path, WHAT, limit=MAX_STATISTICS_BYTES, error=error)
    if not isinstance(table, dict) or not table:
        raise error(f"{path}: expected {WHAT} by data set, got {_shown(table)}")
    return table


def chosen(
    table: Mapping[str, Any],
    key: str,
    action: ActionSpec | None = None,
    *,
    where: str = "statistics",
    error: Error = BundleError,
) -> Scale:
    """How one data set's actions are scaled, checked.

    Args:
        table: data sets by name.
        key: the one that is wanted.
        action: what is un-normalised: dimension, what each number is, and how. By quantiles, and
            checked only in itself, when left out.
        where: the file, for the error's words.
        error: raised where the key or a list is missing, a list has another length than `action`,
            a number is not finite, a lower limit is above the upper one, a dimension moves by a
            constant, or a binary gripper is scaled: its sample is 0 or 1 already.
    """
    wanted = (
        _Wanted(ACTION)
        if action is None
        else _Wanted(
            ACTION,
            action.normalization,
            action.dim,
            action.kinds,
            action.binary_gripper,
            action.epsilon,
        )
    )
    return _scale(table, key, wanted, where, error)


def chosen_state(
    table: Mapping[str, Any],
    key: str,
    state: StateSpec,
    *,
    where: str = "statistics",
    error: Error = BundleError,
) -> Scale:
    """How one data set's states are scaled, checked as `chosen` does it."""
    wanted = _Wanted(STATE, state.statistics, state.dim, epsilon=state.epsilon)
    return _scale(table, key, wanted, where, error)


def only(table: Mapping[str, Any], key: str, features: Sequence[str] = (ACTION,)) -> dict[str, Any]:
    """What a bundle carries of a checked table: these features' lists of the chosen data set."""
    names = (*NUMBERS, "mask")
    return {
        key: {
            feature: {name: lists[name] for name in names if lists.get(name) is not None}
            for feature, lists in ((feature, table[key].get(feature) or {}) for feature in features)
        }
    }


def _scale(table: Mapping[str, Any], key: str, wanted: _Wanted, where: str, error: Error) -> Scale:
    if key not in table:
        raise error(f"{where}: expected the key '{key}', got {sorted(table)}")
    if wanted.mode == "none":
        dim = wanted.dim or 0
        return Scale((0.0,) * dim, (1.0,) * dim, None, "none")
    low_name, high_name = LISTS[wanted.mode]
    entry = table[key]
    lists = entry.get(wanted.feature) if isinstance(entry, dict) else None
    name = f"{key}.{wanted.feature}"
    if not isinstance(lists, dict):
        got = (
            sorted(map(str, entry)) if lists is None and isinstance(entry, dict) else _shown(lists)
        )
        raise error(
            f"{where}: expected lists {low_name}, {high_name} and mask under '{name}', got {got}"
        )
    for problem in _problems(lists, name, wanted):
        raise error(f"{where}: {problem}")
    low = tuple(float(number) for number in lists[low_name])
    high = tuple(float(number) for number in lists[high_name])
    mask = lists.get("mask")
    return Scale(low, high, None if mask is None else tuple(mask), wanted.mode, wanted.epsilon)


def _problems(lists: Mapping[str, Any], key: str, wanted: _Wanted) -> Iterator[str]:
    """What is wrong, in the order in which one wants to know it; later checks rely on earlier
    ones.
    """
    missing = [name for name in LISTS[wanted.mode] if name not in lists]
    if missing:
        yield f"expected '{key}.{missing[0]}', got {sorted(map(str, lists))}"
    length = wanted.dim
    for name in sorted(NUMBERS, key=lambda name: name not in LISTS[wanted.mode]):
        if lists.get(name) is not None:
            yield from _number_problems(lists[name], f"{key}.{name}", length, wanted.numbers)
            length = len(lists[name]) if length is None else length
    if lists.get("mask") is not None:
        yield from _mask_problems(lists["mask"], f"{key}.mask", length)
    yield from _spread_problems(lists, key, wanted)


def _number_problems(values: object, key: str, length: int | None, each: str) -> Iterator[str]:
    if (
        not isinstance(values, list | tuple)
        or (length is not None and len(values) != length)
        or not values
    ):
        entries = "entries" if length is None else f"{length} numbers, one for each {each},"
        got = f"{len(values)}" if isinstance(values, list | tuple) else _shown(values)
        yield f"expected {entries} for '{key}', got {got}"
        return
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"expected a number for '{key}[{index}]', got {_shown(value)}"
        elif not abs(value) <= LARGEST:  # NaN is not either
            most = f"a finite number of at most {LARGEST:g}"
            yield f"expected {most} for '{key}[{index}]', got {_shown(value)}"


def _mask_problems(values: object, key: str, length: int | None) -> Iterator[str]:
    if not isinstance(values, list | tuple) or len(values) != length:
        got = f"{len(values)}" if isinstance(values, list | tuple) else _shown(values)
        yield f"expected {length} times true or false for '{key}', got {got}"
        return
    for index, value in enumerate(values):
        if not isinstance(value, bool):
            yield f"expected true or false for '{key}[{index}]', got {_shown(value)}"


def _spread_problems(lists: Mapping[str, Any], key: str, wanted: _Wanted) -> Iterator[str]:
    mask = lists.get("mask")
    std = lists.get("std")
    low_name, high_name = LISTS[wanted.mode]
    is_std = wanted.mode == "mean_std"
    for index, (low, high) in enumerate(zip(lists[low_name], lists[high_name], strict=True)):
        kind = wanted.kinds[index] if index < len(wanted.kinds) else None
        scaled = mask is None or mask[index]
        if kind == "gripper" and scaled and wanted.binary_gripper:
            got = "no mask" if mask is None else "true"
            words = "a gripper is 0 or 1 and is not scaled"
            yield f"expected false for '{key}.mask[{index}]': {words}, got {got}"
        if not scaled:
            continue
        spread = high if is_std else high - low
        order = f"expected {low_name} < {high_name} in '{key}' for dimension {index}"
        if not is_std and (spread < 0 or 0 < spread < MIN_SPREAD):
            yield f"{order}, got {low!r} and {high!r}"
        if spread == 0 and low != 0 and kind in MOVING:
            words = f"a {kind} without spread would move by it for ever"
            yield f"{order.replace(' in ', ', or both 0, in ')}: {words}, got {low!r}"
        if std is not None and (std[index] < 0 or (not is_std and std[index] == 0 and low < high)):
            yield f"expected a number above 0 for '{key}.std[{index}]', got {std[index]!r}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
