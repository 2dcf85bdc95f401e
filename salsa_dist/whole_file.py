"""The one way in which a file is replaced: a reader, or a machine that crashed, has the old or the new.

path.part  written, flushed to the disk  ─► renamed to path  ─► its folder flushed

Folders go the same way, by `put`: see `new_folder.py`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from salsa_dist.full_disk import names


@contextmanager
def written_whole(path: Path, *, flushed: bool = True, writer: str = "") -> Iterator[Path]:
    """A temporary path; renamed to `path` when the block ends, removed after an error.

    Args:
        flushed: a crash of the machine loses nothing either; False for what is written often and made
            again at no cost.
        writer: names one of several that may write the same file at the same time.
    """
    if not path.name:  # "." or "/": no other name lies beside it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    part = path.with_name(f"{path.name}{'.' * bool(writer)}{writer}.part")
    try:
        with names(path):
            yield part
            put(part, path, flushed=flushed)
    except BaseException:
        with suppress(OSError):  # on a read-only disk
            part.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: str | bytes, *, flushed: bool = True, writer: str = "") -> None:
    """Write `path` whole or not at all; see `written_whole`."""
    with written_whole(path, flushed=flushed, writer=writer) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def put(part: Path, path: Path, *, flushed: bool = True) -> None:
    """Give `part`, a finished file or folder, its final name, after all of it is on the disk."""
    if flushed:
        flush(part)
    os.replace(part, path)
    if flushed:
        _flush_one(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all below it, is on the disk."""
    for one in (*path.rglob("*"), path):
        if not one.is_symlink():
            _flush_one(one)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
