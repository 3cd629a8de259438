"""Keys of hosts, in ZeroMQ's own certificate format, and where none is needed.

Knows files and addresses; no socket.

A directory holds this host's own secret (`NAME.key_secret`, for its owner alone) and one `NAME.key`
for every host that it trusts, itself included. The directory is the allow-list: who has a `.key` in
it may come in, and whoever connects somewhere expects the key of the one it names. So it is this
user's or root's, and nobody else may write there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from trimvla.runtime.bus.run_dir import check_run_dir, read_own
from trimvla.runtime.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PUBLIC = ".key"
SECRET = ".key_secret"
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
KEY_BYTES = 40  # of a Z85 text
MAX_BYTES = 64 * 1024  # of a file of keys
ENTRY = re.compile(rb"""^[ \t]*(public|secret)-key[ \t]*=[ \t]*["']?([^"'\s]*)""", re.MULTILINE)


@dataclass(frozen=True)
class Keys:
    """One host's own pair, as Z85 text, and the directory of those that it trusts."""

    directory: Path
    name: str
    public: bytes
    secret: bytes

    @classmethod
    def load(cls, directory: Path) -> Keys:
        """The one secret in a directory.

        Raises ConfigError where there is none, or others could read it.
        """
        check_run_dir(directory, "directory of keys")
        found = sorted(directory.glob(f"*{SECRET}"))
        if len(found) != 1:
            names = [path.name for path in found] or "none"
            raise ConfigError(
                f"expected one file *{SECRET} in {directory} (`trimvla keys new`), got {names}"
            )
        public, secret = _read(found[0], alone=True)
        if secret is None:
            raise ConfigError(f"{found[0]}: expected a secret key, got a public one")
        return cls(directory, found[0].name.removesuffix(SECRET), public, secret)

    def of(self, name: str) -> bytes:
        """The public key of a host that we trust. Raises ConfigError where we have none."""
        return public_key(self.directory, name)

    def allowed(self) -> dict[bytes, str]:
        """Public key -> name of everyone who may come in, as the directory is now."""
        return {
            _read(path)[0]: path.name.removesuffix(PUBLIC)
            for path in sorted(self.directory.glob(f"*{PUBLIC}"))
        }


def public_key(directory: Path, name: str) -> bytes:
    """The public key called `name` in a directory. Raises ConfigError where there is none."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"expected letters, digits, '_', '.' or '-' in a key's name, got {name!r}"
        )
    return _read(directory / f"{name}{PUBLIC}")[0]


def create(directory: Path, name: str) -> tuple[Path, Path]:
    """A new pair for `name`: its public and its secret file.

    Raises ConfigError rather than replace one.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"expected letters, digits, '_', '.' or '-', got {name!r} for the key's name"
        )
    public, secret = zmq.curve_keypair()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_run_dir(directory, "directory of keys")
        hidden = _write(directory / f"{name}{SECRET}", SECRET_MODE, public, secret)
        return _write(directory / f"{name}{PUBLIC}", PUBLIC_MODE, public), hidden
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename}: expected no such file, got one; keys are never replaced"
        ) from None
    except OSError as error:
        raise ConfigError(f"{directory}: cannot write keys: {error.strerror}") from None


def check_plain(endpoint: str, allowed: bool) -> None:
    """Raise ConfigError for TCP without keys that leaves this host, unless that is `allowed`."""
    if allowed or is_local(endpoint):
        return
    way = "keys (`trimvla keys new`), a loopback address, or --insecure (`allow_plain = true`)"
    raise ConfigError(
        f"expected {way} for '{endpoint}': plain TCP is open to everyone who can reach it"
    )


def is_local(endpoint: str) -> bool:
    """Whether only this host can reach `tcp://host:port`, or `ipc://path`.

    Raises ConfigError for what is neither.
    """
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc":
        return True
    if parts.scheme != "tcp" or not parts.hostname:
        raise ConfigError(f"expected tcp://host:port, got {endpoint!r}")
    return is_loopback(parts.hostname)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this host's own and no other's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _write(path: Path, mode: int, public: bytes, secret: bytes | None = None) -> Path:
    """With its mode from the first byte on: nobody can look in between."""
    kind = "Secret" if secret else "Public"
    lines = [
        f"# ZeroMQ CURVE {kind} Certificate",
        "metadata",
        "curve",
        f'    public-key = "{public.decode()}"',
    ]
    lines += [f'    secret-key = "{secret.decode()}"'] if secret else []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as sink:
        os.fchmod(sink.fileno(), mode)  # whatever the umask is
        sink.write("\n".join(lines) + "\n")
    return path


def _read(path: Path, *, alone: bool = False) -> tuple[bytes, bytes | None]:
    """Public and secret key of a certificate; with `alone`, of one that nobody else may read."""
    text = read_own(path, "a ZeroMQ certificate", MAX_BYTES, alone=alone)
    found = dict(ENTRY.findall(text))
    if b"public" not in found:
        raise ConfigError(f"expected a ZeroMQ certificate in {path}, got no public-key")
    for key in found.values():
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{path}: expected keys of {KEY_BYTES} characters, got {len(key)}")
    return found[b"public"], found.get(b"secret")
