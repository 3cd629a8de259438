"""Writes a LeRobotDataset of version 3.0: tables, films, and the description of both.

One file a table and a film for each episode, so that memory holds one episode's numbers and one
image. The folder has another name until it is complete. Knows rows and images; no recording.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from trimvla.launch.datasets.info import ACTION, IMAGES, INFO, STATE, VERSIONS
from trimvla.runtime.errors import ConfigError

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files in a folder
Row = dict[str, object]
"""A line of a table, or an object of JSON, by the names that LeRobot gives."""
CODECS = (("libx264", {"crf": "18", "g": "2"}), ("mpeg4", {"q": "2", "g": "2"}))
"""H.264 plays everywhere; a key frame at every second image, as LeRobot writes it, makes any image
quick to reach."""
COUNTERS: dict[str, Any] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """What every row of a data set has."""

    fps: float
    actions: tuple[str, ...]
    """Names of the action's numbers."""
    states: tuple[str, ...]
    """Of the state's; empty without a state."""
    cameras: Mapping[str, tuple[int, int]]
    """Name -> height and width."""
    robot_type: str | None = None


class FilmWriter:
    """One film of RGB images, all of one size."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = size
        name, options = next(each for each in CODECS if each[0] in av.codecs_available)
        self._container = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = self._container.add_stream(name, rate=rate, options=options)
        self._stream.width = width
        self._stream.height = height
        odd = height % 2 or width % 2
        self._stream.pix_fmt = "yuv444p" if odd and name == "libx264" else "yuv420p"
        self.codec = "h264" if name == "libx264" else name
        self.pixels = self._stream.pix_fmt

    def add(self, image: Image) -> None:
        """Append one."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is left."""
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()


@dataclass
class Moments:
    """Statistics of one feature's numbers, as they come."""

    rows: list[NDArray[np.float64]] = field(default_factory=list)

    def as_json(self) -> Mapping[str, list[Any]]:
        """As `meta/stats.json` has them."""
        values = np.array(self.rows)
        return {
            "min": values.min(axis=0).tolist(),
            "max": values.max(axis=0).tolist(),
            "mean": values.mean(axis=0).tolist(),
            "std": values.std(axis=0).tolist(),
            "q01": np.quantile(values, 0.01, axis=0).tolist(),
            "q99": np.quantile(values, 0.99, axis=0).tolist(),
            "count": [len(values)],
        }


