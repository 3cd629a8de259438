"""Calibration from a recording: the frames that the policy's camera showed while a task was held,
and no others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_policy import TINY
from trimvla.export.streaming.placeholders import placeholder_tokenizer
from trimvla.launch.frames.calibration import find_calibration
from trimvla.policies.trimming.calibrate import check_calibration
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import Frame, Message, Task
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recording import RecordingWriter


def frame(shade: int, camera: str = "wrist") -> Frame:
    image = np.full((20, 30, 3), shade, np.uint8)
    return Frame(camera=camera, time_ns=shade, image=image, sequence=shade)


def task(instruction: str, active: bool = True) -> Task:
    return Task(time_ns=1, episode=1, instruction=instruction, active=active, started_ns=1)


def record(path: Path, messages: list[Frame | Message]) -> Path:
    facts = {"system": json.dumps({"policy": {"camera": "wrist"}})}
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, facts)
        for message in messages:
            name = f"{message.camera}/color" if isinstance(message, Frame) else "task"
            writer.add(topic(name), 1, wire.encode(topic(name), message))
        writer.finish()
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(placeholder_tokenizer(TINY.prompt))
    return path


def shades(path: Path, tokenizer: Path, frames: int) -> list[int]:
    data = find_calibration(path, path.parent, TINY, tokenizer, frames=frames, seed=0)
    check_calibration(data, TINY)
    return sorted(int(image[0, 0, 0]) for image in data.images)


def test_frames_under_a_task_are_taken_and_no_others(tmp_path: Path, tokenizer: Path) -> None:
    messages = [
        frame(1),
        task("lift"),
        frame(2),
        frame(9, "front"),
        frame(3),
        task("lift", active=False),
        frame(4),
    ]
    path = record(tmp_path / "run.mcap", messages)
    assert shades(path, tokenizer, frames=8) == [2, 3]


def test_as_many_are_drawn_as_are_wanted(tmp_path: Path, tokenizer: Path) -> None:
    path = record(tmp_path / "run.mcap", [task("lift"), *(frame(shade) for shade in range(40))])
    drawn = shades(path, tokenizer, frames=10)
    assert len(set(drawn)) == 10
    assert max(drawn) >= 10, "not merely the first ones"


def test_a_recording_without_a_task_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = record(tmp_path / "run.mcap", [frame(1)])
    with pytest.raises(
        ConfigError, match=r"run\.mcap: expected frames of the camera 'wrist' while a task was held"
    ):
        shades(path, tokenizer, frames=4)
