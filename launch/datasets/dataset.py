"""A LeRobot data set on disk, version 3.0 or 2.1: its episodes, with rows, tasks and images.

Knows both layouts; knows no policy. Nothing is read before it is asked for, and images one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.launch.datasets.films import read_frames
from trimvla.launch.datasets.info import ACTION, STATE, Layout, open_layout
from trimvla.launch.datasets.tables import integers, numbers, read_table
from trimvla.runtime.errors import ConfigError, WireError
from trimvla.runtime.image_codec import decode_image
from trimvla.runtime.text_files import convert, parse_json, read_text

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
PNG = b"\x89PNG"


@dataclass(frozen=True)
class Film:
    """Where an episode's images of one camera lie."""

    path: Path
    starts_s: float = 0.0
    """When the episode begins in the film."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode: where it lies. `length` rows."""

    index: int
    length: int
    table: Path
    films: Mapping[str, Film] = field(default_factory=dict)
    """By feature; cameras whose images lie in the table have none."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What the table of an episode holds."""

    actions: Array
    """float64[n, A]."""
    states: Array | None
    """float64[n, S]."""
    tasks: tuple[str, ...]
    """The instruction of each row."""
    times: Array
    """float64[n], from the episode's begin [s]."""


class DataSet:
    """A folder, opened: its description and its episodes."""

    def __init__(self, root: Path) -> None:
        """Read `meta/`.

        Raises:
            ConfigError: it is no data set of a known version, or its description is damaged.
        """
        self.layout: Layout = open_layout(root)
        self._tasks = read_tasks(self.layout)
        self.episodes: tuple[Episode, ...] = tuple(read_episodes(self.layout))
        if not self.episodes:
            raise ConfigError(f"{root}: expected at least one episode, got none")

    @property
    def fps(self) -> float:
        """Rows a second."""
        return self.layout.info.fps

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.layout.root

    def rows(self, episode: Episode) -> Rows:
        """Everything but the images.

        Raises:
            ConfigError: the file is missing or damaged, the episode is empty or of another length
                than described, or a row does not fit the description.
        """
        path = episode.table
        state = self.layout.state
        columns = [ACTION, "timestamp", "episode_index", "task_index"]
        table = read_table(
            path, [*columns, *([] if state is None else [STATE])], episode=episode.index
        )
        if table.num_rows != episode.length or not episode.length:
            raise ConfigError(
                f"{path}: expected {max(1, episode.length)} rows of episode {episode.index}, got"
                f" {table.num_rows}"
            )
        actions = numbers(table, ACTION, self.layout.action.shape[0], path)
        states = None if state is None else numbers(table, STATE, state.shape[0], path)
        for name, values in ((ACTION, actions), (STATE, states)):
            if values is not None and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                raise ConfigError(
                    f"{path}: expected finite numbers for '{name}', got others in row {row} of"
                    f" episode {episode.index}"
                )
        tasks = tuple(self._task(place, path) for place in integers(table, "task_index", path))
        times = numbers(table, "timestamp", 1, path)[:, 0]
        return Rows(actions, states, tasks, times)

    def images(self, episode: Episode, key: str, rows: Sequence[int]) -> Iterator[Image]:
        """One camera's images uint8[h, w, 3] RGB of the rows, which must rise.

        Raises ConfigError where they are missing, damaged or of another size than described.
        """
        height, width = self._size(key)
        found = (
            self._filmed(episode, key, rows)
            if self.layout.is_video(key)
            else self._tabled(episode, key, rows)
        )
        for image in found:
            if image.shape[:2] != (height, width):
                raise ConfigError(
                    f"{self.root}: expected images of {width} x {height} for '{key}', got"
                    f" {image.shape[1]} x {image.shape[0]} in episode {episode.index}"
                )
            yield image

    def _filmed(self, episode: Episode, key: str, rows: Sequence[int]) -> Iterator[Image]:
        film = episode.films[key]
        return read_frames(film.path, [film.starts_s + row / self.fps for row in rows], self.fps)

    def _tabled(self, episode: Episode, key: str, rows: Sequence[int]) -> Iterator[Image]:
        table = read_table(episode.table, [key, "episode_index"], episode=episode.index)
        for row in rows:
            cell = table.column(key)[row].as_py()
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(data, bytes):
                raise ConfigError(
                    f"{episode.table}: expected an encoded image for '{key}' in row {row} of"
                    f" episode {episode.index}, got none"
                )
            try:
                yield decode_image(data, "png" if data.startswith(PNG) else "jpeg")
            except WireError as error:
                raise ConfigError(
                    f"{episode.table}: '{key}' in row {row} of episode {episode.index}: {error}"
                ) from None

    def _size(self, key: str) -> tuple[int, int]:
        """Height and width; older data sets describe channels first."""
        shape = self.layout.info.features[key].shape
        return (shape[1], shape[2]) if shape[0] in (1, 3) else (shape[0], shape[1])

    def _task(self, place: int, path: Path) -> str:
        task = self._tasks.get(place)
        if task is None:
            raise ConfigError(
                f"{path}: expected a task of meta/tasks for 'task_index', got {place}"
            )
        return task


