"""Policies as plain torch modules, with their checkpoints. No process, no socket."""

from trimvla.runtime import quiet

quiet.switch_off()  # before any library is imported that would report to its maker
