"""A client of GR00T's policy protocol, written to its documented frames: one msgpack map each way,
arrays as npy.
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import zmq


class GrootClient:
    """REQ on ZeroMQ, as `PolicyClient` of Isaac-GR00T; `extra` goes into the request beside
    `data`.
    """

    def __init__(
        self, endpoint: str, token: str = "", keys: tuple[bytes, bytes, bytes] | None = None
    ) -> None:
        self._token = token
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        if keys is not None:
            (
                self.socket.curve_publickey,
                self.socket.curve_secretkey,
                self.socket.curve_serverkey,
            ) = keys
        self.socket.connect(endpoint)

    def call(self, endpoint: str, data: dict[str, Any] | None = None, **extra: Any) -> Any:
        request = {"endpoint": endpoint, **({} if data is None else {"data": data}), **extra}
        if self._token:
            request["api_token"] = self._token
        self.socket.send(msgspec.msgpack.encode(request, enc_hook=_encode))
        answer = _decode(msgspec.msgpack.decode(self.socket.recv()))
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"Server error: {answer['error']}")
        return answer

    def get_action(
        self, observation: dict[str, Any], **extra: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        action, info = self.call(
            "get_action", {"observation": observation, "options": None}, **extra
        )
        return action, info

    def close(self) -> None:
        self.socket.close(0)

    def __enter__(self) -> GrootClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encode(value: Any) -> Any:
    sink = io.BytesIO()
    np.save(sink, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": sink.getvalue()}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict) and "__ndarray_class__" in value:
        return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
    return {key: _decode(item) for key, item in value.items()} if isinstance(value, dict) else value
