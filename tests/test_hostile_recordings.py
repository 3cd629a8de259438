"""Recordings that are made to hurt, read by the real verbs in processes of their own: one error, in
bounded memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")
import lz4.frame
import mcap.writer
import msgspec
import zstandard
from mcap.writer import CompressionType

from tests.attack import png_of_zeros
from tests.tiny_bundle import write_bundle
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.record.foxglove import as_picture
from trimvla.runtime.record.recording import FACTS

# a verb that reads a good file needs about 150 MiB and 2 s
MOST_MIB = 900
MOST_S = 120.0
GOOD_CHUNK = {
    "time_ns": 5,
    "episode": 1,
    "actions": [[0.1] * 7],
    "control_hz": 5.0,
    "valid_rows": 1,
    "produced_ns": 9,
    "frame_sequence": 2,
    "seed": [0],
    "instruction": "go",
}
SYSTEM = {"system": json.dumps({"policy": {"bundle": "tabletop"}})}
Messages = list[tuple[str, bytes]]


def write(
    path: Path,
    messages: Messages,
    facts: dict[str, str] | None = None,
    repeat: int = 1,
    chunk_size: int = 1 << 22,
) -> Path:
    with path.open("wb") as stream:
        writer = mcap.writer.Writer(stream, compression=CompressionType.ZSTD, chunk_size=chunk_size)
        writer.start()
        writer.add_metadata(FACTS, SYSTEM if facts is None else facts)
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channels = {name: writer.register_channel(name, "json", schema) for name in dict(messages)}
        for _ in range(repeat):
            for name, data in messages:
                writer.add_message(channels[name], log_time=0, data=data, publish_time=0)
        writer.finish()
    return path


def bomb(compression: str, mib: int) -> Callable[[Path], Path]:
    """Zeros in one chunk, made without having them in memory."""

    def make(path: Path) -> Path:
        pieces = [bytes(1 << 20)] * mib
        if compression == "zstd":
            packer = zstandard.ZstdCompressor().compressobj()
            data = b"".join([*map(packer.compress, pieces), packer.flush()])
        else:
            with lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB) as lz4_packer:
                data = (
                    lz4_packer.begin()
                    + b"".join(map(lz4_packer.compress, pieces))
                    + lz4_packer.flush()
                )
        sizes = struct.pack("<QQQI", 0, 0, mib << 20, 0)
        name = struct.pack("<I", len(compression)) + compression.encode()
        body = sizes + name + struct.pack("<Q", len(data)) + data
        write(path, [("chunk", chunk())])
        whole = path.read_bytes()
        place = first_chunk(whole)
        path.write_bytes(whole[:place] + struct.pack("<BQ", 6, len(body)) + body + whole[place:])
        return path

    return make


def first_chunk(content: bytes) -> int:
    """Where the first chunk's record begins."""
    place = 8
    while content[place] != 6:
        place += 9 + int.from_bytes(content[place + 1 : place + 9], "little")
    return place


def lying_chunk(path: Path) -> Path:
    """One that announces little and holds much."""
    content = write(path, [("unknown", bytes(60 << 20))]).read_bytes()
    size = first_chunk(content) + 9 + 16  # after its opcode, length and two times
    path.write_bytes(content[:size] + (1000).to_bytes(8, "little") + content[size + 8 :])
    return path


def many_chunks(path: Path) -> Path:
    """Each is allowed, all together are 4 GiB; the file is small."""
    return write(path, [("unknown", bytes(32 << 20))], repeat=128, chunk_size=1 << 24)


def chunk(**changes: Any) -> bytes:
    return json.dumps({**GOOD_CHUNK, **changes}).encode()


def picture(size: tuple[int, int]) -> bytes:
    """A recorded PNG whose header says what it is."""
    front = topic("front/color")
    parts = wire.encode(front, Frame("front", 1, np.zeros((8, 8, 3), np.uint8)), "png")
    payload = png_of_zeros(*size)
    header = json.loads(parts[1]) | {
        "width": size[0],
        "height": size[1],
        "payload_size": len(payload),
    }
    known = wire._header_decoder.decode(json.dumps(header))
    return msgspec.json.encode(as_picture(known, payload, 1))


