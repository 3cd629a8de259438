"""A SmolVLA reference directory, opened: stored arrays, our policy with the stored weights, the map
between their rows and ours.

LeRobot's prefix is [camera tokens, absent cameras too; text with padding; state], ours has no
absent cameras and the state in front of the text. What is padding there is no part of the
comparison: it is taken over from the stored array. Knows how to read; computes and compares
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.staged import StageRuns, TorchRuns
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.nn.llama import RmsNorm
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.smolvla.checkpoint import build, deepest_names, theirs
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.keys_values import KeysValues
from trimvla.policies.smolvla.lerobot.sizes import camera_name
from trimvla.policies.smolvla.lerobot.source import open_checkpoint
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import PrefixLayer
from trimvla.runtime.errors import ConfigError

PIXELS = "pixels/"
MASK = "_mask"


@dataclass(frozen=True)
class SmolVlaReference:
    """A directory, opened."""

    directory: Path
    arrays: Mapping[str, np.ndarray]
    checkpoint: Checkpoint
    policy: SmolVla
    runs: StageRuns
    """What runs the stages."""
    left_out: frozenset[str] = frozenset()
    """Stored arrays that are not compared."""

    @property
    def cfg(self) -> SmolVlaConfig:
        """Sizes, with the cameras that were there."""
        return self.policy.cfg

    @property
    def keys(self) -> Sequence[str]:
        """Stored arrays that may be compared."""
        return [key for key in self.arrays if key not in self.left_out]

    @property
    def backend(self) -> str:
        """What runs the stages."""
        return self.runs.backend

    def array(self, key: str) -> np.ndarray:
        """The stored array. ConfigError where there is none."""
        if key not in self.arrays:
            raise ConfigError(f"reference.npz: expected array '{key}', got none")
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        """The stored array as a tensor."""
        return torch.from_numpy(self.array(key))

    def through(self, runs: StageRuns, left_out: frozenset[str]) -> SmolVlaReference:
        """The same, with its stages run by something else."""
        return replace(self, runs=runs, left_out=left_out)

    # --- cameras ---

    @cached_property
    def features(self) -> list[str]:
        """All cameras by their names in the file, absent ones too."""
        names = [key.removeprefix(PIXELS) for key in self.arrays if key.startswith(PIXELS)]
        return [name for name in names if not name.endswith(MASK)]

    def feature_of(self, camera: str) -> str:
        """Our name of a camera -> the file's."""
        return next(name for name in self.features if camera_name(name) == camera)

    @property
    def present(self) -> list[str]:
        """Cameras that were there by their names in the file, in our order."""
        return [self.feature_of(camera) for camera in self.cfg.cameras]

    @property
    def images(self) -> Tensor:
        """The stored pixels as the vision stage takes them: float[C, S, S, 3] from 0 to 1."""
        pixels = torch.cat([self.tensor(PIXELS + name) for name in self.present])
        return ((pixels + 1.0) / 2.0).permute(0, 2, 3, 1).contiguous()

    # --- rows ---

    @cached_property
    def valid(self) -> np.ndarray:
        """bool[N]: rows of their prefix that are no padding."""
        return self.array("prefix/pad_mask")[0].astype(bool)

    @property
    def text(self) -> int:
        """Ids with padding."""
        return self.array("in/input_ids").shape[1]

    @property
    def visual_rows(self) -> int:
        """Visual rows of their prefix, of absent cameras too."""
        return len(self.valid) - 1 - self.text

    @cached_property
    def visual_map(self) -> list[int]:
        """Their raster index of each of our visual tokens."""
        return np.flatnonzero(self.valid[: self.visual_rows]).tolist()

    @cached_property
    def rows(self) -> list[int]:
        """Their row of each of ours."""
        text = range(self.visual_rows, self.visual_rows + self.text)
        return [*self.visual_map, len(self.valid) - 1, *text]

    def ours(self, theirs: Tensor, axis: int) -> Tensor:
        """Their rows along an axis in our order."""
        return theirs.index_select(axis, torch.tensor(self.rows))

    def like_theirs(self, ours: Tensor, key: str, axis: int) -> np.ndarray:
        """Our rows along an axis in their order, with padding as it is stored under the key."""
        made = np.moveaxis(self.array(key).copy(), axis, 0)
        from_ours = np.moveaxis(ours.detach().numpy(), axis, 0)
        for place, row in enumerate(self.rows):
            if self.valid[row]:
                made[row] = from_ours[place]
        return np.moveaxis(made, 0, axis)

    def ids(self, prefix: str = "in") -> tuple[Tensor, Tensor]:
        """Stored ids int64[1, L], and their number without padding int64[1]."""
        mask = self.tensor(f"{prefix}/language_mask")
        return self.tensor(f"{prefix}/input_ids"), mask.sum(dim=1)

    @property
    def valid_ours(self) -> Tensor:
        """bool[1, n]: our rows that are no padding."""
        return torch.from_numpy(self.valid[self.rows])[None]

    def stored_layers(self) -> list[KeysValues]:
        """Stored keys and values of every decoder layer, in our order of rows."""
        pairs = zip(self.tensor("prefix/keys"), self.tensor("prefix/values"), strict=True)
        return [
            KeysValues(*(self.ours(part, 0).transpose(0, 1)[None] for part in pair))
            for pair in pairs
        ]

    # --- the deepest layer, whole ---

    def deepest(self) -> tuple[PrefixLayer, RmsNorm]:
        """The deepest decoder layer with what no action depends on, and the norm behind it."""
        files = SafetensorsFiles(self.directory)
        text = self.cfg.text
        place = f"prefix.layers.{text.layers - 1}."
        state = {leaf: files[name] for name, leaf in deepest_names(self.cfg).items()}
        live = self.policy.prefix.layers[-1].state_dict()
        state |= {leaf: files[theirs(place + leaf)] for leaf in live}
        norm = RmsNorm(text.width, text.norm_eps)
        norm.load_state_dict({"weight": state.pop("norm").float()})
        layer = PrefixLayer(text)
        layer.load_state_dict({leaf: weight.float() for leaf, weight in state.items()})
        return layer.eval(), norm


def open_reference(directory: Path) -> SmolVlaReference:
    """Open a LeRobot checkpoint with `reference.npz` beside it.

    Raises:
        ConfigError, CheckpointError: one of them is missing or does not fit.
    """
    checkpoint = open_checkpoint(directory)
    path = directory / "reference.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected an archive of arrays in {path}, got: {error}") from error
    seen = [key.removeprefix("in/") for key, array in arrays.items() if _is_image(key, array)]
    names = [camera_name(name) for name in seen]
    cameras = tuple(camera for camera in checkpoint.cfg.cameras if camera in names)
    if not cameras:
        words = f"images of some of the cameras {list(checkpoint.cfg.cameras)} below 'in/'"
        raise ConfigError(f"{path}: expected {words}, got {names}")
    policy = build(msgspec.structs.replace(checkpoint.cfg, cameras=cameras), checkpoint.weights)
    return SmolVlaReference(directory, arrays, checkpoint, policy, TorchRuns(policy))


def _is_image(key: str, array: np.ndarray) -> bool:
    return key.startswith("in/") and array.dtype == np.uint8 and array.ndim == 3
