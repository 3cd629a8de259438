"""torch's exporter, set up as every graph here wants it: one operator set, and no notes about
packages.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

OPSET = 20


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide the exporter's notes about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
