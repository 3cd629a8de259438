"""Places in an image's raster: grids, what is nearest to them, and the patches that a plan lets
through.

Indices alone; knows no tensors and needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from trimvla.runtime.bundle.plan import Plan


def seen_places(plan: Plan, count: int) -> tuple[int, ...]:
    """Raster indices, ascending, of the visual tokens of one image that the encoders give.

    `count` is how many there are before any is dropped.
    """
    patches = None if plan.vision is None else plan.vision.patches
    if patches is None or patches.keep == count:
        return tuple(range(count))
    if patches.selector == "random":
        return tuple(sorted(Random(patches.seed).sample(range(count), patches.keep)))
    return tuple(grid(count, patches.keep))


def grid(patches: int, keep: int) -> list[int]:
    """`keep` raster indices spread evenly over a square of `patches`: near-equal rows of evenly
    spaced columns.
    """
    side = math.isqrt(patches)
    rows = max(1, round(math.sqrt(keep)))
    indices: list[int] = []
    for r in range(rows):
        columns = (r + 1) * keep // rows - r * keep // rows
        row = int((r + 0.5) * side / rows)
        indices += [row * side + int((c + 0.5) * side / columns) for c in range(columns)]
    return indices


def nearest(wanted: Sequence[int], places: Sequence[int], patches: int) -> list[int]:
    """For each wanted raster index of a square of `patches` the nearest place that is still free.

    Ascending indices into `places`; as many as are wanted.
    """
    side = math.isqrt(patches)
    free = dict(enumerate(places))
    for index in wanted:
        row, column = divmod(index, side)

        def distance(one: int, row: int = row, column: int = column) -> int:
            return (free[one] // side - row) ** 2 + (free[one] % side - column) ** 2

        del free[min(free, key=distance)]
    return [index for index in range(len(places)) if index not in free]
