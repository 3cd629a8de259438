"""Switches off what libraries report to their makers about this machine.

Knows their switches; imports none of them.

A robot resolves no name of a vendor's host and writes no device id under HOME. ONNX Runtime
from 1.29 on does both once its library is loaded, OpenVINO's package when it is imported; the
switches work only before that, so `trimvla.runtime` and every other package of ours throw them when
they are imported, in every process. Child processes inherit the environment. What leaves a host
stands in docs/guides/network.md.
"""

from __future__ import annotations

import os
import sys

SWITCHES = {
    # ONNX Runtime: events to mobile.events.data.microsoft.com, files in ~/.cache
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray: usage-stats.ray.io
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which tokenizers brings
    "DO_NOT_TRACK": "1",  # what several libraries look at
}
REPORTERS = ("openvino_telemetry",)
"""Packages that only report, to www.google-analytics.com in this case.

OpenVINO has a stub for where it is absent.
"""


def switch_off() -> None:
    """Set the switches, whatever they were, and make the packages that only report look as if they
    were absent.
    """
    os.environ.update(SWITCHES)
    for name in REPORTERS:
        sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType] # None: an import raises ImportError
