"""Statistics that do not fit the actions never scale one: refused at export and when a bundle is
loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_bundle import manifest, write_bundle

from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_statistics import chosen, only
from trimvla.runtime.errors import BundleError
from trimvla.runtime.inference.policy import Policy

ACTION = manifest().action
LOW = [-0.05] * 6 + [0.0]
HIGH = [0.05] * 6 + [1.0]
MASK = [True] * 6 + [False]


def lists(**changed: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in {"q01": LOW, "q99": HIGH, "mask": MASK, **changed}.items()
        if value != "gone"
    }


WRONG = [
    (
        lists(q01=[-1.0] * 14, q99=[1.0] * 14, mask=[True] * 14),
        r"expected 7 numbers.*'tiny\.action\.q01', got 14",
    ),
    (lists(q01=[0.0], q99=[1.0], mask=[False]), r"expected 7 numbers.*q01', got 1"),
    (lists(q01=0.0), r"expected 7 numbers.*q01', got 0\.0"),
    (lists(q99="gone"), r"expected 'tiny\.action\.q99', got \['mask', 'q01'\]"),
    (lists(q01=[float("nan"), *LOW[1:]]), r"finite number.*'tiny\.action\.q01\[0\]', got nan"),
    (lists(q99=[float("inf"), *HIGH[1:]]), r"finite number.*q99\[0\]', got inf"),
    (lists(q99=[10**400, *HIGH[1:]]), r"finite number.*q99\[0\]'"),
    (lists(q99=["1", *HIGH[1:]]), r"expected a number for 'tiny\.action\.q99\[0\]', got '1'"),
    (lists(q99=[True, *HIGH[1:]]), r"expected a number for 'tiny\.action\.q99\[0\]', got True"),
    (lists(q01=HIGH, q99=LOW), r"expected q01 < q99 .* dimension 0, got 0\.05 and -0\.05"),
    (
        lists(q01=[0.05, *LOW[1:]]),
        r"expected q01 < q99, or both 0,.* dimension 0: a delta without spread",
    ),
    (lists(q01=[0.05 - 1e-12, *LOW[1:]]), r"expected q01 < q99 .* dimension 0"),
    (
        lists(mask=[True] * 7),
        r"expected false for 'tiny\.action\.mask\[6\]': a gripper .* got true",
    ),
    (lists(mask="gone"), r"expected false for 'tiny\.action\.mask\[6\]': a gripper .* got no mask"),
    (lists(mask=[False]), r"expected 7 times true or false for 'tiny\.action\.mask', got 1"),
    (lists(mask=[1] * 6 + [0]), r"expected true or false for 'tiny\.action\.mask\[0\]', got 1"),
    (lists(std=[0.0] * 7), r"expected a number above 0 for 'tiny\.action\.std\[0\]', got 0\.0"),
    (lists(mean=[0.0] * 14), r"expected 7 numbers.*'tiny\.action\.mean', got 14"),
    ([], r"expected lists q01, q99 and mask under 'tiny\.action'"),
]


@pytest.mark.parametrize(("action", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_statistics_that_do_not_fit_the_actions(
    action: object, message: str, tmp_path: Path
) -> None:
    """At the door of the runtime: the bundle's hashes are right, its statistics are not."""
    bundle = write_bundle(tmp_path / "tiny")
    (bundle / bundles.STATISTICS).write_text(json.dumps({"tiny": {"action": action}}))
    bundles.write(bundle, manifest())
    with pytest.raises(BundleError, match=message) as refused:
        Policy.load(bundle)
    assert bundles.STATISTICS in str(refused.value)


def test_a_broken_neighbour_blocks_nobody() -> None:
    table = {"tiny": {"action": lists()}, "other": {"action": {"mean": [float("nan")]}}, "third": 7}
    assert chosen(table, "tiny", ACTION).high == tuple(HIGH)
    assert only(table, "tiny") == {"tiny": {"action": lists()}}


def test_a_dimension_that_does_not_move_is_fine_at_0() -> None:
    still = lists(q01=[0.0, *LOW[1:]], q99=[0.0, *HIGH[1:]])
    assert chosen({"tiny": {"action": still}}, "tiny", ACTION).low[0] == 0.0


def test_an_absolute_dimension_may_stand_anywhere() -> None:
    absolute = msgspec.structs.replace(ACTION, kinds=("absolute",) * 6 + ("gripper",))
    still = lists(q01=[0.05, *LOW[1:]])
    assert chosen({"tiny": {"action": still}}, "tiny", absolute).high[0] == 0.05


def test_the_shipped_statistics_fit() -> None:
    for name in bundles.shipped():
        directory = bundles.resolve(name)
        made = bundles.load(directory)
        table = json.loads((directory / bundles.STATISTICS).read_text())
        chosen(table, made.action.statistics_key, made.action)
