"""One policy call as a Rerun recording: image, kept tokens, actions and times, to look at in
Rerun's viewer.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.launch.extras import install, missing_module
from trimvla.launch.figures.call_picture import CallStory, describe
from trimvla.runtime.errors import ConfigError


def write(path: Path, story: CallStory, actions: NDArray[np.float64]) -> None:
    """Write the file; `actions` float64[H, D].

    Raises ConfigError where it cannot be written, or without `rerun`.
    """
    rr = _rerun()
    stream = rr.RecordingStream("trimvla")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream.save(path)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot write the Rerun recording: {error}") from None
    for camera, marked in story.marked().items():
        place = f"camera/{camera}" if len(story.images) > 1 else "camera"
        stream.log(f"{place}/seen", rr.Image(story.images[camera]))
        stream.log(f"{place}/kept", rr.Image(marked))
    stream.log("story", rr.TextDocument("\n".join(describe(story))))
    stream.log("milliseconds", rr.BarChart(np.array(list(story.milliseconds.values()))))
    for row, action in enumerate(actions):
        stream.set_time("row", sequence=row)
        stream.log("actions", rr.Scalars(action))
    stream.flush()


def _rerun() -> Any:  # noqa: ANN401 - a large optional package, without types where it is not installed
    try:
        return importlib.import_module("rerun")
    except ModuleNotFoundError as error:
        if (module := missing_module(error)) is None:
            raise
        raise ConfigError(f"--rerun needs {module}: {install(module, 'inspect')}") from None
