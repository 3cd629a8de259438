"""Robots and cameras that need no hardware, on the same topics."""
