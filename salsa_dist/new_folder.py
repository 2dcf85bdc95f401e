"""A folder that appears under its name, or replaces another, only when it is whole and on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from salsa_dist.full_disk import names
from salsa_dist.whole_file import flush, put


@contextmanager
def made_beside(target: Path) -> Iterator[Path]:
    """A new folder, which is renamed to `target` at the end, or removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with names(target):
            yield folder
            folder.chmod(0o755)
            put(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into a new folder, and replace `folder` by it.

    A folder that is not empty can't be replaced in one step. Killed between the two, there is the old
    one under `.NAME.old` and the new one under `.NAME.part`, both whole.
    """
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with names(folder):
            part.mkdir()
            for name, content in files.items():
                (part / name).write_bytes(content)
            flush(part)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        try:
            put(part, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
