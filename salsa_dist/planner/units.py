"""Bytes and seconds, as people write and read them: `80GB`, `24 GiB`, `1.25 MB`, `12.6 ms`."""

from __future__ import annotations

import re

from salsa_dist.errors import UserError


def size(count: float) -> str:
    """Bytes for people, in powers of 1,000: `80 GB`, `1.25 MB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:.3g} {unit}"
                if count < 999.5 * scale
                else f"{count / scale:,.0f} {unit}"
            )
    return f"{count:.0f} B"


def seconds(count: float) -> str:
    """Seconds for people."""
    return f"{count:.3g} s" if count >= 1 else f"{count * 1e3:.3g} ms"


def parse_size(text: str) -> float:
    """Bytes of `80GB`, `24 GiB`, `512MB` or a plain number."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kMGT]?)(i?)B?\s*", text)
    if match is None:
        raise UserError(f"{text!r} is not a size: write it like 80GB or 24GiB")
    power = " kMGT".index(match[2] or " ")
    return float(match[1]) * (1024 if match[3] else 1000) ** power
