"""`module:attribute`: an object of the user's own where a name is looked up; imported here alone.

Imported is what a person names: an option of a verb, or a setting in a configuration that is theirs
to start. What comes from elsewhere, such as a bundle's manifest, a recording or a message, may hold
such a name and is never handed to this module: a name in a file must not run code by surprise
(docs/guides/own-token-selector.md). Knows how to find, check and refuse an object; not what it is
for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from trimvla.runtime.errors import ConfigError, TrimvlaError

MAX_CHARACTERS = 200  # of a name


@dataclass(frozen=True)
class Reference:
    """The parts of `module:attribute` or `module:attribute:words`, as in `my_envs:make:easy`."""

    module: str
    attribute: str
    words: str = ""
    """What is handed to the object: settings in its own language."""

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def parse_reference(name: str) -> Reference | None:
    """The parts of a name of this form; None for every other name."""
    module, _, rest = name.partition(":")
    attribute, _, words = rest.partition(":")
    if len(name) > MAX_CHARACTERS or not (_is_dotted(module) and _is_dotted(attribute)):
        return None
    return Reference(module, attribute, words)


def is_own(name: str) -> bool:
    """Whether a name is `module:attribute`, without words behind it. Imports nothing."""
    reference = parse_reference(name)
    return reference is not None and str(reference) == name


def look_up(
    name: str,
    table: Mapping[str, Any],
    option: str,
    takes: tuple[str, ...],
    error: type[TrimvlaError] = ConfigError,
) -> Any:  # noqa: ANN401 - what the table holds
    """The entry of a table of functions, or the user's own function.

    Args:
        name: a key of the table, or `module:attribute`.
        table: the functions that are ours, by name.
        option: what asked, for the error: `--selector`, or a file and its field.
        takes: see `load_function`.
        error: the class to raise.
    """
    if name in table:
        return table[name]
    if not is_own(name):
        known = ", ".join(sorted(table))
        own = "or module:attribute of your own"
        raise error(f"expected one of {known}, {own}, for {option}, got {name!r}")
    return load_function(name, option, takes, error)


def load_function(
    name: str, option: str, takes: tuple[str, ...], error: type[TrimvlaError] = ConfigError
) -> Callable[..., Any]:
    """Import the module of `name` and return its function.

    Args:
        name: `module:attribute`; words behind it are left to the caller.
        option: what asked, for the error.
        takes: its parameters, by position; those that begin with `*` by name, such as `*threads`.
        error: the class to raise.

    Raises:
        error: the name is not of this form, there is no such module or attribute, importing
            failed, or what was found is no function or takes other parameters. One message that
            names `option`.
    """
    found = load_object(name, option, error)
    expected = f"a function ({', '.join(each.lstrip('*') for each in takes)})"
    if not callable(found):
        raise error(f"{option}: expected {expected}, got {_kind(found)} as {name!r}")
    if not _accepts(found, takes):
        raise error(f"{option}: expected {expected}, got {name!r} with {inspect.signature(found)}")
    return found


def load_object(name: str, option: str, error: type[TrimvlaError] = ConfigError) -> object:
    """Import the module of `name` and return its attribute; raises what `load_function` raises."""
    reference = parse_reference(name)
    if reference is None:
        form = "module:attribute, such as my_pkg.envs:make (a module's name, no path of a file)"
        raise error(f"{option}: expected {form}, got {name[:MAX_CHARACTERS]!r}")
    found: Any = load_module(reference.module, option, error)
    for part in reference.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise error(_no_attribute(option, reference, found, part)) from None
    return found


def load_module(name: str, option: str, error: type[TrimvlaError] = ConfigError) -> ModuleType:
    """Import a module, also one of the current directory, as `python -m` does."""
    _search_current_directory()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
            raise error(f"{option}: importing '{name}' failed: {blame(missing)}") from missing
        if name.endswith(".py"):
            words = f"a module's name, {name.removesuffix('.py')!r}, and no file's"
            raise error(f"{option}: expected {words}, got {name!r}") from None
        found = f"found no '{missing.name}' in the current directory or among Python's packages"
        raise error(f"{option}: expected a module '{name}', {found}") from None
    except (Exception, SystemExit) as failure:
        raise error(f"{option}: importing '{name}' failed: {blame(failure)}") from failure


def blame(failure: BaseException) -> str:
    """An exception of the user's own code as one line: its kind, its message, its file and line."""
    lines = str(failure).strip().splitlines()
    text = f"{type(failure).__name__}: {lines[0]}" if lines else type(failure).__name__
    if isinstance(failure, SyntaxError) and failure.filename is not None:
        named = "line" in text
        return text if named else f"{text} ({failure.filename}, line {failure.lineno})"
    frames = traceback.extract_tb(failure.__traceback__)
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _search_current_directory() -> None:
    """Last of all places: no file there replaces an installed module. Not under `python -P`."""
    here = os.getcwd()  # noqa: PTH109 - as `sys.path` holds it
    if not getattr(sys.flags, "safe_path", False) and here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _no_attribute(option: str, reference: Reference, found: object, part: str) -> str:
    names = [name for name in dir(found) if not name.startswith("_")]
    close = difflib.get_close_matches(part, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    owner = reference.module if isinstance(found, ModuleType) else str(reference)
    return f"{option}: expected '{part}' in '{owner}', found none{hint}"


def _kind(found: object) -> str:
    if isinstance(found, ModuleType):
        return "a module"
    return f"{type(found).__name__} {str(found)[:60]!r}"


def _accepts(function: Callable[..., Any], takes: tuple[str, ...]) -> bool:
    """Whether it can be called so; what cannot be asked may be anything."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    by_place = [None for each in takes if not each.startswith("*")]
    by_name = {each[1:]: None for each in takes if each.startswith("*")}
    try:
        signature.bind(*by_place, **by_name)
    except TypeError:
        return False
    return True
