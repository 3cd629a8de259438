"""Backends: what executes a stage, behind one contract."""
