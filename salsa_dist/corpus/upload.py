"""New shards in a store: made in a folder of this machine, then sent, the index last.

So whoever finds an index finds all that it names, and what is stopped while it is sent is sent again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salsa_dist.data.index import FILE
from salsa_dist.data.patience import tried
from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside
from salsa_dist.places import Folder, Remote, cache_folder


@contextmanager
def made_at(out: Folder) -> Iterator[Path]:
    """A folder to write to, which is `out` when the block ends well.

    Raises:
        UserError: the store can't be written.
    """
    if isinstance(out, Path):
        with made_beside(out) as folder:
            yield folder
        return
    scratch = cache_folder() / "building"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        yield Path(made)
        upload(Path(made), out)


def building_folder(out: Remote) -> Path:
    """The folder on this machine in which a build for a store is made; the same for each attempt."""
    mark = hashlib.sha256(str(out).encode()).hexdigest()[:16]
    return cache_folder() / "building" / f"{out.name}-{mark}"


def upload(folder: Path, out: Remote) -> None:
    """Send all files of `folder`, the index last. Raises: UserError."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: path == folder / FILE)
    for path in files:
        to = out
        for part in path.relative_to(folder).parts:
            to = to / part
        try:
            tried(str(to), out.cache.retry_s, to.put, path, final=(PermissionError,))
        except OSError as e:
            raise UserError(f"{to} can't be written ({e.strerror})") from e


def is_there(out: Folder) -> bool:
    """Whether `out` holds anything. Raises: UserError: a store can't say."""
    if isinstance(out, Path):
        return out.exists()
    try:
        return bool(out.files())
    except FileNotFoundError:
        return False
    except OSError as e:
        raise UserError(f"{out} can't be read ({e.strerror})") from e


def remove_built(out: Remote) -> None:
    """Remove what `building_folder` names."""
    shutil.rmtree(building_folder(out), ignore_errors=True)
