"""Formats of numbers on pages and in tables."""

from __future__ import annotations

from salsa_dist.planner.units import size


def percent(fraction: float | None) -> str:
    """One decimal, without the % sign; a dash if unknown."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def digits(fraction: float | None) -> str:
    """In %, with all digits that may differ; a dash if unknown."""
    return "–" if fraction is None else f"{100 * fraction:.6f}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


FILTERS = {
    "percent": percent,
    "digits": digits,
    "size": size,
    "duration": duration,
    "number": "{:,}".format,
}
"""For templates."""
