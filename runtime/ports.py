"""Ports of TCP: checked as numbers, because libraries take 70000 for 4464 and -1 for 65535 without
a word.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from trimvla.runtime.errors import ConfigError

LAST = 65535


def check_port(port: int, field: str, *, first: int = 0) -> None:
    """Raise ConfigError unless it is from `first` to 65535; 0 is any free one, for who listens."""
    if not first <= port <= LAST:
        raise ConfigError(f"expected a port from {first} to {LAST} for {field}, got {port}")


def check_endpoint(endpoint: str, field: str, *, any_free: bool = False) -> None:
    """Raise ConfigError for a `tcp://host:port` without a port in range; other transports are not
    looked at.

    With `any_free` the port may be 0 or `*`, for a server that reports its port afterwards.
    """
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp":
        return
    _, _, written = parts.netloc.rpartition(":")
    if any_free and written == "*":
        return
    if not (written.isascii() and written.isdigit()):
        raise ConfigError(f"expected tcp://host:port for {field}, got {endpoint!r}")
    check_port(int(written), f"{field} ({endpoint})", first=0 if any_free else 1)
