"""The one way in which a file is replaced: a reader, or a machine that crashed, has the old or the new.

path.part  written, flushed to the disk  ─► renamed to path  ─► its folder flushed
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, flushed: bool = True, writer: str = "") -> Iterator[Path]:
    """A path to write beside `path`; in its place when the block ends, gone where it fails.

    Args:
        flushed: a crash of the machine loses nothing either; False for what is written often and made
            again at no cost.
        writer: names one of several that may write the same file at the same time.
    """
    part = path.with_name(f"{path.name}{'.' * bool(writer)}{writer}.part")
    try:
        yield part
        if flushed:
            _flush(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # on a read-only disk
            part.unlink(missing_ok=True)
        raise
    if flushed:
        _flush(path.parent)


def replace_file(path: Path, content: str | bytes, *, flushed: bool = True, writer: str = "") -> None:
    """Write `path` whole or not at all; see `written_whole`."""
    with written_whole(path, flushed=flushed, writer=writer) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
