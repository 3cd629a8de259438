"""Frames of demonstration shards as a policy's input tensors: every camera, the state, the prompt.

A shard is an npz with one array a camera, named as the camera (`images` for the tabletop's front
camera, or for an only camera), `texts` (one instruction a row, or several, the first of which is
meant) where the policy reads one and, where the policy reads one, `state`. Knows the
runtime's preprocessing; knows no family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.training.flow_dataset import CAMERAS
from trimvla.policies.training.mapped_arrays import checked, mapped
from trimvla.runtime.bundle.action_statistics import chosen_state
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.errors import ConfigError, ObservationError, PromptError
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.preprocess.prompts import Prompter
from trimvla.runtime.preprocess.state import check_state, state_text, state_vector

Sample = dict[str, Tensor]
"""`images`, `input_ids` without padding, `length`, and `state` where there is one."""


@dataclass(frozen=True)
class Frames:
    """Frames drawn from one or several shards."""

    samples: tuple[Sample, ...]

    def digest(self) -> str:
        """sha256 of everything, in hexadecimal."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for name, tensor in sample.items():
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


class Reader:
    """Makes a policy's input tensors of a shard's rows."""

    def __init__(
        self, opened: Checkpoint, described: InputsAndOutput, prompter: Prompter | None
    ) -> None:
        """`prompter`: None for a policy that reads no instruction."""
        self.described = described
        self.prompter = prompter
        state = described.state
        self.scale = None
        if state is not None:
            self.scale = chosen_state(
                opened.table,
                opened.statistics_key,
                state,
                where=opened.statistics_file,
                error=ConfigError,
            )

    def read(self, path: Path, rows: np.ndarray) -> Iterator[Sample]:
        """The rows int64[k] of one shard.

        Raises:
            ConfigError: the shard lacks a camera or the state or has one of another shape, or the
                policy cannot take a row: its state is not finite, its instruction is too long.
        """
        texts = self.texts(path)
        arrays = {
            name: self.images_of(path, name, len(texts)) for name in self.described.images.names
        }
        states = self.states(path, len(texts))
        for row in rows:
            images = {name: np.asarray(array[row]) for name, array in arrays.items()}
            state = None if states is None else states[row]
            try:
                yield self.sample(images, str(texts[row]), state)
            except (ObservationError, PromptError) as error:
                raise ConfigError(f"{path}: row {row}: {error}") from error

    def texts(self, path: Path) -> Sequence[str]:
        """The instruction of each row; empty ones for a policy that reads none, whose shard need
        not have any.
        """
        if self.prompter is not None:
            return texts_of(path).tolist()
        names = self.described.images.names
        return [""] * len(checked(path, array_of(names[0], names), (None, None, None, 3), "u"))

    def frames(self, seen: Iterable[Observation], where: str) -> Frames:
        """Observations as tensors; `where` is for errors.

        Raises ConfigError for one that the policy cannot take.
        """
        samples: list[Sample] = []
        for each in seen:
            try:
                state = None if each.state is None else np.asarray(each.state)
                samples.append(self.sample(dict(each.images), each.instruction, state))
            except (ObservationError, PromptError) as error:
                raise ConfigError(f"{where}: {error}") from error
        if not samples:
            raise ConfigError(f"{where}: expected at least one frame, got none")
        return Frames(tuple(samples))

    def images_of(self, path: Path, camera: str, rows: int) -> np.ndarray:
        """A camera's array uint8[rows, h, w, 3]."""
        name = array_of(camera, self.described.images.names)
        return checked(path, name, (None, None, None, 3), "u", rows=rows)

    def states(self, path: Path, rows: int) -> np.ndarray | None:
        """float[rows, d], where the policy reads a state."""
        spec = self.described.state
        return None if spec is None else checked(path, "state", (None, spec.dim), "f", rows=rows)

    def sample(
        self, images: dict[str, np.ndarray], instruction: str, state: np.ndarray | None
    ) -> Sample:
        """One observation's tensors."""
        made = {"images": torch.from_numpy(images_tensor(images, self.described.images))}
        text = ""
        spec = self.described.state
        checked_state = check_state(state, spec)
        if checked_state is not None and spec is not None and self.scale is not None:
            vector = state_vector(checked_state, spec, self.scale)
            made["state"] = torch.from_numpy(vector)[None]
            text = state_text(vector, spec.bins or 0) if spec.into == "text" else ""
        if self.prompter is None:
            return made
        ids, last = self.prompter.ids(instruction, text)
        length = last + 1
        made["input_ids"] = torch.tensor(ids[:, : int(length[0])])
        made["length"] = torch.tensor(length)
        return made


def array_of(camera: str, cameras: tuple[str, ...]) -> str:
    """The name of a camera's array in a shard."""
    return "images" if len(cameras) == 1 else CAMERAS.get(camera, camera)


def texts_of(path: Path) -> np.ndarray:
    """The instruction of each row, text[n]: the first one where a row has several."""
    array = mapped(path, "texts")
    if array.ndim == 1:
        return checked(path, "texts", (None,), "U")
    several = checked(path, "texts", (None, None), "U")
    if not several.shape[1]:
        raise ConfigError(f"{path}: expected an instruction in every row of 'texts', got none")
    return several[:, 0]


def draw_frames(reader: Reader, shards: list[Path], count: int, seed: int) -> Frames:
    """`count` frames drawn evenly at random from all shards; all, where there are fewer.

    Raises:
        ConfigError: there are no shards, or no frames are wanted.
    """
    if count < 1:
        raise ConfigError(f"expected at least 1 frame for --frames, got {count}")
    if not shards:
        raise ConfigError(
            "expected shards of demonstrations (--calibration FILE or FOLDER with *.npz), got none"
        )
    lengths = np.array([len(reader.texts(path)) for path in shards])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    drawn = np.sort(np.random.default_rng(seed).permutation(int(starts[-1]))[:count])
    samples: list[Sample] = []
    for index, path in enumerate(shards):
        inside = drawn[(drawn >= starts[index]) & (drawn < starts[index + 1])]
        samples.extend(reader.read(path, inside - starts[index]))
    return Frames(tuple(samples))
