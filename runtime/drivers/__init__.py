"""A robot's own driver: what it implements, and the loop that obeys commands and holds for it."""

from __future__ import annotations

from trimvla.runtime.drivers.driver import Driver, DriverConfig, drive

__all__ = ["Driver", "DriverConfig", "drive"]
