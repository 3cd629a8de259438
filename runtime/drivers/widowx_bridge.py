"""The bridge on a WidowX 250's own host: `widowx_envs` on one side, our driver on the other.

BridgeData's server and client exchange lz4-compressed pickle (youliangtan/edgeml, now agentlace).
Unpickling runs whatever the sender wants, so that never leaves this host: this process is a client
of the server beside it, and answers our driver in JSON with the image's bytes behind it.

This file is copied to the robot's host and run with its Python (3.8 or later), where `widowx_envs`,
pyzmq and numpy are: it imports nothing of ours.

    python widowx_bridge.py --bind tcp://127.0.0.1:5560

Who can connect can move the robot: bind to 127.0.0.1 and reach it through an SSH tunnel.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from typing import Any

VERSION = 1
MAX_BYTES = 4096  # of a request
IMAGE = "full_image"
LIMITS = [0.05, 0.05, 0.05, 0.25, 0.25, 0.25]  # of a step, as RobotBaseEnv.action_space has them
SUCCESS = 1  # WidowXStatus


class Bridge:
    """Answers requests with a `WidowXClient` or what has its methods."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - widowx_envs' own
        self._client = client

    def answer(self, raw: bytes) -> list[bytes]:
        """A reply's parts: JSON, and where an observation was asked for the image's bytes."""
        try:
            if len(raw) > MAX_BYTES:
                raise ValueError(f"expected at most {MAX_BYTES} bytes, got {len(raw)}")
            request = json.loads(raw)
            if not isinstance(request, dict) or request.get("version") != VERSION:
                raise ValueError(f"expected a request of version {VERSION}")
            return self._do(request)
        except Exception as error:  # the driver is to know, and this process is to go on
            return [_json({"ok": False, "error": f"{type(error).__name__}: {error}"})]

    def _do(self, request: dict) -> list[bytes]:
        what = request.get("request")
        if what == "observe":
            return self._observe()
        if what == "step":
            action = _numbers(request.get("action"), 7)
            for value, most in zip(action, [*LIMITS, 1.0]):  # noqa: B905 - Python 3.8
                if not abs(value) <= most:
                    raise ValueError(f"expected at most {most:g}, got {value:g}")
            status = self._client.step_action(_array(action), blocking=False)
        elif what == "move":
            pose = _numbers(request.get("pose"), 6)
            seconds = float(request.get("seconds", 1.0))
            status = self._client.move(_array(pose), duration=seconds, blocking=True)
        else:
            raise ValueError(f"expected observe, step or move, got {what!r}")
        return [_json({"ok": status == SUCCESS, "error": f"status {status} of widowx_envs"})]

    def _observe(self) -> list[bytes]:
        seen = self._client.get_observation()
        if seen is None:
            raise ValueError("no observation: the server does not answer")
        image = seen[IMAGE]
        if image.ndim == 4:
            image = image[0]  # the first camera
        state = [float(value) for value in seen["state"]]
        header = {"ok": True, "state": state, "shape": list(image.shape), "dtype": str(image.dtype)}
        return [_json(header), image.tobytes()]


def _numbers(value: Any, count: int) -> list[float]:  # noqa: ANN401 - of a request
    numbers = [float(each) for each in value]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {count} finite numbers, got {value!r}")
    return numbers


def _array(numbers: list[float]) -> Any:  # noqa: ANN401 - numpy's
    import numpy

    return numpy.array(numbers)


def _json(message: dict) -> bytes:
    return json.dumps(message).encode()


def serve(bridge: Bridge, socket: Any, stop: Any = None) -> None:  # noqa: ANN401 - pyzmq's
    """Answer one request after the other, until `stop` (an event) is set."""
    while stop is None or not stop.is_set():
        if socket.poll(200):
            socket.send_multipart(bridge.answer(socket.recv()))


def main() -> None:
    """Connect to the server beside it, initialise the robot, and answer."""
    import zmq

    service = importlib.import_module("widowx_envs.widowx_env_service")
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="tcp://127.0.0.1:5560")
    parser.add_argument("--server", default="localhost")
    parser.add_argument("--server-port", type=int, default=5556)
    parser.add_argument("--camera", default="/blue/image_raw")
    options = parser.parse_args()
    client = service.WidowXClient(host=options.server, port=options.server_port)
    settings = dict(service.WidowXConfigs.DefaultEnvParams)
    settings["camera_topics"] = [{"name": options.camera}]
    settings["return_full_image"] = True
    client.init(settings, image_size=256)
    socket = zmq.Context.instance().socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
    socket.bind(options.bind)
    serve(Bridge(client), socket)


if __name__ == "__main__":
    main()
