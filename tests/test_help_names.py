"""Where a name is looked up, the option's help lists what there is, and that one's own will do."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from trimvla.launch import cli
from trimvla.launch.pages.fields import described
from trimvla.launch.pages.reference import PAGES
from trimvla.launch.system.setup.process_table import PROCESSES
from trimvla.policies.trimming.importance import CRITERIA
from trimvla.policies.trimming.tokens import SELECTORS
from trimvla.runtime.backends.runner import BACKENDS
from trimvla.runtime.bundle import plan
from trimvla.sim.episodes import MAKERS


@pytest.mark.parametrize(
    ("verb", "option", "names"),
    [
        ("eval", "env", [*MAKERS, "gymnasium"]),
        ("eval", "backend", BACKENDS),
        ("bench", "backend", BACKENDS),
        ("serve", "backend", BACKENDS),
        ("trim", "selector", SELECTORS),
        ("trim", "criterion", CRITERIA),
    ],
)
def test_the_help_of_an_option_names_them(verb: str, option: str, names: Iterable[str]) -> None:
    row = next(each for each in cli.VERBS if each.name == verb)
    text = next(field.text for field in described(row.args()) if field.name == option)
    assert [name for name in names if name not in text] == []
    assert "module:attribute" in text


def test_the_page_of_processes_names_them() -> None:
    page = PAGES["docs/reference/toml.md"]()
    assert [name for name in PROCESSES if f"## {name}\n" not in page] == []
    assert "module:attribute" in page


def test_a_plan_knows_the_selectors_that_there_are() -> None:
    """Its own list needs no torch; the table with the functions does."""
    assert set(plan.SELECTORS) <= set(SELECTORS)
    assert len(plan.SELECTORS) == 5
