"""Policies as plain torch modules, with their checkpoints. No process, no socket."""
