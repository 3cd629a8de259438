"""What a board feels: the hottest zone's temperature and the power it draws, where the kernel shows
them.

Reads Linux' thermal zones and the power monitors of Jetson modules (INA3221, as `hwmon`) below a
root; changes nothing. What is not there is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
MONITORS = ("ina3221", "ina3221x")
# what names a rail that feeds the module
TOTALS = ("VDD_IN", "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


@dataclass(frozen=True)
class Board:
    """One reading."""

    temperature_c: float | None = None
    power_w: float | None = None


def read_board(root: Path = ROOT) -> Board:
    """From the files below `root`."""
    hottest = max((degrees for _, degrees in temperatures(root)), default=None)
    rails = dict(powers(root))
    # Orin NX and Nano measure the whole
    power = rails.get("VDD_IN", sum(rails.values()) if rails else None)
    return Board(hottest, power)


def temperatures(root: Path = ROOT) -> Iterator[tuple[str, float]]:
    """Every thermal zone's name and temperature [degrees Celsius]; zones that are off are passed
    over.
    """
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        thousandths = number(zone / "temp")
        if thousandths is not None and thousandths > 0:
            yield read(zone / "type") or zone.name, thousandths / 1e3


def powers(root: Path = ROOT) -> Iterator[tuple[str, float]]:
    """Every rail of a power monitor that feeds the module: name and power [W]."""
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read(monitor / "name") not in MONITORS:
            continue
        for label in sorted(monitor.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            rail = read(label)
            volts = number(monitor / f"in{channel}_input")
            amperes = number(monitor / f"curr{channel}_input")
            if rail in TOTALS and volts is not None and amperes is not None:
                yield rail, volts * amperes / 1e6


def number(path: Path) -> int | None:
    """The integer in a small file."""
    text = read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def read(path: Path) -> str | None:
    """A small file's text; None where it cannot be read."""
    try:
        return path.read_text().strip("\0\n ")
    except OSError:
        return None
