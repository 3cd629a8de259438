"""How a robot was made to move, as tables for people. Knows figures alone."""

from __future__ import annotations

from rich.table import Table

from trimvla.runtime.control.motion_quality import DimensionMotion, MotionFigures

NONE = "-"


def motion_table(found: MotionFigures, title: str) -> Table:
    """One row a dimension; flips and holds below."""
    heads = ("dimension", "jerk RMS", "jerk p99", "to a limit", "on a limit")
    table = Table(*heads, title=title, title_justify="left")
    for each in found.dimensions:
        table.add_row(*dimension_row(each))
    table.caption = f"jerk in unit/s^3; {motion_line(found)}"
    return table


def dimension_row(each: DimensionMotion) -> tuple[str, ...]:
    """One dimension's cells."""
    return (
        f"{each.dimension} {each.kind}",
        shown(each.jerk_rms),
        shown(each.jerk_p99),
        share(each.limit_distance),
        share(each.at_limit),
    )


def motion_line(found: MotionFigures) -> str:
    """Flips and holds, on one line."""
    flips = found.gripper_flips_per_minute
    gripper = "no gripper" if flips is None else f"{flips:.1f} gripper flips a minute"
    reasons = ", ".join(f"{why} {part:.1%}" for why, part in sorted(found.holds.items()))
    return f"{gripper}; held {found.held:.1%}{f' ({reasons})' if reasons else ''}"


def jerk_words(found: MotionFigures) -> str:
    """RMS of all dimensions that have one, on one line."""
    known = [
        f"{each.dimension}: {each.jerk_rms:.3g}"
        for each in found.dimensions
        if each.jerk_rms is not None
    ]
    return f"RMS {', '.join(known)} unit/s^3" if known else "too few commands"


def shown(value: float | None) -> str:
    """Three digits, or a dash."""
    return NONE if value is None else f"{value:.3g}"


def share(value: float | None) -> str:
    """Percent, or a dash."""
    return NONE if value is None else f"{value:.1%}"
