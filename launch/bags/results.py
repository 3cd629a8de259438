"""What came of making a bag of a recording, or a recording of a bag. Knows types alone."""

from __future__ import annotations

from pathlib import Path

from trimvla.launch.result import VerbResult


class BagResult(VerbResult, frozen=True, kw_only=True):
    """A rosbag2 folder that was written."""

    folder: Path
    """Where it is."""
    topics: dict[str, int]
    """Messages by ROS topic."""


class FromBagResult(VerbResult, frozen=True, kw_only=True):
    """A recording that was made of a bag."""

    file: Path
    """The recording."""
    restored: bool
    """Whether the bag was made of a recording, which is there again message by message."""
    frames: int
    """Images in it."""
    messages: int
    """Other messages in it."""
    cameras: dict[str, str]
    """Camera -> the ROS topic of its images."""
    unknown_age: int
    """Images without a usable stamp: they are there, and no age is known of them."""
    refused: dict[str, int]
    """Why messages of the bag were left out, and how many."""
