"""Whether SimplerEnv's tasks can be played here, of either package, and what is in the way.

Plays nothing.

The original package needs an environment of its own: with NumPy 2 it ends the process by signal 11,
and a setuptools without `pkg_resources` stops its simulator, so versions are read before anything
of it is imported. See docs/guides/simpler-original.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ORIGINAL = ("simpler_env", "mani_skill2_real2sim")
DOWNLOAD = (
    "python -m mani_skill.utils.download_asset bridge_v2_real2sim, then widowx250s; or set"
    " MS_ASSET_DIR"
)
NO_VULKAN = "launch/install_vulkan.sh installs a software driver"
PAGE = "docs/guides/simpler-original.md"
READ = ("numpy", "setuptools", "gymnasium", "sapien")  # distributions whose versions decide
PYTHONS = ((3, 10), (3, 11))


def missing(*, render: bool = True) -> str | None:
    """What stands in the way of ManiSkill's tasks, with what to do about it; None where nothing
    does.
    """
    if find_spec("mani_skill") is None or find_spec("sapien") is None:
        return "ManiSkill is not installed: pip install 'trimvla[simpler]'"
    if render and (problem := _vulkan_problem()):
        return f"no Vulkan: {problem}; {NO_VULKAN}"
    assets = Path(import_module("mani_skill").ASSET_DIR)
    lacking = [
        part
        for part in ("tasks/bridge_v2_real2sim_dataset", "robots/widowx")
        if not (assets / part).is_dir()
    ]
    return f"no {', '.join(lacking)} in {assets}: {DOWNLOAD}" if lacking else None


def original_missing() -> str | None:
    """What stands in the way of the original package, with what to do about it; None where nothing
    does.
    """
    if absent := [name for name in ORIGINAL if not installed(name)]:
        return f"{' and '.join(absent)} not installed: {PAGE}"
    if problem := unfit(versions(), sys.version_info[:2]):
        return problem
    if problem := _original_vulkan_problem():
        return f"no Vulkan: {problem}; {NO_VULKAN}"
    assets = Path(import_module("mani_skill2_real2sim").ASSET_DIR)
    lacking = [part for part in ("custom", "real_inpainting") if not (assets / part).is_dir()]
    return (
        f"no {', '.join(lacking)} in {assets}: set MS2_ASSET_DIR to ManiSkill2_real2sim/data"
        if lacking
        else None
    )


def installed(name: str) -> bool:
    """Whether a package would be imported from a file; a stand-in that is already loaded is
    none.
    """
    try:
        return find_spec(name) is not None
    except ValueError:
        return False


def versions() -> dict[str, str | None]:
    """What is installed of the distributions that decide; None where one is not."""
    return {name: _version(name) for name in READ}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unfit(found: Mapping[str, str | None], python: tuple[int, int]) -> str | None:
    """Why the original package cannot work with these versions; None where it can.

    Args:
        found: version of each of `READ`; None where it is not installed.
        python: major and minor.
    """
    bounds = {
        "numpy": ("<2", 2),
        "setuptools": ("<80", 80),
        "gymnasium": ("<1", 1),
        "sapien": ("<3", 3),
    }
    wrong = [
        f"{name}{bound}, got {found[name] or 'none'}"
        for name, (bound, first) in bounds.items()
        if (major := _major(found[name])) is None or major >= first
    ]
    if python not in PYTHONS:
        wrong.insert(0, f"Python 3.10 or 3.11, got {python[0]}.{python[1]}")
    if not wrong:
        return None
    return (
        f"expected for the original SimplerEnv package {'; '.join(wrong)} (an environment of its"
        f" own: {PAGE})"
    )


def _major(text: str | None) -> int | None:
    head = (text or "").partition(".")[0]
    return int(head) if head.isdigit() else None


def _vulkan_problem() -> str | None:
    sapien = import_module("sapien")
    try:
        sapien.render.RenderSystem(sapien.Device("cpu"))
    except RuntimeError as error:
        return str(error)
    return None


def _original_vulkan_problem() -> str | None:
    try:
        import_module("sapien.core").SapienRenderer(offscreen_only=True)
    except RuntimeError as error:
        return str(error)
    return None
