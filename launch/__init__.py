"""Wiring: the command line, the process table and the programs it starts. Only this package may import all others."""

import trimvla.runtime  # noqa: F401 - before any library that would report to its maker
