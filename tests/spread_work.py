"""Work that is spread over processes or machines, which import it by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from trimvla.runtime.errors import BundleError


def squares(items: Sequence[int]) -> Iterator[tuple[int, int]]:
    for item in items:
        yield item * item, os.getpid()


def refuse(items: Sequence[int]) -> Iterator[int]:
    yield items[0]
    raise BundleError("manifest.json: not found")


def divide(items: Sequence[int]) -> Iterator[float]:
    for item in items:
        yield 1 / item
