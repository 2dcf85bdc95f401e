"""Small files that are read while others write them: a reader sees the old text or the new one."""

from __future__ import annotations

from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Write `path` whole or not at all; not flushed to the disk, which a state of a run must be."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
