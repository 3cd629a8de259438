"""The pages of `docs/reference` and `docs/architecture.md`, made from the tables and types that the
program runs on.

`python -m trimvla.launch.pages.reference` writes them; a test fails where a committed page differs.
Knows which table makes which page.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trimvla.launch import cli
from trimvla.launch.options import Options
from trimvla.launch.pages import python_api
from trimvla.launch.pages.architecture import architecture_page
from trimvla.launch.pages.fields import Field, described
from trimvla.launch.pages.markdown import entry, page, paragraphs, setting, words
from trimvla.launch.pages.results import results_page
from trimvla.launch.system.setup.own_process import DRIVER, DRIVERS, OwnDriver
from trimvla.launch.system.setup.process_table import PROCESSES, Process
from trimvla.runtime.bundle import manifest_types
from trimvla.runtime.bundle.plan import Plan, Provenance, TokenPlan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.bus.messages import Frame, Guidance, Message, Summary
from trimvla.runtime.bus.topics import COLOR, KIB, MIB, REPORT, TOPICS, Topic
from trimvla.runtime.drivers.driver import DriverConfig

ROOT = Path(__file__).parents[2]
MANIFEST_TYPES = (
    manifest_types.Manifest,
    manifest_types.ImagesSpec,
    manifest_types.CameraSpec,
    manifest_types.PromptSpec,
    manifest_types.StateSpec,
    manifest_types.FlowSpec,
    manifest_types.ActionSpec,
    manifest_types.StageSpec,
    manifest_types.TensorSpec,
    manifest_types.FileSpec,
    Plan,
    TokenPlan,
    VisionPlan,
    PatchPlan,
    Provenance,
)


def cli_page() -> str:
    """Every verb with its options."""
    lines = [
        "# The command line",
        (
            "A bundle is named by its path or, if it is shipped (`tabletop`), by its name. The exit"
            " status is 0 only on success, 1 for a failure, 2 for a wrong command line and 130 for"
            " Ctrl-C. Settings of a TOML file are overridden by `--section.key value`."
        ),
        "Every verb takes:",
        *(option(field) for field in described(Options)),
    ]
    common = {field.name for field in described(Options)}
    for verb in cli.VERBS:
        arguments = verb.args()
        lines.append(f"## {verb.name}")
        lines += paragraphs(arguments.__doc__ or verb.summary)
        if verb.extra:
            lines.append(f"Needs `pip install 'trimvla[{verb.extra}]'`.")
        lines += [option(field) for field in described(arguments) if field.name not in common]
    return page(lines)


def option(field: Field) -> str:
    """One option or positional argument, as a list's entry."""
    name = (
        field.name.upper()
        if _is_positional(field.hint)
        else f"--{field.name.rstrip('_').replace('_', '-')}"
    )
    return entry(name, words(field, flags=True), field.text)


def _is_positional(hint: Any) -> bool:  # noqa: ANN401 - any type hint
    return any("positional" in str(part).lower() for part in getattr(hint, "__metadata__", ()))


def topics_page() -> str:
    """The table of topics, then the fields of each message."""
    lines = [
        "# Topics and messages",
        (
            "Every topic is a ZeroMQ socket in the run directory. All times are nanoseconds of the"
            " host's clock, which counts on in a suspend. A topic has one publisher unless the"
            " table has more."
        ),
        "\n".join(topic_rows([*TOPICS.values(), COLOR, REPORT])),
        (
            "A message is msgpack; a frame is multipart: topic, JSON header, pixels. Every message"
            " has:"
        ),
        *(setting(field) for field in described(Message)),
    ]
    common = {field.name for field in described(Message)}
    kinds = [row.type for row in [*TOPICS.values(), COLOR, REPORT]]
    for kind in dict.fromkeys([*kinds, Guidance, Summary]):
        lines.append(f"## {kind.__name__}")
        lines += paragraphs(kind.__doc__ or "")
        lines += [
            setting(field) for field in described(kind) if kind is Frame or field.name not in common
        ]
    return page(lines)


