"""What strangers send to a policy server, and a served bundle in a process of its own to send it
to.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PATIENCE_S = 60.0
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class Server:
    """A `trimvla serve` in a process of its own."""

    process: subprocess.Popen[str]
    places: dict[str, str]
    log: Path

    def port(self, protocol: str) -> int:
        return int(self.places[protocol].rpartition(":")[2])

    def resident_mib(self) -> float:
        """Memory of the process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_MIB

    def alive(self) -> bool:
        return self.process.poll() is None

    @contextmanager
    def watching(self) -> Iterator[list[float]]:
        """The largest memory [MiB] meanwhile above that at the beginning, as the list's one
        entry.
        """
        start = self.resident_mib()
        worst = [0.0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02) and self.alive():
                worst[0] = max(worst[0], self.resident_mib() - start)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield worst
        finally:
            done.set()
            thread.join()


@contextmanager
def served(bundle: Path, log: Path, *options: str) -> Iterator[Server]:
    """Serve a bundle with every protocol until the end."""
    words = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "serve",
        str(bundle),
        "--threads",
        "1",
        "--json",
    ]
    words += ["--zmq", "0", "--websocket", "0", "--vla-eval", "0", *options]
    with (
        log.open("w") as sink,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=sink, text=True) as process,
    ):
        try:
            yield Server(process, _places(log, process), log)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _places(log: Path, process: subprocess.Popen[str]) -> dict[str, str]:
    """The addresses that it prints once it listens, in the order of the protocols."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        text = " ".join(log.read_text().split())
        if "Ctrl-C stops" in text:
            found = text.partition("' at ")[2].partition(";")[0].split(", ")
            return dict(zip(("groot", "openpi", "vla-eval"), found, strict=True))
        time.sleep(0.05)
    raise AssertionError(f"no server: {log.read_text()}")


def png_of_zeros(width: int, height: int) -> bytes:
    """A PNG of one colour, made without its pixels in memory: one thousandth of what it unfolds
    to.
    """
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", body)
        + _chunk(b"IEND", b"")
    )


def png_of_empty_chunks(count: int) -> bytes:
    """Cheap to send and dear to walk through."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"prIv", b"") * count


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: every one is a walk over all blocks."""
    sink = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(sink, "jpeg", progressive=True)
    whole = sink.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * scans + b"\xff\xd9"


def websocket_handshake(port: int) -> socket.socket:
    """A raw connection after its handshake."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    stream.sendall(
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b" 101 " in stream.recv(4096)
    return stream


def websocket_header(size: int, opcode: int = 2, fin: bool = True) -> bytes:
    """Of a client's frame whose mask is zero: its payload travels as it is."""
    first = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        return first + bytes([0x80 | size]) + bytes(4)
    return first + b"\xff" + struct.pack(">Q", size) + bytes(4)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32)  # ZMTP 3.0, NULL, as client
READY = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"


def zmtp_handshake(port: int) -> socket.socket:
    """A raw ZeroMQ connection after its handshake, as DEALER."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    stream.sendall(GREETING)
    _read(stream, 64)
    stream.sendall(b"\x04" + bytes([len(READY) - 2]) + READY[2:])
    assert _read(stream, 2)[0] & 4  # its READY
    return stream


def _read(stream: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = stream.recv(size - len(found))
        assert part, "the server closed"
        found += part
    return found


def send_quietly(stream: socket.socket, data: bytes, seconds: float = 10.0) -> int:
    """Send until the other end refuses or takes no more; bytes sent."""
    sent = 0
    stream.settimeout(0.5)
    end = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while sent < len(data) and time.monotonic() < end:
            sent += stream.send(memoryview(data)[sent : sent + 2**20])
    return sent


def last_answer(text: str) -> dict[str, object]:
    """The JSON object that a verb printed last."""
    return json.loads(text.splitlines()[-1])