class DataSetWriter:
    """Writes episode after episode; as a context, it leaves a whole data set or none."""

    def __init__(self, root: Path, shape: Shape) -> None:
        """Begin.

        Raises ConfigError where something lies there already.
        """
        if root.exists():
            raise ConfigError(f"expected nothing at {root}, got a file or folder")
        self._root = root
        self._shape = shape
        self._partial = root.with_name(f"{root.name}.partial")
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._frames = 0
        self._films: dict[str, FilmWriter] = {}
        self._rows: list[tuple[NDArray[np.float32], NDArray[np.float32] | None, str]] = []
        self._moments = {ACTION: Moments(), STATE: Moments()}
        self._colours = {name: Moments() for name in shape.cameras}
        self._codec: dict[str, Any] = {}

    def __enter__(self) -> DataSetWriter:
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        for film in self._films.values():
            film.close()
        if kind is None and self._episodes:
            self._describe()
            self._partial.rename(self._root)
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def episodes(self) -> int:
        """How many are complete."""
        return len(self._episodes)

    @property
    def frames(self) -> int:
        """Rows of the complete ones."""
        return self._frames

    def add(
        self,
        action: Sequence[float],
        state: Sequence[float] | None,
        images: Mapping[str, Image],
        task: str,
    ) -> None:
        """The next row of the episode that is open."""
        number = len(self._episodes)
        for name, size in self._shape.cameras.items():
            if images[name].shape[:2] != size:
                got = images[name].shape[:2]
                raise ConfigError(f"camera '{name}': expected images of {size}, got {got}")
            if name not in self._films:
                path = self._partial / self._place(VIDEO, number, video_key=f"{IMAGES}{name}")
                self._films[name] = FilmWriter(path, size, self._shape.fps)
            self._films[name].add(images[name])
            self._colours[name].rows.append(images[name][::8, ::8].mean(axis=(0, 1)) / 255)
        row = np.asarray(action, np.float32)
        self._moments[ACTION].rows.append(row.astype(np.float64))
        numbers = None if state is None else np.asarray(state, np.float32)
        if numbers is not None:
            self._moments[STATE].rows.append(numbers.astype(np.float64))
        self._rows.append((row, numbers, task))

    def end_episode(self) -> None:
        """The rows so far are one episode; nothing where there are none."""
        if not self._rows:
            return
        number = len(self._episodes)
        length = len(self._rows)
        for name, film in self._films.items():
            film.close()
            self._codec[name] = (film.codec, film.pixels)
        self._films = {}
        tasks = list(dict.fromkeys(task for _, _, task in self._rows))
        for task in tasks:
            self._tasks.setdefault(task, len(self._tasks))
        path = self._partial / self._place(DATA, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(self._table(number), path)
        self._episodes.append(self._episode(number, length, tasks))
        self._frames += length
        self._rows = []

    def _table(self, number: int) -> pyarrow.Table:
        length = len(self._rows)
        floats = pyarrow.list_(pyarrow.float32(), len(self._shape.actions))
        columns: dict[str, Any] = {
            ACTION: pyarrow.array([row.tolist() for row, _, _ in self._rows], floats)
        }
        if self._shape.states:
            kind = pyarrow.list_(pyarrow.float32(), len(self._shape.states))
            states = [None if it is None else it.tolist() for _, it, _ in self._rows]
            columns[STATE] = pyarrow.array(states, kind)
        times = np.arange(length) / self._shape.fps
        columns["timestamp"] = pyarrow.array(times.astype(np.float32))
        columns["frame_index"] = pyarrow.array(np.arange(length, dtype=np.int64))
        columns["episode_index"] = pyarrow.array(np.full(length, number, np.int64))
        columns["index"] = pyarrow.array(np.arange(self._frames, self._frames + length))
        columns["task_index"] = pyarrow.array([self._tasks[task] for _, _, task in self._rows])
        return pyarrow.table(columns)

    def _episode(self, number: int, length: int, tasks: list[str]) -> Row:
        found: Row = {
            "episode_index": number,
            "tasks": tasks,
            "length": length,
            "data/chunk_index": number // CHUNK,
            "data/file_index": number % CHUNK,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name in self._shape.cameras:
            key = f"videos/{IMAGES}{name}"
            found[f"{key}/chunk_index"] = number // CHUNK
            found[f"{key}/file_index"] = number % CHUNK
            found[f"{key}/from_timestamp"] = 0.0
            found[f"{key}/to_timestamp"] = length / self._shape.fps
        return found

    def _place(self, template: str, number: int, **more: str) -> str:
        return template.format(chunk_index=number // CHUNK, file_index=number % CHUNK, **more)

    def _describe(self) -> None:
        folder = self._partial / "meta" / "episodes" / "chunk-000"
        folder.mkdir(parents=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(self._episodes), folder / "file-000.parquet"
        )
        pyarrow.parquet.write_table(tasks_table(self._tasks), folder.parents[1] / "tasks.parquet")
        (self._partial / INFO).write_text(json.dumps(self._info(), indent=4) + "\n")
        stats = {name: each.as_json() for name, each in self._moments.items() if each.rows}
        for name, each in self._colours.items():
            found = each.as_json()
            stats[f"{IMAGES}{name}"] = {
                kind: found[kind]
                if kind == "count"
                else np.reshape(found[kind], (3, 1, 1)).tolist()
                for kind in found
            }
        (self._partial / "meta" / "stats.json").write_text(json.dumps(stats, indent=4) + "\n")

    def _info(self) -> Row:
        shape = self._shape
        features: Row = {ACTION: numbers_feature(shape.actions)}
        if shape.states:
            features[STATE] = numbers_feature(shape.states)
        for name, (height, width) in shape.cameras.items():
            codec, pixels = self._codec[name]
            features[f"{IMAGES}{name}"] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": codec,
                    "video.pix_fmt": pixels,
                    "video.is_depth_map": False,
                    "video.fps": shape.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        fps = int(shape.fps) if float(shape.fps).is_integer() else shape.fps
        return {
            "codebase_version": VERSIONS[0],
            "robot_type": shape.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": DATA,
            "video_path": VIDEO if shape.cameras else None,
            "features": {**features, **COUNTERS},
        }


def numbers_feature(names: Sequence[str]) -> Row:
    """A row of numbers, described."""
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def tasks_table(tasks: Mapping[str, int]) -> pyarrow.Table:
    """The instructions as the index of a table, as pandas marks one: LeRobot reads it so."""
    table = pyarrow.table({"task_index": list(tasks.values()), "__index_level_0__": list(tasks)})
    marks = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [_column("task_index", "int64"), _column(None, "unicode")],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(marks)})


def _column(name: str | None, kind: str) -> Mapping[str, str | None]:
    return {
        "name": name,
        "field_name": name or "__index_level_0__",
        "pandas_type": kind,
        "numpy_type": "object" if kind == "unicode" else kind,
        "metadata": None,
    }
