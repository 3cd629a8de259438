"""Topics that cross hosts: where they are, whose key is expected there, and their times put on this
host's clock.

The run directory's `network.json` lists them; every other topic is a socket in the run directory.
Monotonic clocks of two hosts have nothing in common, so what comes from another host carries its
sender's wall clock beside its monotonic one, and is moved by the difference as it arrives. A frame
carries its capture on both: the wall-clock one is derived from the other (`bus.Publisher`), so that
an image that was old when it was sent is as old here. The hosts' wall clocks must agree (chrony,
PTP): by as much as they differ, images look older or younger than they are, and one that claims
the future or is too old is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from trimvla.runtime.bus.curve import Keys, check_plain
from trimvla.runtime.bus.messages import Frame, Message
from trimvla.runtime.bus.run_dir import check_run_dir, read_file, write_file
from trimvla.runtime.bus.topics import Topic, topic
from trimvla.runtime.bus.wire import Int64, decode, encode, shift_header
from trimvla.runtime.clock import instant, wall_offset_ns
from trimvla.runtime.errors import ConfigError, WireError
from trimvla.runtime.ports import check_endpoint

NETWORK_FILE = "network.json"
MAX_NS = 2**63 - 1


class RemoteTopic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One topic that crosses hosts."""

    endpoint: str
    """`tcp://address:port`: its publisher binds it, everyone else connects to it."""
    publisher: str = ""
    """Whose key its publisher must show; needed where there are keys."""


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same on every host of a system."""

    topics: dict[str, RemoteTopic] = {}
    keys: str = ""
    """A directory of keys (`curve.Keys`); none for plain TCP."""
    allow_plain: bool = False
    """Plain TCP may leave this host."""

    def check(self) -> None:
        """Raise ConfigError for an unknown topic, a key that is not there, or plain TCP that leaves
        the host.
        """
        for name, place in self.topics.items():
            topic(name)
            check_endpoint(place.endpoint, f"topics.{name}.endpoint")
            RemoteEndpoint(name, place, self.load_keys(), self.allow_plain).check()

    def load_keys(self) -> Keys | None:
        """This host's keys."""
        return Keys.load(Path(self.keys)) if self.keys else None


@dataclass(frozen=True)
class RemoteEndpoint:
    """One remote topic, ready to bind or connect to."""

    name: str
    place: RemoteTopic
    keys: Keys | None
    allow_plain: bool

    def check(self) -> None:
        """See `Network.check`."""
        if self.keys is None:
            check_plain(self.place.endpoint, self.allow_plain)
        else:
            self.keys.of(self.place.publisher)

    def connect(self, socket: zmq.Socket[bytes]) -> None:
        """Prepare a socket that will connect: our key, and the one that we expect.

        Raises ConfigError.
        """
        self.check()
        if self.keys is not None:
            socket.curve_publickey = self.keys.public
            socket.curve_secretkey = self.keys.secret
            socket.curve_serverkey = self.keys.of(self.place.publisher)


def install(network: Network, run_dir: Path) -> None:
    """Make a run directory's processes use this network. Raises ConfigError if it is wrong."""
    network.check()
    check_run_dir(run_dir)
    # several processes may do so at once
    write_file(run_dir / NETWORK_FILE, msgspec.json.encode(network))


def used(run_dir: Path) -> Network:
    """The network of a run directory; an empty one where everything is on this host."""
    try:
        return msgspec.json.decode(read_file(run_dir / NETWORK_FILE), type=Network)
    except FileNotFoundError:
        return Network()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{run_dir / NETWORK_FILE}: {error}") from None


def remote_endpoint(run_dir: Path, name: str) -> RemoteEndpoint | None:
    """Where a topic is if it crosses hosts; None for a socket in the run directory."""
    network = used(run_dir)
    place = network.topics.get(name)
    return (
        None
        if place is None
        else RemoteEndpoint(name, place, network.load_keys(), network.allow_plain)
    )


def stamp() -> bytes:
    """The last part of a message that crosses hosts: this host's monotonic and wall clock, now."""
    now = instant()
    return msgspec.msgpack.encode((now.ours, now.wall))


def to_local_clock(source: Topic, parts: Sequence[bytes]) -> list[bytes]:
    """Parts from another host as if they came from this one.

    What is no message becomes none, to be refused.
    """
    ours = -wall_offset_ns()
    try:
        if source.type is Frame:
            return shift_header(source, parts, ours)
        theirs, utc = msgspec.msgpack.decode(parts[2], type=tuple[Int64, Int64])
        return _shift_message(source, parts[:2], ours - (theirs - utc))
    except (IndexError, ValueError, OverflowError, RecursionError, msgspec.DecodeError, WireError):
        # two alone would pass, with the other host's times
        return [*parts, b""] if len(parts) == 2 else list(parts)


def _shift_message(source: Topic, parts: Sequence[bytes], shift: int) -> list[bytes]:
    message = decode(source, parts)
    assert isinstance(message, Message)
    times = {
        name: getattr(message, name) for name in message.__struct_fields__ if name.endswith("_ns")
    }
    moved = {name: _moved(time, shift) for name, time in times.items() if time is not None}
    return encode(source, msgspec.structs.replace(message, **moved))


def _moved(time_ns: int, shift: int) -> int:
    """Raises ValueError where it leaves the clock's range."""
    moved = time_ns + shift
    if not 0 <= moved <= MAX_NS:
        raise ValueError(f"expected a time from 0 to 2^63 - 1, got {moved}")
    return moved
