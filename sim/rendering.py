"""Which OpenGL the simulator renders with.

The one place that sets an environment variable, because MuJoCo reads one.

Must be called before `mujoco` is imported, as `sim.physics` does; child processes inherit the
choice.
"""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Callable, MutableMapping

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # MUJOCO_GL -> library, in the order of preference


def choose_renderer(
    environ: MutableMapping[str, str] | None = None,
    find: Callable[[str], str | None] = ctypes.util.find_library,
) -> str | None:
    """Render without a display: keep the user's MUJOCO_GL, else take the first library that is
    installed.

    Returns the choice, or None where neither is there; MuJoCo then tries a window and reports why
    it cannot.
    """
    environ = os.environ if environ is None else environ
    if "MUJOCO_GL" not in environ:
        choice = next((name for name, library in LIBRARIES.items() if find(library)), None)
        if choice is None:
            return None
        environ["MUJOCO_GL"] = choice
    return environ["MUJOCO_GL"]
