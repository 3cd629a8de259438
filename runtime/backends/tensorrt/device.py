"""Which GPU and which JetPack this machine has, and how much memory is free: what an engine is tied
to.

Queries the driver's own program and the files of Linux for Tegra; loads no CUDA. Knows no backend.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NONE = "none"
TEGRA_RELEASE = Path("/etc/nv_tegra_release")  # exists on Jetson only
BOARD_MODEL = Path("/proc/device-tree/model")
MEMORY = Path("/proc/meminfo")
QUERY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Device:
    """Names of the GPU and of the Jetson release ("L4T 36.4.3"), each "none" where there is
    none.
    """

    gpu: str = NONE
    jetpack: str = NONE

    @property
    def has_gpu(self) -> bool:
        """Whether engines can be loaded here at all."""
        return self.gpu != NONE


def find_device() -> Device:
    """This machine's."""
    jetpack = NONE if not TEGRA_RELEASE.exists() else tegra_release(TEGRA_RELEASE.read_text())
    gpu = _query_gpu("name")
    # no nvidia-smi, and in a container no release file either
    if gpu is None and BOARD_MODEL.exists():
        model = BOARD_MODEL.read_text().strip("\0\n ")
        gpu = model if jetpack != NONE or "NVIDIA" in model else None
    return Device(gpu or NONE, jetpack)


def tegra_release(text: str) -> str:
    """`# R36 (release), REVISION: 4.3, ...` -> `L4T 36.4.3`; the text's start where it is written
    in another way.
    """
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"L4T {found[1]}.{found[2]}" if found else text.strip()[:40]


def free_bytes() -> int | None:
    """Memory that a new process can have: the system's, and on a card with memory of its own no
    more than that.

    None where the system does not report it.
    """
    if not MEMORY.exists():
        return None
    system = available(MEMORY.read_text())
    card = _query_gpu("memory.free")  # "[N/A]" on Jetson, where GPU and CPU share one memory
    if card is None or not card.isdigit():
        return system
    return min(system, int(card) << 20)


def available(meminfo: str) -> int:
    """`MemAvailable` of /proc/meminfo [bytes]."""
    rows = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) << 10


def _query_gpu(field: str) -> str | None:
    """One field of the first GPU, from nvidia-smi; None where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
