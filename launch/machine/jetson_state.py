"""The state that a Jetson reports: release, power mode, clocks, temperatures.

Most of it any Linux reports too.

Reads files below a root and changes nothing; what is not there is None. Names in one line what
slows the board down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trimvla.runtime.backends.tensorrt.device import tegra_release
from trimvla.runtime.inference.board_sensors import ROOT, read, temperatures

HOT_C = 90.0  # Orin's modules begin to slow down a little above


@dataclass(frozen=True)
class Clock:
    """One clock [MHz]: where it stands, between what the governor may move it, and the most that it
    could reach.
    """

    name: str
    now_mhz: float | None
    least_mhz: float | None
    allowed_mhz: float | None
    most_mhz: float | None

    @property
    def capped(self) -> bool:
        """Whether the power mode keeps it below what it could reach."""
        return bool(self.allowed_mhz and self.most_mhz and self.allowed_mhz < self.most_mhz)

    @property
    def loose(self) -> bool:
        """Whether the governor may lower it; `jetson_clocks` ends that."""
        return (
            self.least_mhz is not None
            and bool(self.allowed_mhz)
            and self.least_mhz < (self.allowed_mhz or 0)
        )


@dataclass(frozen=True)
class State:
    """Of one board; None and empty where it does not report it."""

    release: str | None
    power_mode: str | None
    fastest_mode: tuple[int, str] | None
    """Number and name of this board's mode without a power limit: 0 on AGX Orin, 2 on Orin Nano."""
    clocks: tuple[Clock, ...]
    hottest: tuple[str, float] | None
    """Name and temperature [degrees Celsius] of the hottest zone."""

    @property
    def is_jetson(self) -> bool:
        """Whether this is one at all."""
        return self.release is not None

    def advice(self) -> list[str]:
        """What slows this board down, one line each; nothing on other machines."""
        if not self.is_jetson:
            return []
        lines = []
        if (
            self.power_mode is not None
            and self.fastest_mode is not None
            and self.power_mode != self.fastest_mode[1]
        ):
            number, name = self.fastest_mode
            capped = [
                f"{c.name} may reach {c.allowed_mhz:.0f} of {c.most_mhz:.0f} MHz"
                for c in self.clocks
                if c.capped
            ]
            why = ", ".join(
                (f"the power mode is {self.power_mode}, the fastest is {name}", *capped)
            )
            lines.append(f"nvpmodel -m {number}   ({why})")
        loose = [
            f"{c.name} {c.least_mhz:.0f} to {c.allowed_mhz:.0f} MHz" for c in self.clocks if c.loose
        ]
        if loose:
            lines.append(
                f"jetson_clocks   (clocks follow the load: {', '.join(loose)}; after the power"
                " mode)"
            )
        if self.hottest is not None and self.hottest[1] >= HOT_C:
            lines.append(
                f"cool the board   ({self.hottest[0]} is at {self.hottest[1]:.0f} degrees: it slows"
                " down)"
            )
        return lines


def read_state(root: Path = ROOT) -> State:
    """This machine's state, from the files below `root`."""
    release = read(root / "etc/nv_tegra_release")
    zones = sorted(temperatures(root), key=lambda zone: zone[1])
    return State(
        release=None if release is None else tegra_release(release),
        power_mode=power_mode(root),
        fastest_mode=fastest_mode(root),
        clocks=tuple(clocks(root)),
        hottest=zones[-1] if zones else None,
    )


def power_mode(root: Path) -> str | None:
    """Name of the mode that nvpmodel set, or its number where the table of names is not
    readable.
    """
    found = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return None
    number = int(found[1])
    return power_modes(root).get(number, str(number))


def fastest_mode(root: Path) -> tuple[int, str] | None:
    """The mode called MAXN, or MAXN_SUPER; None on a board whose table has none."""
    return next(
        ((number, name) for number, name in power_modes(root).items() if "MAXN" in name), None
    )


def power_modes(root: Path) -> dict[int, str]:
    """Number -> name, from nvpmodel's table."""
    named = re.findall(
        r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\w+)", read(root / "etc/nvpmodel.conf") or ""
    )
    return {int(number): name for number, name in named}


def clocks(root: Path) -> Iterator[Clock]:
    """CPU 0 and the GPU, where the kernel shows them."""
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    if cpu.is_dir():
        yield Clock("CPU", *(megahertz(cpu / name, 1e3) for name in CPU_FILES))
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|gv11b|ga10b|gb10b", device.name):
            now, least, allowed = (
                megahertz(device / name, 1e6) for name in ("cur_freq", "min_freq", "max_freq")
            )
            steps = [
                int(step) / 1e6 for step in (read(device / "available_frequencies") or "").split()
            ]
            yield Clock("GPU", now, least, allowed, max(steps, default=allowed))


CPU_FILES = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq")


def megahertz(path: Path, unit: float) -> float | None:
    """A frequency that is written in units of so many per MHz."""
    text = read(path)
    return int(text) / unit if text and text.isdigit() else None
