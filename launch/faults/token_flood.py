"""A flood of wrong tokens at a served policy, and a client with the right one beside it.

Starts `trimvla serve` as a person does, in a process of its own. Knows GR00T's `ping` alone.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import zmq

ANSWER_S = 2.0  # for a client with the right token, whatever others send
FLOOD_S = 4.0
START_S = 60.0
BODY = bytes(4 * 1024 * 1024)  # beside each wrong token


def worst_wait(bundle: str, folder: Path) -> float:
    """The longest wait for an answer [s] while strangers flood; infinite where one never came."""
    token = secrets.token_hex(16)
    file = folder / "token"
    file.touch(mode=0o600)
    file.write_text(token)
    port = _free_port()
    words = ["serve", bundle, "--zmq", str(port), "--websocket", "None", "--token-file", str(file)]
    command = [sys.executable, "-m", "trimvla.launch.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait(port, token, START_S)  # until it serves
            done = threading.Event()
            stranger = threading.Thread(target=_flood, args=(port, done), daemon=True)
            stranger.start()
            end = time.monotonic() + FLOOD_S
            waits = []
            while time.monotonic() < end:
                waits.append(_wait(port, token, ANSWER_S))
                time.sleep(0.1)
            done.set()
            stranger.join()
            return max(waits)
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def _wait(port: int, token: str, limit_s: float) -> float:
    """How long one `ping` takes [s]; infinite past the limit."""
    begin = time.monotonic()
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(msgspec.msgpack.encode({"endpoint": "ping", "api_token": token}))
        if not client.poll(round(limit_s * 1e3)):
            return float("inf")
        answer = msgspec.msgpack.decode(client.recv())
    refused = isinstance(answer, dict) and "error" in answer
    return float("inf") if refused else time.monotonic() - begin


def _flood(port: int, done: threading.Event) -> None:
    """Messages with a wrong token and much beside it, as fast as they are taken."""
    request = {"endpoint": "get_action", "api_token": "wrong", "data": {"observation": BODY}}
    message = msgspec.msgpack.encode(request)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.SNDHWM, 2)
        stranger.connect(f"tcp://127.0.0.1:{port}")
        while not done.is_set():
            if stranger.poll(50, zmq.POLLOUT):
                stranger.send_multipart([b"", message], zmq.DONTWAIT)
            while stranger.poll(0):
                stranger.recv_multipart()
