"""A data set's action statistics: read, and checked against the actions that they scale, number by
number.

The official layout is `{key: {"action": {"q01": [A], "q99": [A], "mask": [A]}}}`, perhaps with
mean, std, min and max. Only the chosen key is looked at: what is wrong with a neighbour is no
reason to refuse it. Knows no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trimvla.runtime.bundle.manifest import ActionSpec
from trimvla.runtime.errors import BundleError, TrimvlaError
from trimvla.runtime.text_files import read_json

WHAT = "action statistics"
MAX_STATISTICS_BYTES = 16 << 20  # of all data sets that one policy was trained on
LIMITS = ("q01", "q99")
# further lists of the official layout; nothing is scaled by them
DESCRIBED = ("mean", "std", "min", "max")
MOVING = ("delta", "velocity")  # kinds of which a constant other than 0 is a motion that never ends
MIN_SPREAD = 1e-8  # between the quantiles of a dimension; below, it does not move
LARGEST = 1e6  # of any unit of any robot

Error = type[TrimvlaError]


class ActionStatistics(msgspec.Struct, frozen=True):
    """One data set's quantiles per action dimension; where `mask` is false the number is left as it
    is.
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.q01), len(self.q99), len(self.q01 if self.mask is None else self.mask)}
        if len(lengths) != 1:
            raise ValueError(f"expected equal lengths for q01, q99 and mask, got {sorted(lengths)}")


def load_statistics(
    path: Path, key: str, action: ActionSpec | None = None, *, error: Error = BundleError
) -> ActionStatistics:
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
) -> ActionStatistics:
    """One data set's statistics, checked.

    Args:
        table: data sets by name.
        key: the one that is wanted.
        action: what is un-normalised with them: the dimension and what each number is. Checked only
            in themselves when left out.
        where: the file, for the error's words.
        error: raised where the key is missing, a list has another length than `action`, a number is
            not finite, a lower quantile is above the upper one, a dimension moves by a constant, or
            a gripper is scaled: its sample is 0 or 1 already.
    """
    if key not in table:
        raise error(f"{where}: expected the key '{key}', got {sorted(table)}")
    entry = table[key]
    lists = entry.get("action") if isinstance(entry, dict) else None
    if not isinstance(lists, dict):
        raise error(
            f"{where}: expected lists q01, q99 and mask under '{key}.action', got {_shown(lists)}"
        )
    for problem in _problems(lists, f"{key}.action", action):
        raise error(f"{where}: {problem}")
    low, high = (tuple(float(number) for number in lists[name]) for name in LIMITS)
    mask = lists.get("mask")
    return ActionStatistics(low, high, None if mask is None else tuple(mask))


def only(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a bundle carries of a checked table: the chosen data set's action lists."""
    lists = table[key]["action"]
    names = (*LIMITS, "mask", *DESCRIBED)
    return {key: {"action": {name: lists[name] for name in names if lists.get(name) is not None}}}


def _problems(lists: Mapping[str, Any], key: str, action: ActionSpec | None) -> Iterator[str]:
    """What is wrong, in the order in which one wants to know it; later checks rely on earlier
    ones.
    """
    missing = [name for name in LIMITS if name not in lists]
    if missing:
        yield f"expected '{key}.{missing[0]}', got {sorted(map(str, lists))}"
    length = None if action is None else action.dim
    for name in (*LIMITS, *DESCRIBED):
        if lists.get(name) is not None:
            yield from _number_problems(lists[name], f"{key}.{name}", length)
            length = len(lists[name]) if length is None else length
    if lists.get("mask") is not None:
        yield from _mask_problems(lists["mask"], f"{key}.mask", length)
    yield from _spread_problems(lists, key, action)


def _number_problems(values: object, key: str, length: int | None) -> Iterator[str]:
    if (
        not isinstance(values, list | tuple)
        or (length is not None and len(values) != length)
        or not values
    ):
        entries = (
            "entries" if length is None else f"{length} numbers, one for each action dimension,"
        )
        got = f"{len(values)}" if isinstance(values, list | tuple) else _shown(values)
        yield f"expected {entries} for '{key}', got {got}"
        return
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"expected a number for '{key}[{index}]', got {_shown(value)}"
        elif not abs(value) <= LARGEST:  # NaN is not either
            yield (
                f"expected a finite number of at most {LARGEST:g} for '{key}[{index}]', got"
                f" {_shown(value)}"
            )


def _mask_problems(values: object, key: str, length: int | None) -> Iterator[str]:
    if not isinstance(values, list | tuple) or len(values) != length:
        got = f"{len(values)}" if isinstance(values, list | tuple) else _shown(values)
        yield f"expected {length} times true or false for '{key}', got {got}"
        return
    for index, value in enumerate(values):
        if not isinstance(value, bool):
            yield f"expected true or false for '{key}[{index}]', got {_shown(value)}"


def _spread_problems(
    lists: Mapping[str, Any], key: str, action: ActionSpec | None
) -> Iterator[str]:
    mask = lists.get("mask")
    std = lists.get("std")
    for index, (low, high) in enumerate(zip(lists["q01"], lists["q99"], strict=True)):
        kind = action.kinds[index] if action is not None and index < len(action.kinds) else None
        scaled = mask is None or mask[index]
        if kind == "gripper" and scaled:
            got = "no mask" if mask is None else "true"
            yield (
                f"expected false for '{key}.mask[{index}]': a gripper is 0 or 1 and is not scaled,"
                f" got {got}"
            )
        if not scaled:
            continue
        if low > high or 0 < high - low < MIN_SPREAD:
            yield f"expected q01 < q99 in '{key}' for dimension {index}, got {low!r} and {high!r}"
        if low == high != 0 and kind in MOVING:
            words = f"a {kind} without spread would move by it for ever"
            yield (
                f"expected q01 < q99, or both 0, in '{key}' for dimension {index}: {words}, got"
                f" {low!r}"
            )
        if std is not None and (std[index] < 0 or (std[index] == 0 and low < high)):
            yield f"expected a number above 0 for '{key}.std[{index}]', got {std[index]!r}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
