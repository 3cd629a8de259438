"""Recordings of a small robot with two cameras, and LeRobot data sets made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import ActionChunk, Command, Frame, JointState, Message, Task
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.record.recording import Recording, RecordingWriter

CAMERAS = ("front", "wrist")
HZ = 5.0
PERIOD_NS = 200_000_000
KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
NAMES = ("x", "y", "z", "yaw")
TASKS = ("pick up the red cube", "put it down")
LENGTHS = (9, 6)
SIZE = (48, 64)  # height, width


def action_of(row: int) -> tuple[float, ...]:
    """Seven numbers that no other row has."""
    return (*(0.001 * row + 0.01 * place for place in range(6)), float(row % 4 < 2))


def image_of(row: int, camera: str) -> np.ndarray:
    """A shade that rises with the rows, brighter by far in the second camera."""
    image = np.full((*SIZE, 3), 20 + 4 * row + 100 * (camera == CAMERAS[1]), np.uint8)
    image[:, :, 2] = 30
    return image


def messages(
    lengths: tuple[int, ...] = LENGTHS, kinds: tuple[ActionKind, ...] = KINDS
) -> list[tuple[str, Frame | Message]]:
    """Two episodes: state and images at each tick, then the command."""
    found: list[tuple[str, Frame | Message]] = []
    row = 0
    for episode, length in enumerate(lengths):
        start = 1 + row * PERIOD_NS
        task = Task(
            time_ns=start, episode=episode, instruction=TASKS[episode % 2], started_ns=start
        )
        found.append(("task", task))
        for _ in range(length):
            now = 1 + row * PERIOD_NS
            state = JointState(
                time_ns=now, position=(0.1, 0.2, 0.3, row / 100), gripper=1.0, names=NAMES
            )
            found.append(("robot/state", state))
            for camera in CAMERAS:
                image = image_of(row, camera)
                found.append((f"{camera}/color", Frame(camera, now, image, sequence=row)))
            found.append(("chunk", chunk_of(row, episode, now, kinds)))
            command = Command(
                time_ns=now + 1, sequence=row, episode=episode, kind="action", action=action_of(row)
            )
            found.append(("command", command))
            row += 1
    return found


def chunk_of(row: int, episode: int, now: int, kinds: tuple[ActionKind, ...]) -> ActionChunk:
    """A chunk that names its meaning."""
    return ActionChunk(
        time_ns=now,
        sequence=row,
        episode=episode,
        actions=(action_of(row),),
        control_hz=HZ,
        kinds=kinds,
        valid_rows=1,
        produced_ns=now,
        frame_sequence=row,
        seed=(row,),
    )


def write_recording(
    path: Path, found: list[tuple[str, Frame | Message]] | None = None
) -> Recording:
    """An MCAP file of these messages."""
    system = {
        "control": {"hz": HZ},
        "policy": {"cameras": {name: name for name in CAMERAS}, "camera": CAMERAS[0]},
    }
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, {"system": json.dumps(system)})
        for name, message in messages() if found is None else found:
            writer.add(topic(name), message.time_ns, wire.encode(topic(name), message))
        writer.finish()
    return Recording(path)


def write_v3(root: Path) -> Path:
    """A data set of version 3.0, as `trimvla record --lerobot` makes it."""
    from trimvla.launch.datasets.from_recording import write_data_set

    recording = write_recording(root.with_suffix(".mcap"))
    write_data_set(recording, root)
    return root


def write_v21(root: Path) -> Path:
    """The same in version 2.1's layout."""
    import pyarrow.parquet

    new = write_v3(root.with_name(f"{root.name}-v3"))
    info = json.loads((new / "meta/info.json").read_text())
    info["codebase_version"] = "v2.1"
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = (
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    rows = pyarrow.parquet.read_table(new / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    lines = [
        json.dumps({key: row[key] for key in ("episode_index", "length", "tasks")}) for row in rows
    ]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    for row in rows:
        number = row["episode_index"]
        table = new / f"data/chunk-000/file-{number:03d}.parquet"
        shutil.copy(table, root / f"data/chunk-000/episode_{number:06d}.parquet")
        for camera in CAMERAS:
            key = f"observation.images.{camera}"
            film = root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(new / f"videos/{key}/chunk-000/file-{number:03d}.mp4", film)
    return root
