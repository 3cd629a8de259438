"""torch's exporter, set up as every graph here wants it: one operator set, no notes about packages,
and its table of operators built once.

torch builds that table, of all operators that it can convert, anew for every graph: about a second
of processor each, most of what a small graph takes. The table is private to torch; where another
version of torch has none by this name, every graph builds its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OPSET = 20

_TABLES: dict[str, object] = {}  # by what torch asks for; nobody changes one once it is built


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the exporter's notes about packages that are not needed; build its table once."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _kept_table():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _kept_table() -> Iterator[None]:
    """Let torch find the table that an earlier graph built."""
    owner: Any = _table_class()
    if owner is None:
        yield
        return
    build = owner.from_torchlib
    built_by = vars(owner)["from_torchlib"]

    def kept(*args: object, **options: object) -> object:
        asked = repr((args, options))
        if asked not in _TABLES:
            _TABLES[asked] = build(*args, **options)
        return _TABLES[asked]

    owner.from_torchlib = staticmethod(kept)
    try:
        yield
    finally:
        owner.from_torchlib = built_by


def _table_class() -> type | None:
    """torch's class of the table; None where this version has none by this name."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry if "from_torchlib" in vars(ONNXRegistry) else None
