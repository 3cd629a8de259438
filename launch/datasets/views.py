"""Which of a data set's cameras and numbers a policy sees, and observations of its rows.

Knows data sets and what a policy takes; runs no policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from trimvla.launch.datasets.dataset import DataSet, Episode, Rows
from trimvla.launch.datasets.info import INFO, STATE
from trimvla.runtime.bundle.inputs_and_output import CameraSpec, StateSpec
from trimvla.runtime.errors import ConfigError, ObservationError
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.preprocess.state import check_state_names
from trimvla.sim.actor import MAIN


@dataclass(frozen=True)
class Views:
    """A policy's name of each camera -> the data set's feature, and whether it reads the state."""

    cameras: Mapping[str, str]
    reads_state: bool


def find_views(
    data: DataSet,
    cameras: Sequence[CameraSpec],
    state: StateSpec | None,
    named: Mapping[str, str] | None = None,
) -> Views:
    """What a policy sees of a data set.

    A camera is found by the policy's name of it, or as `named`; where both sides have a single
    one, or the policy's only camera is called as every main one, the first fits.

    Raises:
        ConfigError: a camera or the state that the policy needs is missing, or the state has other
            numbers.
    """
    there = data.layout.cameras
    names = [camera.name for camera in cameras]
    found: dict[str, str] = {}
    for camera in cameras:
        wanted = (named or {}).get(camera.name, camera.name)
        key = there.get(wanted)
        if key is None and wanted == camera.name:
            key = _only(names, there)
        if key is not None:
            found[camera.name] = key
        elif camera.required:
            raise ConfigError(
                f"{data.root / INFO}: expected the camera '{wanted}' that the policy looks through,"
                f" got {sorted(there)}"
            )
    unknown = [name for name in named or {} if name not in names]
    if unknown:
        raise ConfigError(f"expected cameras of {names} for --views, got {unknown}")
    check_state_of(data, state)
    return Views(found, state is not None)


def _only(names: Sequence[str], there: Mapping[str, str]) -> str | None:
    """The data set's main camera for a policy that looks through one which is called as every main
    camera, or the only one.
    """
    if len(names) > 1 or names[0] not in MAIN:
        return None
    if len(there) == 1:
        return next(iter(there.values()))
    return next((there[main] for main in MAIN if main in there), None)


def check_state_of(data: DataSet, state: StateSpec | None) -> None:
    """Raise ConfigError where a policy cannot read the data set's state."""
    if state is None:
        return
    feature = data.layout.state
    where = data.root / INFO
    if feature is None:
        raise ConfigError(f"{where}: expected '{STATE}', which the policy reads, got none")
    if feature.shape[0] != state.dim:
        names = f" of {list(state.names)}" if state.names else ""
        got = f" of {list(feature.labels)}" if feature.labels else ""
        raise ConfigError(
            f"{where}: expected {state.dim} numbers{names} for '{STATE}', got"
            f" {feature.shape[0]}{got}"
        )
    try:
        check_state_names(feature.labels, state)
    except ObservationError as error:
        raise ConfigError(f"{where}: '{STATE}': {error}") from None


def observations(
    data: DataSet, episode: Episode, rows: Rows, views: Views, places: Sequence[int]
) -> Iterator[Observation]:
    """What a policy sees in some rows of an episode, which must rise; memory holds one at a time.

    Raises ConfigError for images that are missing or damaged.
    """
    with ExitStack() as stack:
        films = {}
        for view, key in views.cameras.items():
            film = data.images(episode, key, places)
            stack.callback(getattr(film, "close", lambda: None))
            films[view] = film
        for place in places:
            images = {view: next(film) for view, film in films.items()}
            state = None
            if views.reads_state and rows.states is not None:
                state = rows.states[place].astype(np.float32)
            yield Observation(images, rows.tasks[place], state)


def drawn_places(data: DataSet, count: int, seed: int) -> dict[Episode, list[int]]:
    """`count` rows drawn evenly at random from all episodes, by episode; all, where there are
    fewer.

    Raises ConfigError where none is wanted.
    """
    if count < 1:
        raise ConfigError(f"expected at least 1 frame for --frames, got {count}")
    starts = np.concatenate([[0], np.cumsum([episode.length for episode in data.episodes])])
    drawn = np.sort(np.random.default_rng(seed).permutation(int(starts[-1]))[:count])
    found: dict[Episode, list[int]] = {}
    for index, episode in enumerate(data.episodes):
        inside = drawn[(drawn >= starts[index]) & (drawn < starts[index + 1])] - starts[index]
        if len(inside):
            found[episode] = inside.tolist()
    return found


def drawn_observations(data: DataSet, views: Views, count: int, seed: int) -> Iterator[Observation]:
    """What a policy sees in so many rows, drawn evenly at random. Raises ConfigError."""
    for episode, places in drawn_places(data, count, seed).items():
        yield from observations(data, episode, data.rows(episode), views, places)
