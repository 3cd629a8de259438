"""Which seeds belong to whom: evaluation stays below `FIRST_SEED`, demonstrations begin there.

Imports nothing.
"""

from __future__ import annotations

FIRST_SEED = 1_000_000
"""The first seed of demonstrations."""
