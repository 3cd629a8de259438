"""`trimvla export`: a trained run or an official checkpoint -> a bundle; `launch.exporting` does
the work.
"""

from __future__ import annotations

from trimvla.launch.exporting.options import ExportArgs as Args
from trimvla.launch.exporting.work import run

__all__ = ["Args", "run"]
