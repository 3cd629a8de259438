"""`trimvla report`: the page on success and latency, from kept results; `launch.evaluation.page`
makes it.
"""

from __future__ import annotations

from trimvla.launch.evaluation.page import Args, run

__all__ = ["Args", "run"]
