"""A LeRobot data set's `meta/info.json`: its version, rate, features and where its files lie.

Knows the description alone; opens no table and no video. Versions 3.0 and 2.1 are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import convert, read_json

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1")
IMAGES = "observation.images."
IMAGE = "observation.image"
"""The only camera of older data sets, such as PushT's."""
STATE = "observation.state"
ACTION = "action"
MAX_SIDE = 16_384  # pixels
MAX_EPISODES = 1_000_000


class Feature(msgspec.Struct, frozen=True):
    """One column, or the images of one camera."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    """A list, a table with one list, or none."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the numbers, in order; empty where the data set has none."""
        found = self.names
        if isinstance(found, Mapping) and len(found) == 1:
            found = next(iter(found.values()))
        if isinstance(found, Sequence) and not isinstance(found, str):
            return tuple(str(name) for name in found)
        return ()


class Info(msgspec.Struct, frozen=True):
    """What stands in `meta/info.json`."""

    codebase_version: str
    fps: Annotated[float, msgspec.Meta(gt=0, le=10_000)]
    features: dict[str, Feature]
    total_episodes: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPISODES)]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, msgspec.Meta(ge=1)] = 1000


@dataclass(frozen=True)
class Layout:
    """A data set's folder and its description."""

    root: Path
    info: Info

    @property
    def is_v3(self) -> bool:
        """Whether many episodes share a file."""
        return self.info.codebase_version == VERSIONS[0]

    @property
    def cameras(self) -> dict[str, str]:
        """Each camera's name -> its feature."""
        return {camera_name(key): key for key in self._images()}

    @property
    def action(self) -> Feature:
        """Of the actions."""
        return self.info.features[ACTION]

    @property
    def state(self) -> Feature | None:
        """Of the state, where the data set has one."""
        return self.info.features.get(STATE)

    def is_video(self, key: str) -> bool:
        """Whether a camera's images lie in a film, or in the table itself."""
        return self.info.features[key].dtype == "video"

    def file(self, template: str | None, **places: Any) -> Path:  # noqa: ANN401 - numbers and keys
        """A file of the data set, by one of the description's patterns.

        Raises ConfigError for a pattern that is none, or that leads out of the folder.
        """
        try:
            path = self.root / (template or "").format(**places)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.root / INFO}: expected a pattern with {sorted(places)}, got"
                f" {(template or '')[:200]!r}: {error}"
            ) from None
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ConfigError(
                f"{self.root / INFO}: expected files inside the data set, got {template!r}"
            )
        return path

    def _images(self) -> list[str]:
        return [
            key
            for key, feature in self.info.features.items()
            if feature.dtype in ("video", "image")
        ]


def camera_name(key: str) -> str:
    """`observation.images.front` -> `front`."""
    return key.removeprefix(IMAGES) if key.startswith(IMAGES) else key.rpartition(".")[2]


def open_layout(root: Path) -> Layout:
    """Read and check the description.

    Raises:
        ConfigError: there is none, it is of another version, or it lacks what every data set has.
    """
    path = root / INFO
    if not path.is_file():
        raise ConfigError(f"expected a LeRobot data set with {INFO}, got {root}")
    raw = read_json(path, "a data set's description")
    version = raw.get("codebase_version") if isinstance(raw, dict) else None
    if version not in VERSIONS:
        words = " or ".join(VERSIONS)
        raise ConfigError(f"{path}: expected {words} for 'codebase_version', got {version!r:.60}")
    layout = Layout(root, convert(raw, Info, path))
    check_features(path, layout)
    return layout


def check_features(path: Path, layout: Layout) -> None:
    """Raise ConfigError for features that cannot be read."""
    features = layout.info.features
    if ACTION not in features:
        raise ConfigError(f"{path}: expected the feature '{ACTION}', got {sorted(features)[:20]}")
    for name in (ACTION, STATE):
        feature = features.get(name)
        if feature is not None and (len(feature.shape) != 1 or not 1 <= feature.shape[0] <= 1024):
            shape = list(feature.shape)
            raise ConfigError(f"{path}: expected one axis for '{name}', got the shape {shape}")
        if feature is not None and feature.labels and len(feature.labels) != feature.shape[0]:
            raise ConfigError(
                f"{path}: expected {feature.shape[0]} names for '{name}', got {len(feature.labels)}"
            )
    for key in layout.cameras.values():
        shape = features[key].shape
        if len(shape) != 3 or not all(1 <= side <= MAX_SIDE for side in shape):
            raise ConfigError(
                f"{path}: expected height, width and channels for '{key}', got {list(shape)}"
            )
