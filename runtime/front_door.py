"""A folder's front door: the names that users import from it, each loaded when it is asked for.

`from trimvla.runtime import Policy` imports the module in which `Policy` is, and no other. Knows
nothing of what stands behind a name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def opened(
    package: str, public: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a folder's `__init__` has as its `__getattr__` and `__dir__`.

    Args:
        package: the folder, `__name__` there.
        public: name -> "module:attribute", the module relative to the folder.

    Returns:
        name -> what it names, which from then on is an attribute of the folder: AttributeError for
        a name that is not public; what an import raises (a missing extra) is raised as it is. And
        () -> all names of the folder.
    """

    def attribute(name: str) -> Any:  # noqa: ANN401 - whatever stands behind the name
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, inner = public[name].partition(":")
        found = getattr(importlib.import_module(f"{package}.{module}"), inner)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return attribute, names