def read_tasks(layout: Layout) -> dict[int, str]:
    """The instructions by their numbers. Raises ConfigError."""
    if not layout.is_v3:
        path = layout.root / "meta" / "tasks.jsonl"
        lines = json_lines(path, "the tasks of a data set")
        found = [convert(line, OldTask, path) for line in lines]
        return {task.task_index: task.task for task in found}
    path = layout.root / "meta" / "tasks.parquet"
    table = read_table(path, ["task_index"], optional=("task", "__index_level_0__"))
    names = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not names:
        raise ConfigError(f"{path}: expected the tasks' texts, got {table.column_names}")
    texts = table.column(names[0]).to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: expected texts for the tasks, got something else")
    return dict(zip(integers(table, "task_index", path), texts, strict=True))


def read_episodes(layout: Layout) -> Iterator[Episode]:
    """Every episode, in order. Raises ConfigError."""
    yield from (_new_episodes if layout.is_v3 else _old_episodes)(layout)


class OldTask(msgspec.Struct, frozen=True):
    """A line of `meta/tasks.jsonl`."""

    task_index: int
    task: str


class OldEpisode(msgspec.Struct, frozen=True):
    """A line of `meta/episodes.jsonl`."""

    episode_index: int
    length: int


def _old_episodes(layout: Layout) -> Iterator[Episode]:
    path = layout.root / "meta" / "episodes.jsonl"
    for line in json_lines(path, "the episodes of a data set"):
        episode = convert(line, OldEpisode, path)
        places: dict[str, Any] = {
            "episode_chunk": episode.episode_index // layout.info.chunks_size,
            "episode_index": episode.episode_index,
        }
        films = {
            key: Film(layout.file(layout.info.video_path, video_key=key, **places))
            for key in layout.cameras.values()
            if layout.is_video(key)
        }
        table = layout.file(layout.info.data_path, **places)
        yield Episode(episode.episode_index, episode.length, table, films)


def _new_episodes(layout: Layout) -> Iterator[Episode]:
    folder = layout.root / "meta" / "episodes"
    paths = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not paths:
        raise ConfigError(f"{layout.root}: expected meta/episodes/chunk-*/file-*.parquet, got none")
    videos = [key for key in layout.cameras.values() if layout.is_video(key)]
    for path in paths:
        yield from _episodes_of(layout, path, videos)


def _episodes_of(layout: Layout, path: Path, videos: Sequence[str]) -> Iterator[Episode]:
    places = [
        f"videos/{key}/{name}"
        for key in videos
        for name in ("chunk_index", "file_index", "from_timestamp")
    ]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *places]
    for row in read_table(path, columns).to_pylist():
        try:
            films = {
                key: Film(
                    layout.file(
                        layout.info.video_path,
                        video_key=key,
                        chunk_index=int(row[f"videos/{key}/chunk_index"]),
                        file_index=int(row[f"videos/{key}/file_index"]),
                    ),
                    float(row[f"videos/{key}/from_timestamp"]),
                )
                for key in videos
            }
            table = layout.file(
                layout.info.data_path,
                chunk_index=int(row["data/chunk_index"]),
                file_index=int(row["data/file_index"]),
            )
            yield Episode(int(row["episode_index"]), int(row["length"]), table, films)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: expected an episode in each row, got: {error}") from None


def json_lines(path: Path, what: str) -> Iterator[Any]:
    """The objects of a file with one on each line. Raises ConfigError."""
    for number, line in enumerate(read_text(path, what).splitlines(), 1):
        if line.strip():
            yield parse_json(line.encode(), f"{path}:{number}", what)
