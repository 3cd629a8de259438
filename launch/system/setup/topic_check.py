"""Whether somebody sends what the processes of a system wait for, before any of them starts.

A wrong camera's name would show as a policy that waits. Refuses only what is certain: a process of
the user's own may publish anything, and a driver may have cameras that only the connected robot
knows; topics may cross hosts, and other programs may publish into a run directory that they know.
Knows the process table and what modules declare; opens no socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from trimvla.launch.system.setup.process_table import row_of
from trimvla.runtime.bus.topics import color
from trimvla.runtime.errors import ConfigError

SOME_CAMERAS = color("*")
"""Published by a driver that does not know its cameras before it is connected."""


@dataclass(frozen=True)
class Outside:
    """What others than a system's sections may publish."""

    topics: Sequence[str] = ()
    """Those that cross hosts."""
    run_dir_is_known: bool = True
    """Programs that the system does not start may use its run directory; no one knows a temporary
    one."""


ANYBODY = Outside()


def check_topics(
    sections: Mapping[str, Mapping[str, Any]],
    configs: Mapping[str, tuple[Any, Any]],
    outside: Outside,
) -> None:
    """Compare what processes need with what the others publish.

    Args:
        sections: as they stand in the file.
        configs: by section, the module of its process and its configuration.
        outside: who else may publish.

    Raises:
        ConfigError: a topic that two sections publish; a camera or a state that a policy needs, or
            a world that a simulated camera draws, and nobody publishes. All of it at once.
        BundleError: a bundle's manifest cannot be read.
    """
    published = {name: published_topics(name, sections[name], *configs[name]) for name in sections}
    problems = _twice(published)
    for name, (module, config) in configs.items():
        if hasattr(module, "needs"):
            declared = map(color, getattr(config, "outside_cameras", ()))
            here = Outside((*outside.topics, *declared), outside.run_dir_is_known)
            problems += _problems(name, module.needs(config), published, here)
    if problems:
        raise ConfigError("; ".join(problems))


def published_topics(
    name: str,
    section: Mapping[str, Any],
    module: Any,  # noqa: ANN401 - a module
    config: Any,  # noqa: ANN401 - its configuration
) -> tuple[str, ...]:
    """The topics that a section's process publishes besides its report; `*` stands for any text."""
    row = row_of(name, section)
    topics = tuple(text.format(name=getattr(config, "name", "")) for text in row.publishes)
    if not row.is_driver:
        return topics
    cameras = module.published_cameras(config)
    return (*topics, *((SOME_CAMERAS,) if cameras is None else map(color, cameras)))


def _twice(published: Mapping[str, Sequence[str]]) -> list[str]:
    """Topics that two sections claim: the second of them could not start."""
    first: dict[str, str] = {}
    problems: list[str] = []
    for name, topics in published.items():
        for topic in (topic for topic in topics if "*" not in topic):
            if topic in first:
                problems.append(
                    f"{name}: expected one section that publishes '{topic}', "
                    f"'{first[topic]}' does already"
                )
            first.setdefault(topic, name)
    return problems


def _problems(
    name: str, needed: Sequence[str], published: Mapping[str, Sequence[str]], outside: Outside
) -> list[str]:
    """What a section waits for and nobody sends, in words."""
    known = [*(topic for topics in published.values() for topic in topics), *outside.topics]
    missing = [one for one in needed if not any(fnmatchcase(one, topic) for topic in known)]
    has_cameras = any(fnmatchcase(topic, SOME_CAMERAS) for topic in known)
    cameras = [one for one in missing if fnmatchcase(one, SOME_CAMERAS)]
    found: list[str] = []
    if cameras and (has_cameras or not outside.run_dir_is_known):
        wanted = [_camera(one) for one in needed if fnmatchcase(one, SOME_CAMERAS)]
        words = f"a camera's section for each of {wanted}, got {_cameras(published, outside)}"
        missed = ", ".join(f"'{_camera(one)}'" for one in cameras)
        found.append(
            f"{name}: expected {words}: nobody publishes {missed} (one that another program "
            f"publishes stands in '{name}.outside_cameras')"
        )
    if not outside.run_dir_is_known:
        found += [
            f"{name}: expected a section that publishes '{one}', got none of {list(published)} (a "
            "program outside of the system needs --run-dir, or --network)"
            for one in missing
            if one not in cameras
        ]
    return found


def _cameras(published: Mapping[str, Sequence[str]], outside: Outside) -> str:
    """The cameras that there are, with those that publish them."""
    found = [
        f"'{_camera(topic)}' ({name})"
        for name, topics in (*published.items(), ("--network", outside.topics))
        for topic in topics
        if fnmatchcase(topic, SOME_CAMERAS)
    ]
    return ", ".join(found) or "none"


def _camera(topic: str) -> str:
    return topic.rpartition("/")[0]
