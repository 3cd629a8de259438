"""Words that clients show to be let in: read from files that are their owner's alone, compared in constant time."""

from __future__ import annotations

import hmac


def is_same(shown: str, expected: str) -> bool:
    """Whether a shown token is the expected one; how long this takes tells nothing of where they differ."""
    return hmac.compare_digest(shown.encode(errors="replace"), expected.encode(errors="replace"))
