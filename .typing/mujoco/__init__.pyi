"""MuJoCo's names come from compiled modules without stubs; for type checkers they are all Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
