"""Engines from graphs, and what was really built."""
