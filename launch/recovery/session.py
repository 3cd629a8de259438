"""A recovery under way: the folder `OUT.partial`, from which a killed run goes on where it was.

It holds what was asked for, the frames, what the teacher gave for them, and the student's state;
one process at a time has it. Knows files; decides nothing and trains nothing.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimvla.policies.recovery.distil import Taught
from trimvla.policies.recovery.frames import Frames, load_frames
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import parse_json, read_bytes

REQUEST = "request.json"
LOCK = "lock"
FRAMES = "frames.safetensors"
STATE = "state.safetensors"
KEY = "trimvla.recovery"
TEACHER_IMAGES = 128  # in one file, which is the most of the teacher's work that a kill costs


class Losses(msgspec.Struct, frozen=True, kw_only=True):
    """On held-out images: the mean, and what 9 of 10 stay below."""

    mean: float
    """Of the cognition feature, one of each instruction."""
    p90: float
    """The same."""
    head_mean: float | None = None
    """Of the head's predictions, one of each trajectory, where the head is trained."""
    head_p90: float | None = None
    """The same."""


class Progressed(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run has come; in the metadata of its state."""

    step: int
    """Steps that were done."""
    steps: int
    """Of so many."""
    seconds: float
    """That they took [s]."""
    before: Losses
    """Before the first step."""


@dataclass(frozen=True)
class Session:
    """The folder, which this process has."""

    folder: Path

    def frames(self, make: Callable[[], Frames]) -> Frames:
        """The run's frames: those that are here, or made now."""
        path = self.folder / FRAMES
        if not path.exists():
            make().save(path)
        return self._readable(lambda: load_frames(path), path)

    def taught(self, count: int, teach: Callable[[Tensor], Taught]) -> Iterator[Taught]:
        """What the teacher gives for images 0 to `count`, part by part; what is here is not made
        again.
        """
        for number, rows in enumerate(torch.arange(count).split(TEACHER_IMAGES)):
            path = self.folder / f"teacher-{number:05d}.safetensors"
            if not path.exists():
                _save(dict(vars(teach(rows))), path)
            yield self._readable(lambda path=path: Taught(**load_file(path)), path)

    def state(self) -> tuple[dict[str, Tensor], Progressed] | None:
        """What was saved last; None where nothing was."""
        path = self.folder / STATE
        if not path.exists():
            return None
        with _opened(path) as file:
            described = (file.metadata() or {}).get(KEY, "")
        raw = parse_json(described.encode(), path, "the state of a recovery")
        return self._readable(lambda: load_file(path), path), msgspec.convert(raw, Progressed)

    def save(self, state: Mapping[str, Tensor], progressed: Progressed) -> None:
        """Replace the state in one move."""
        _save(state, self.folder / STATE, {KEY: msgspec.json.encode(progressed).decode()})

    def _readable(self, read: Callable[[], Any], path: Path) -> Any:  # noqa: ANN401
        try:
            return read()
        except (OSError, SafetensorError, TypeError) as error:
            raise ConfigError(
                f"{path}: expected a file of a recovery, got: {error}: remove {self.folder} to"
                " begin anew"
            ) from None


@contextmanager
def session(out: Path, request: Mapping[str, Any]) -> Iterator[Session]:
    """The folder beside `out`, begun now or gone on with; it is removed at the end of the block,
    and stays where that fails.

    Raises:
        ConfigError: another process has it, or it was begun for another request; names what
            differs.
    """
    folder = out.with_name(f"{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"expected no other recovery to {out}, got one that is running"
            ) from None
        _check_request(folder, request)
        yield Session(folder)
        shutil.rmtree(folder)


def _check_request(folder: Path, request: Mapping[str, Any]) -> None:
    path = folder / REQUEST
    now = json.loads(json.dumps(request))
    if not path.exists():
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(request, indent=1) + "\n")
        beside.replace(path)
        return
    what = "what a recovery was begun with"
    begun = parse_json(read_bytes(path, what), path, what)
    there = begun if isinstance(begun, dict) else {}
    names = sorted(name for name in there.keys() | now.keys() if there.get(name) != now.get(name))
    if names:
        shown = "; ".join(
            f"{name} {there.get(name)} there and {now.get(name)} now" for name in names
        )
        raise ConfigError(
            f"{folder}: expected what the recovery was begun with, got another: {shown}: give"
            " another --out, or remove this folder to begin anew"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: expected the state of a recovery, got: {error}") from None


def _save(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    beside = path.with_suffix(".part")
    save_file({name: each.contiguous() for name, each in tensors.items()}, beside, metadata)
    beside.replace(path)
