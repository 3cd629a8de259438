"""The records of an MCAP file, one after the other, with limits on what they unfold to: files come
from elsewhere.

A chunk is unpacked only up to the size that it announces, and that is limited for each chunk and
for the file. Knows MCAP and its two compressions; not what is recorded. Raises RecordingError,
mcap's own errors and those of compressions.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader

from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.errors import RecordingError

MAX_CHUNK = 64 * MIB  # unpacked; ours hold 4 MiB and the message that exceeds it, at most 43 MiB
MAX_RECORD = MAX_CHUNK + MIB  # as it stands in the file
MAX_UNPACKED = 1024 * MIB  # of a whole file, and for each of its bytes
MAX_RATIO = 1000  # ... so many more: raw images of a covered camera are compressed well
IN_CHUNKS = {Opcode.CHANNEL, Opcode.MESSAGE, Opcode.SCHEMA}


def read_records(stream: BinaryIO, file_bytes: int) -> Iterator[McapRecord]:
    """Every record in order; EndOfFile where the file is cut off."""
    left = MAX_UNPACKED + MAX_RATIO * file_bytes
    reader = StreamReader(
        stream, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD
    )
    for record in reader.records:
        if not isinstance(record, Chunk):
            yield record
            continue
        if record.uncompressed_size > MAX_CHUNK:
            raise RecordingError(
                f"expected chunks of at most {MAX_CHUNK} bytes, got {record.uncompressed_size}"
            )
        left -= record.uncompressed_size
        if left < 0:
            raise RecordingError(
                f"expected a file that unfolds to at most {MAX_RATIO} times its size, got more"
            )
        yield from _inside(unpack(record))


def unpack(chunk: Chunk) -> bytes:
    """A chunk's records, exactly as many bytes as it announces. Raises RecordingError."""
    size = chunk.uncompressed_size
    data = _decompress(chunk.compression, chunk.data, size + 1)
    if len(data) != size:
        more = "more" if len(data) > size else f"{len(data)}"
        raise RecordingError(f"expected a chunk of {size} bytes, got {more}")
    if chunk.uncompressed_crc not in (0, zlib.crc32(data)):
        raise RecordingError("expected a chunk's checksum, got another: the file is damaged")
    return data


def _decompress(name: str, data: bytes, most: int) -> bytes:
    """At most so many bytes, whatever the data ask for."""
    if name == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK).stream_reader(data).read(most)
    if name == "lz4":
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=most)
    if name:
        raise RecordingError(f"expected zstd, lz4 or no compression, got {name[:40]!r}")
    return data


def _inside(data: bytes) -> Iterator[McapRecord]:
    """A chunk's records, one at a time: a list of them would be many times as large."""
    stream = ReadDataStream(io.BytesIO(data))
    while stream.count < len(data):
        opcode = stream.read1()
        length = stream.read8()
        end = stream.count + length
        if end > len(data):
            raise RecordingError("expected whole records in a chunk, got one that is cut off")
        if opcode in IN_CHUNKS:
            yield _read(opcode, stream, length)
        if stream.count > end:
            raise RecordingError("expected a record's fields within its length")
        stream.read(end - stream.count)


def _read(opcode: int, stream: ReadDataStream, length: int) -> McapRecord:
    if opcode == Opcode.MESSAGE:
        if length < MESSAGE_HEADER:
            raise RecordingError(
                f"expected at least {MESSAGE_HEADER} bytes of a message, got {length}"
            )
        return Message.read(stream, length)
    return Channel.read(stream) if opcode == Opcode.CHANNEL else Schema.read(stream)


MESSAGE_HEADER = 22  # bytes
