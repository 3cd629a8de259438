"""Losses over the steps of a training run, smoothed, one panel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimvla.launch.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3
HEIGHT = 2.6  # inch, of a panel
UNITS = frozenset({"cm", "mm", "ms"})
"""At the end of a loss's name; other losses are plain numbers."""


@style.look()
def loss_figure(
    history: Sequence[Mapping[str, float]], names: Sequence[str], smoothing: int
) -> Figure:
    """One panel a loss.

    Args:
        history: `step` and each of the losses, step by step.
        names: of the losses, a unit such as `_cm` at the end.
        smoothing: steps that a point is the mean of; as many as there are, where there are fewer.
    """
    rows = -(-len(names) // ACROSS)
    figure = style.blank(HEIGHT * rows, 10.0)
    window = min(smoothing, len(history))
    steps = [row["step"] for row in history][window - 1 :]
    panels = figure.subplots(rows, min(len(names), ACROSS), squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        values = np.convolve([row[name] for row in history], np.ones(window) / window, "valid")
        axes.plot(steps, values, color=style.BLUE)
        axes.set(xlabel="step")
        style.show_powers(axes)
        axes.set_title(style.short(title(name), 34))
        axes.grid()
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def title(name: str) -> str:
    """`object_cm` -> `object [cm]`."""
    words, _, unit = name.rpartition("_")
    return f"{words.replace('_', ' ')} [{unit}]" if words and unit in UNITS else name
