"""Policies as plain torch modules, with their checkpoints. No process, no socket."""

import trimvla.runtime  # noqa: F401 - before any library that would report to its maker
