"""The TOML file that lists which topics cross hosts -> a run directory's network.

Knows files; opens no socket.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.launch.system.config import decode_file
from trimvla.runtime.bus.network import Network, install
from trimvla.runtime.errors import ConfigError


def use_network(path: Path | None, run_dir: Path) -> None:
    """Make the processes of a run directory use this network, if there is one."""
    if path is not None:
        install(read_network(path), run_dir)


def read_network(path: Path) -> Network:
    """The file; its directory of keys is relative to it. Raises ConfigError with what is wrong."""
    try:
        network = msgspec.convert(decode_file(path), Network)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    keys = str((path.parent / network.keys).absolute()) if network.keys else ""
    return msgspec.structs.replace(network, keys=keys)
