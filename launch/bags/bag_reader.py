"""The messages of a rosbag2 folder with MCAP files, as they lie in them, with a recording's limits.

Bags come from elsewhere: chunks unfold only so far, and of the types that a bag defines none is
used. Knows files; not what a message means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mcap.exceptions import EndOfFile
from mcap.records import Channel, Message, Schema

from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record.mcap_records import read_records
from trimvla.runtime.record.recording import open_file

CONVERT = "rosbags-convert --src BAG --dst NEW --dst-storage mcap"


@dataclass(frozen=True)
class BagMessage:
    """One message."""

    topic: str
    type: str
    logged_ns: int
    """When it was received, in the bag's time."""
    raw: bytes


def bag_files(bag: Path) -> list[Path]:
    """The MCAP files of a bag in their order, or the one that it is.

    Raises ConfigError where there are none; of SQLite and of packed files the error has the way.
    """
    if bag.is_file() and bag.suffix == ".mcap":
        return [bag]
    files = sorted(bag.glob("*.mcap"), key=_number) if bag.is_dir() else []
    if not files:
        others = [path.name for path in sorted(bag.glob("*.*"))[:5]] if bag.is_dir() else []
        raise ConfigError(
            f"expected a rosbag2 folder with *.mcap files at {bag}, got {others or 'none'}; bags of"
            f" SQLite and packed files become such by: {CONVERT}"
        )
    return files


def _number(path: Path) -> tuple[int, str]:
    """`run_10.mcap` comes after `run_9.mcap`."""
    found = re.search(r"(\d+)\.mcap$", path.name)
    return (int(found.group(1)) if found else 0, path.name)


def read_bag(bag: Path) -> Iterator[BagMessage]:
    """Every CDR message, file by file, to the end or to where a file was cut off.

    Raises RecordingError for a damaged file, ConfigError for no bag.
    """
    for path in bag_files(bag):
        try:
            with open_file(path) as stream:
                yield from _messages(stream, path)
        except RecordingError as error:
            raise RecordingError(f"{path}: {error}") from None
        except EndOfFile:
            return
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from None
        # of the format, its checksums and three decompressors, without a common base
        except Exception as error:
            raise RecordingError(f"{path}: expected an MCAP file, got: {error}") from None


def _messages(stream: BinaryIO, path: Path) -> Iterator[BagMessage]:
    schemas: dict[int, str] = {}
    channels: dict[int, Channel] = {}
    for record in read_records(stream, path.stat().st_size):
        if isinstance(record, Schema):
            schemas[record.id] = record.name
        elif isinstance(record, Channel):
            channels[record.id] = record
        elif isinstance(record, Message):
            channel = channels.get(record.channel_id)
            if channel is None:
                raise RecordingError(f"expected a channel {record.channel_id}, got none")
            if channel.message_encoding == "cdr":
                kind = schemas.get(channel.schema_id, "")
                yield BagMessage(channel.topic, kind, record.log_time, record.data)
