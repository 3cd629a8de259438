"""The servers that a policy service is reached through, opened together: one a protocol.

Knows their protocols and addresses; a server's own limits are its own. Websockets are imported only
where one is opened: they are an optional install.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from trimvla.runtime.bus.curve import Keys
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.servers.groot_server import GrootServer
from trimvla.runtime.servers.service import Place, Service
from trimvla.runtime.servers.websocket_protocols import Conversation, Openpi, VlaEval


@dataclass(frozen=True)
class Listening:
    """Where a service listens, and to whom; a port of 0 is any that is free, None is no server."""

    host: str
    zmq: int | None
    """Port of GR00T's protocol."""
    websocket: int | None
    """Port of openpi's."""
    vla_eval: int | None
    """Port of vla-eval's."""
    keys: Keys | None
    """ZeroMQ clients must show one of these."""
    token: str
    """Clients must show this word; empty: none."""
    insecure: bool
    """Whether plain connections may leave this host."""
    camera: str
    """What clients call the only image; empty: as the bundle does."""
    whole_chunks: bool
    """Whether vla-eval gets whole chunks instead of the row that is due."""


def open_servers(service: Service, at: Listening, stack: ExitStack) -> dict[str, str]:
    """Open every server that has a port; protocol -> address. The stack closes them.

    Raises:
        ConfigError: websockets are not installed, or an address that may not be opened.
    """
    places: dict[str, str] = {}
    if at.zmq is not None:
        endpoint = f"tcp://{at.host}:{at.zmq or '*'}"
        groot = GrootServer(service, endpoint, at.keys, allow_plain=at.insecure, token=at.token)
        stack.callback(groot.close)
        places["groot"] = groot.endpoint
    if at.websocket is not None:
        converse = partial(Openpi, service.metadata, at.camera)
        place = Place(at.host, at.websocket, at.token, at.insecure)
        places["openpi"] = _websocket(place, service, converse, stack)
    if at.vla_eval is not None:
        converse = partial(VlaEval, service.metadata, at.camera, whole_chunks=at.whole_chunks)
        place = Place(at.host, at.vla_eval, at.token, at.insecure)
        places["vla-eval"] = _websocket(place, service, converse, stack)
    return places


def _websocket(
    place: Place, service: Service, converse: Callable[[], Conversation], stack: ExitStack
) -> str:
    """One websocket server; its address."""
    if importlib.util.find_spec("websockets") is None:
        raise ConfigError(
            "websockets are not installed: pip install 'trimvla[serve]', or --websocket None"
        )
    from trimvla.runtime.servers.websocket_server import WebsocketServer

    server = WebsocketServer(service, place, converse)
    stack.callback(server.close)
    return f"ws://{place.host}:{server.port}"