def topic_rows(topics: Iterable[Topic]) -> Iterator[str]:
    """One row a topic."""
    yield "| topic | message | Hz | silent after [s] | at most | senders |"
    yield "|---|---|---|---|---|---|"
    for row in topics:
        size = (
            f"{row.max_bytes // MIB} MiB" if row.max_bytes >= MIB else f"{row.max_bytes // KIB} KiB"
        )
        cells = (
            f"`{row.name}`",
            row.type.__name__,
            f"{row.hz:g}",
            f"{row.max_age_s:g}",
            size,
            str(row.senders),
        )
        yield f"| {' | '.join(cells)} |"


def manifest_page() -> str:
    """The manifest's types, and the plan's."""
    lines = [
        "# The manifest and the plan",
        (
            "`manifest.json` defines what a bundle is; a plan (`plan.json`, and `plan` in the"
            " manifest) defines what is kept of a policy. Both are JSON; a field that is not listed"
            " here is an error."
        ),
    ]
    for kind in MANIFEST_TYPES:
        lines.append(f"## {kind.__name__}")
        lines += paragraphs(kind.__doc__ or "")
        lines += [setting(field) for field in described(kind)]
    return page(lines)


def toml_page() -> str:
    """Every process that a TOML file may name, with its settings."""
    lines = [
        "# The TOML file of a system",
        (
            "One section a process. The section's name is the process's name; `process = \"...\"`"
            " inside names which of the processes below it is, where the two differ; or it is"
            " `module:attribute`, a function of your own ([your own"
            " robot](../guides/own-robot.md#a-driver)). All mistakes are reported at once. `trimvla"
            " run FILE` starts them, `--section.key value` overrides a setting."
        ),
    ]
    for process in PROCESSES.values():
        config = getattr(process.load(), process.config)
        lines.append(f"## {process.name}")
        lines.append(f"{process.summary}. {consequence(process)}")
        lines += list(settings(config, ""))
        if process.name == DRIVER:
            lines += driver_lines()
    return page(lines)


def driver_lines() -> Iterator[str]:
    """The drivers that come with the program, each with what it takes besides, or by default."""
    common = {field.name: field for field in described(DriverConfig)}
    for kind in DRIVERS:
        config = OwnDriver(kind, DRIVER).config
        own = [field for field in described(config) if common.get(field.name) != field]
        yield f'### kind = "{kind}"'
        yield from paragraphs(config.__doc__ or "")
        for field in own:
            yield from field_settings(field, "")


def consequence(process: Process) -> str:
    """What follows when it ends, in a sentence."""
    robot = "The robot holds while it is gone" if process.matters else "The robot does without it"
    again = "it is started again" if process.restart else "a person starts the system again"
    install = f" Needs `pip install 'trimvla[{process.extra}]'`." if process.extra else ""
    return f"{robot}; {again}.{install}"


def settings(config: type, prefix: str) -> Iterator[str]:
    """All settings of a section, those of its tables with their dotted names."""
    for field in described(config):
        yield from field_settings(field, prefix)


def field_settings(field: Field, prefix: str) -> Iterator[str]:
    """One setting; of a table, or a list of tables, those inside too."""
    kind = field.hint
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    entries = typing.get_args(kind)[:1] if typing.get_origin(kind) is tuple else ()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield from settings(kind, f"{prefix}{field.name}.")
    elif entries and dataclasses.is_dataclass(entries[0]) and isinstance(entries[0], type):
        yield entry(prefix + field.name, "list of tables", field.text)
        yield from settings(entries[0], f"{prefix}{field.name}[].")
    else:
        yield entry(prefix + field.name, words(field), field.text)


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": cli_page,
    "docs/reference/topics.md": topics_page,
    "docs/reference/manifest.md": manifest_page,
    "docs/reference/toml.md": toml_page,
    "docs/reference/python.md": lambda: page(python_api.blocks()),
    "docs/reference/results.md": results_page,
    "docs/architecture.md": lambda: architecture_page(ROOT),
}
"""Path in the repository -> what makes its text."""


def main() -> None:
    """Write all pages."""
    for path, make in PAGES.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(make())
        print(path)


if __name__ == "__main__":
    main()
