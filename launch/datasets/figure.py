"""A picture of a bundle over a data set: its actions beside the recorded ones, dimension by
dimension, and the error of each episode. Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimvla.launch.datasets.evaluate import Played
from trimvla.launch.datasets.results import DataEvalResult
from trimvla.launch.figures import style

SHOWN = 300  # rows of the first episodes


def draw(result: DataEvalResult, played: Sequence[Played], path: Path) -> None:
    """Write the PNG."""
    from matplotlib.figure import Figure

    recorded = np.concatenate([each.recorded for each in played])[:SHOWN]
    wanted = np.concatenate([each.wanted for each in played])[:SHOWN]
    times = np.arange(len(recorded)) / result.fps
    count = recorded.shape[1]
    figure = Figure(figsize=(9, 1.1 * count + 2.2), layout="constrained")
    axes = [figure.add_subplot(count + 1, 1, place + 1) for place in range(count + 1)]
    for place, each in enumerate(result.dimensions):
        axis = axes[place]
        axis.plot(times, recorded[:, place], color=style.BLUE, label="recorded")
        axis.plot(times, wanted[:, place], color=style.colour(1), label=result.bundle, linewidth=1)
        axis.set_ylabel(each.name or str(each.dimension), rotation=0, ha="right", parse_math=False)
    axes[0].set_title(f"{result.bundle} over {result.data.name}", parse_math=False)
    axes[0].legend(loc="upper right")
    axes[count - 1].set_xlabel("time [s], one episode after the other")
    errors = [each.of_spread or 0.0 for each in result.episodes]
    axes[count].bar([each.episode for each in result.episodes], errors, color=style.BLUE)
    axes[count].set_xlabel("episode")
    axes[count].set_ylabel("error / spread")
    style.save(figure, path)
