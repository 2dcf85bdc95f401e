"""The index of shards in a store, as files on this machine: fetched once a node, or made here.

CACHE/indexes/
├── 3f9c2a71…/index.json, index.columns      of the store, by their name and identity (ETag)
└── own-8b1d04e2…/                           what `shards index` made of a store that can't be written
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
from pathlib import Path

from salsa_dist.data.patience import tried
from salsa_dist.errors import UserError
from salsa_dist.new_folder import made_beside
from salsa_dist.places import Remote, cache_folder, identity


def local_copy(remote: Remote, name: str, beside: str) -> Path:
    """A folder with the file `name`, and with `beside` if the store has it, of `remote`.

    Raises:
        UserError: there is none, or it can't be read or kept here.
    """
    retry_s = remote.cache.retry_s
    try:
        info = tried(str(remote / name), retry_s, (remote / name).info, final=(PermissionError,))
        found = identity(info)
    except FileNotFoundError:
        own = own_copy(remote)
        if (own / name).is_file():
            return own
        of_hub = str(remote).startswith("hf:")
        absent = "data set or revision, or HF_TOKEN must be set" if of_hub else "bucket"
        raise UserError(
            f"{remote} has no {name}, or there is no such {absent}: name a folder of shards, or make "
            "the index of tars with 'salsa-dist shards index'"
        ) from None
    except OSError as e:
        raise UserError(f"{remote / name} can't be read ({e.strerror})") from e
    root = (remote.cache.folder or cache_folder()) / "indexes"
    folder = root / _mark(f"{remote}\n{found}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _fetch(remote, (name, beside), folder)
    except OSError as e:
        raise UserError(
            f"{remote}: its {name} can't be kept in {root} ({e.strerror}): set data.cache to a folder "
            "on this node's disk"
        ) from e
    return folder


def own_copy(remote: Remote) -> Path:
    """The path of the index that this user made for a store."""
    return cache_folder() / "indexes" / f"own-{_mark(str(remote))}"


def _fetch(remote: Remote, names: tuple[str, str], folder: Path) -> None:
    with made_beside(folder) as part:
        for name in names:
            try:
                content = tried(
                    str(remote / name),
                    remote.cache.retry_s,
                    (remote / name).read_bytes,
                    final=(PermissionError,),
                )
            except FileNotFoundError:
                continue
            except OSError as e:
                raise UserError(f"{remote / name} can't be read ({e.strerror})") from e
            (part / name).write_bytes(content)
        if not (part / names[0]).is_file():
            raise OSError(errno.ENOENT, "it was removed while it was read")


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
