"""How many objects a msgpack message holds, counted before any of them is made.

Knows the format's headers alone.
"""

from __future__ import annotations

from trimvla.runtime.errors import WireError

MAX_OBJECTS = 20_000

# Widths are in bytes.
# of a length
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
# width of a count, objects for each
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}


def count_objects(raw: bytes, limit: int = MAX_OBJECTS) -> int:
    """How many objects msgpack holds.

    Raises WireError beyond the limit: a small message may unfold into gigabytes.
    """
    place = 0
    waiting = 1
    seen = 0
    while waiting:
        if seen + waiting > limit:
            raise WireError(f"expected at most {limit} objects in a message")
        if place >= len(raw):
            raise WireError("no msgpack: it is cut off")
        size, inside = _extent(raw, place)
        place += size
        waiting += inside - 1
        seen += 1
    return seen


def is_map(byte: int) -> bool:
    """Whether a map begins with this byte."""
    return 0x80 <= byte <= 0x8F or byte in (0xDE, 0xDF)


def is_list(byte: int) -> bool:
    """Whether a list begins with this byte."""
    return 0x90 <= byte <= 0x9F or byte in (0xDC, 0xDD)


def _extent(raw: bytes, place: int) -> tuple[int, int]:
    """Of the object that begins here: its bytes without its parts, and how many parts follow."""
    byte = raw[place]
    if byte in _WIDTHS:
        width = _WIDTHS[byte]
        kind = 1 if 0xC7 <= byte <= 0xC9 else 0  # an extension's type
        return 1 + width + kind + int.from_bytes(raw[place + 1 : place + 1 + width], "big"), 0
    if byte in _COUNTS:
        width, each = _COUNTS[byte]
        return 1 + width, each * int.from_bytes(raw[place + 1 : place + 1 + width], "big")
    if 0x80 <= byte <= 0x9F:
        return 1, (byte & 15) * (2 if byte < 0x90 else 1)
    if 0xA0 <= byte <= 0xBF:
        return 1 + (byte & 31), 0
    return 1 + _FIXED.get(byte, 0), 0
