"""`trimvla keys`: keys for hosts that talk to each other over TCP."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.result import VerbResult
from trimvla.runtime.bus import curve
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Args(Options):
    """Make a host's pair of keys, or list who is trusted here.

    Copy the public NAME.key, and never the secret, into the directory of every host that should
    trust this one; remove it there, and this host is refused.
    """

    action: Positional[Literal["new", "list"]]
    """`new` makes a pair, `list` shows whose keys are here."""

    name: Positional[str] = field(default_factory=lambda: platform.node().split(".")[0] or "host")
    """Of the host; its own name by default."""

    dir: Path = Path("keys")
    """Where the keys are."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--dir", self.dir, folder=True),) if self.action == "new" else ()


class NewKeysResult(VerbResult, frozen=True, kw_only=True):
    """`new`: the pair that was made."""

    name: str
    """The host's name."""
    public: Path
    """File to copy to every host that should trust this one."""
    secret: Path
    """File that stays here."""
    key: str
    """The public key itself, in Z85."""


class ListedKeysResult(VerbResult, frozen=True, kw_only=True):
    """`list`: whose keys are here."""

    host: str
    """This host's own name."""
    allowed: dict[str, str]
    """Host -> its public key, in Z85."""


def run(args: Args) -> NewKeysResult | ListedKeysResult:
    """Make, or list."""
    return new(args) if args.action == "new" else listed(args)


def new(args: Args) -> NewKeysResult:
    """A new pair."""
    public, secret = curve.create(args.dir, args.name)
    key = curve.public_key(args.dir, args.name)
    console = args.console()
    console.print(f"{secret}: stays here", soft_wrap=True)
    console.print(f"{public}: copy it to every host that should trust this one", soft_wrap=True)
    return NewKeysResult(ok=True, name=args.name, public=public, secret=secret, key=key.decode())


def listed(args: Args) -> ListedKeysResult:
    """Everyone who may come in, and who we are."""
    if not args.dir.is_dir():
        raise ConfigError(
            f"expected a directory of keys, got {args.dir}; `trimvla keys new` makes one"
        )
    keys = curve.Keys.load(args.dir)
    allowed = {name: key.decode() for key, name in keys.allowed().items()}
    for name, key in sorted(allowed.items()):
        own = "  (this host)" if name == keys.name else ""
        args.console().print(f"{key}  {name}{own}", soft_wrap=True)
    return ListedKeysResult(ok=True, host=keys.name, allowed=allowed)
