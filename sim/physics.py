"""MuJoCo, imported after a renderer was chosen, and whether this process can draw with it.

Simulates nothing itself.

MuJoCo chooses its OpenGL once, while it is imported, and where there is no display its own choice
aborts the process. So whoever simulates takes `mujoco` from here. A context does not survive a
fork: a child that draws after its parent has hangs for ever, so `check_can_render` refuses that,
and a window where there is no display.
"""

from __future__ import annotations

import os

from trimvla.runtime.errors import ConfigError
from trimvla.sim.rendering import choose_renderer

choose_renderer()

import mujoco  # noqa: E402 - it chooses an OpenGL while it is imported

# the process, or the one that it was forked from, that made the first context
_drawing = {"pid": 0}


def check_can_render() -> None:
    """Raise ConfigError where drawing would abort this process, or hang it.

    Call it before a context is made or used; from then on processes that are forked off are
    refused.
    """
    if _drawing["pid"] not in (0, os.getpid()):
        raise ConfigError(
            "expected a process that was not forked after an image was drawn: OpenGL hangs in it."
            " Start it with spawn, as in gymnasium.vector.AsyncVectorEnv(..., context='spawn'), or"
            " draw nothing before"
        )
    windowed = mujoco.GLContext.__module__.endswith("glfw")
    if windowed and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise ConfigError(
            "expected a display, or MUJOCO_GL=egl or osmesa in the environment before mujoco is"
            " imported (Debian: libegl1 libgl1-mesa-dri, or libosmesa6); MUJOCO_GL is"
            f" {os.environ.get('MUJOCO_GL')!r} and MuJoCo would open a window"
        )
    _drawing["pid"] = os.getpid()