def of(*messages: tuple[str, bytes]) -> Callable[[Path], Path]:
    return lambda path: write(path, list(messages))


def facts(**values: str) -> Callable[[Path], Path]:
    return lambda path: write(path, [("chunk", chunk())], {**SYSTEM, **values})


DEEP = b"[" * 5000 + b"]" * 5000
HOSTILE: dict[str, Callable[[Path], Path]] = {
    "zstd bomb": bomb("zstd", 2048),
    "lz4 bomb": bomb("lz4", 1024),
    "a chunk that lies": lying_chunk,
    "many chunks": many_chunks,
    "deep chunk": of(("chunk", DEEP)),
    "deep field": of(("chunk", chunk()[:-1] + b', "actions": ' + DEEP + b"}")),
    "deep image": of(("chunk", chunk()), ("front/color", b'{"x": ' + DEEP + b"}")),
    "no UTF-8": of(("chunk", chunk(instruction="x").replace(b"x", b"\xff\xfe"))),
    "no map": of(("chunk", b"[1, 2]")),
    "a huge number": of(("chunk", chunk().replace(b'"time_ns": 5', b'"time_ns": 1' + b"0" * 400))),
    "a huge message": of(("chunk", b"[" + b"[]," * 10_000_000 + b"[]]")),
    "many chunks of numbers": lambda path: write(
        path, [("chunk", chunk(actions=[[0.0] * 28_000]))], repeat=1500
    ),
    "an image that unfolds": of(("chunk", chunk()), ("front/color", picture((16384, 16384)))),
    "facts are no map": facts(system="[1, 2, 3]"),
    "facts are deep": facts(system=DEEP.decode()),
    "facts are no JSON": facts(system="{"),
    "a fact of another type": facts(system='{"policy": []}'),
    "threads": facts(system='{"policy": {"bundle": "tabletop", "threads": 1000000}}'),
    "versions are no map": facts(versions='["1"]'),
    "versions are no text": facts(versions='{"numpy": [1]}'),
}


def run(words: list[str]) -> tuple[int, str, str, float, float]:
    """Exit status, stdout, stderr, the largest memory [MiB] and the time [s] of a verb in a process
    of its own.
    """
    began = time.monotonic()
    words = [sys.executable, "-m", "trimvla.launch.cli", *words]
    memory = 0.0
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            memory = max(memory, peak_mib(process.pid))
            time.sleep(0.01)
        out, error = process.communicate()
    return process.returncode, out, error, memory, time.monotonic() - began


def peak_mib(pid: int) -> float:
    """The largest memory that a process ever had; 0 for one that is gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return 0.0


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_one_error_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    path = HOSTILE[name](tmp_path / "a.mcap")
    status, out, error, memory, seconds = run(["replay", str(path), "--json"])
    told = json.loads(out.splitlines()[-1])
    assert status == 1 and told["ok"] is False and "Traceback" not in error, error
    assert str(path) in told["error"], told
    print(f"{path.stat().st_size} bytes: {memory:.0f} MiB, {seconds:.1f} s: {told['error'][:200]}")
    assert memory < MOST_MIB and seconds < MOST_S and len(out) + len(error) < 10_000


def test_a_pipe_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mcap")
    for path in (tmp_path / "a.mcap", Path("/dev/zero")):
        status, out, _, _, seconds = run(["replay", str(path), "--json"])
        assert status == 1 and seconds < MOST_S
        assert "expected a recording" in json.loads(out.splitlines()[-1])["error"]


def test_inspect_refuses_them_too(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    for name in ("deep chunk", "facts are no map", "an image that unfolds"):
        path = HOSTILE[name](tmp_path / "a.mcap")
        status, out, error, memory, _ = run(
            ["inspect", str(path), "--bundle", str(bundle), "--json"]
        )
        assert status == 1 and "Traceback" not in error and memory < MOST_MIB, (name, error)
        assert str(path) in json.loads(out.splitlines()[-1])["error"]
