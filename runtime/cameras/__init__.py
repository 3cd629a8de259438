"""Cameras: where images come from, and the process that publishes them."""
