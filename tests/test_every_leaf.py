"""Any kind of value at any leaf of any message of any protocol: a real server gives an answer or
one typed error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("websockets")
from websockets.sync.client import connect

from tests import attack, leaves
from tests.tiny_bundle import write_bundle
from trimvla.runtime.servers.packing import unpack

IMAGE = np.zeros((4, 4, 3), np.uint8)
STATE = np.zeros(3, np.float32)
TASK = "pick up the red cube"
PNG = {"__image__": True, "format": "png", "data": leaves.png(), "shape": [4, 4, 3]}
TIMES = {"seq": 1, "seed": 3, "schema_version": 1}
OBSERVATIONS: list[dict[str, Any]] = [
    {"observation.images.front": IMAGE, "observation.state": STATE, "task": TASK, **TIMES},
    {"observation/image": IMAGE, "observation/state": STATE, "prompt": TASK, **TIMES},
    {"images": {"primary": PNG}, "task_description": TASK, "states": STATE, **TIMES},
    {
        "video": {"f": IMAGE[None, None]},
        "state": {"a": STATE[None, None]},
        "language": {"task": [[TASK]]},
        **TIMES,
    },
]
GROOT: list[dict[str, Any]] = [
    *(
        {"endpoint": "get_action", "data": {"observation": o, "options": None}, "api_token": "x"}
        for o in OBSERVATIONS
    ),
    {"endpoint": "reset", "data": {"options": {"seed": 7}}},
    {"endpoint": "ping"},
    {"endpoint": "get_modality_config"},
]
VLA_EVAL: list[dict[str, Any]] = [
    {"type": kind, "payload": payload, "seq": 1, "timestamp": 1.5}
    for kind, payload in (
        ("hello", {"harness_version": "0.8.0", "protocol_version": 1}),
        ("episode_start", {"task": {"name": "t", "seed": 3}}),
        *(("observation", observation) for observation in OBSERVATIONS),
        ("episode_end", {"success": True}),
    )
]
TREES = {
    "groot": [leaves.tree(message, "groot") for message in GROOT],
    "openpi": [leaves.tree(message, "openpi") for message in OBSERVATIONS],
    "vla-eval": [leaves.tree(message, "vla-eval") for message in VLA_EVAL],
}
MOST_MIB = 150
MOST_LOG = 50_000
EXAMPLES = 200


class Client:
    """One connection that sends bytes and gets the answer's, of any protocol."""

    def __init__(self, server: attack.Server, protocol: str) -> None:
        self.protocol = protocol
        if protocol == "groot":
            self._socket = zmq.Context.instance().socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
            self._socket.connect(server.places["groot"])
        else:
            self._connection = connect(server.places[protocol], max_size=None)
            if protocol == "openpi":
                self._connection.recv(attack.PATIENCE_S)

    def ask(self, raw: bytes) -> Any:
        """The answer, or the error that stands for one."""
        if self.protocol == "groot":
            self._socket.send(raw)
            return msgspec.msgpack.decode(self._socket.recv())
        self._connection.send(raw)
        if self.protocol == "openpi":
            answer = self._connection.recv(attack.PATIENCE_S)
            return {"error": answer} if isinstance(answer, str) else unpack(answer)
        # has an answer always: what came before is the message's
        self._connection.send(msgspec.msgpack.encode(HELLO))
        first = unpack(self._connection.recv(attack.PATIENCE_S, decode=False))
        if first["type"] == "hello" and first["seq"] == HELLO["seq"]:
            return {}
        assert unpack(self._connection.recv(attack.PATIENCE_S, decode=False))["seq"] == HELLO["seq"]
        return first["payload"]

    def close(self) -> None:
        self._socket.close(0) if self.protocol == "groot" else self._connection.close()


HELLO = {"type": "hello", "payload": {"protocol_version": 1}, "seq": 77, "timestamp": 0.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[attack.Server]:
    home: Path = tmp_path_factory.mktemp("leaves")
    with attack.served(write_bundle(home / "bundle"), home / "log.txt") as server:
        yield server


@st.composite
def messages(draw: st.DrawFn, protocol: str) -> bytes:
    whole = TREES[protocol][draw(st.integers(0, len(TREES[protocol]) - 1))]
    place = draw(st.sampled_from(list(leaves.leaves(whole))))
    return leaves.encode(leaves.replaced(whole, place, draw(leaves.values())))


@pytest.mark.parametrize("protocol", TREES)
def test_any_value_at_any_leaf_is_answered(server: attack.Server, protocol: str) -> None:
    client = Client(server, protocol)
    for whole in TREES[protocol]:
        assert "error" not in client.ask(leaves.encode(whole)), whole
    log = server.log.stat().st_size
    seen: set[bool] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(messages(protocol))
    def answered(raw: bytes) -> None:
        answer = client.ask(raw)
        error = answer.get("error") if isinstance(answer, dict) else None
        seen.add(error is None)
        if error is not None:
            assert isinstance(error, str) and 0 < len(error) < 2000 and "\n" not in error
            assert "internal" not in error, error

    with server.watching() as grown:
        answered()
    client.close()
    assert seen == {True, False}  # some values are valid where they stand
    assert server.alive() and grown[0] < MOST_MIB
    assert "Traceback" not in server.log.read_text() and server.log.stat().st_size - log < MOST_LOG


def test_others_are_answered_while_strangers_try(server: attack.Server) -> None:
    """Several strangers at once, each with its own wrong messages."""
    wrong = [leaves.encode(leaves.replaced(tree, (), [tree])) for tree in TREES["groot"]]

    def stranger() -> None:
        client = Client(server, "groot")
        for raw in wrong * 20:
            assert "error" in client.ask(raw)
        client.close()

    threads = [threading.Thread(target=stranger) for _ in range(4)]
    for thread in threads:
        thread.start()
    client = Client(server, "openpi")
    for _ in range(10):
        assert "actions" in client.ask(leaves.encode(TREES["openpi"][0]))
    for thread in threads:
        thread.join()
    client.close()
    assert server.alive()
