"""Places of shards: a folder, an object store or a hub, all with the same interface.

    ~/shards/mine, file:///data/mine            Path
    s3://bucket/prefix   gs://…   az://…        Remote, read and written by fsspec and its drivers
    hf://datasets/user/name   https://host/…    Remote

`Remote` has the few methods of `Path` that shards need, so most code need not know which it has.
Whatever a driver raises becomes an `OSError` whose `strerror` is a clean line: without query strings,
which may hold signatures. Names with credentials in them are refused, so nothing that shows or keeps a
name can give them away.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Union, cast

from salsa_dist.errors import UserError
from salsa_dist.store_errors import CleanFile, cleanly

# The extra that brings the driver of a scheme; None: nothing beside fsspec is needed.
EXTRAS = {
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
    "https": "hub",
    "http": "hub",
    "hf": "hub",
    "memory": None,
}
CONNECT_S, ANSWER_S = 10, 30  # of one try
CONNECTIONS = 40  # of a process to S3: more than `fetching.py` has threads that ask
_AZURE = ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME")  # by priority
_BLOCK = 8 << 20  # bytes of one request where a file is read forward
_commits: dict[str, str] = {}  # by repository of a hub and revision
_OF_REVISION = re.compile(r"datasets/[^/?#@]+/[^/?#@]+@[\w.%-]+(?:/[^?#@]*)?")


@dataclass(frozen=True)
class Cache:
    """How shards of a store are cached on this node's disk; see `shard_cache.py`.

    Attributes:
        folder: None: `cache_folder()`.
        bytes: what it may take in all.
        retry_s: seconds for which a read that fails is tried again.
    """

    folder: Path | None = None
    bytes: int = 64 * 10**9
    retry_s: float = 120.0


@dataclass(frozen=True)
class Size:
    """The result of `Remote.stat`."""

    st_size: int


@dataclass(frozen=True)
class Remote:
    """A folder or a file in a store; `url` has a scheme and no credentials."""

    url: str
    cache: Cache = Cache()

    def __truediv__(self, name: str) -> Remote:
        return replace(self, url=f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def exists(self) -> bool:
        """Raises: OSError: the store can't say."""
        try:
            self.info()
        except FileNotFoundError:
            return False
        return True

    is_file = exists

    def is_dir(self) -> bool:
        """Whether there are files below; True if the place cannot be listed. Raises: OSError."""
        return self._lists_nothing or any(True for _ in self.files())

    def info(self) -> dict[str, Any]:
        """The store's facts about a file; `identity` and `size` read them. Raises: OSError."""
        fs, path = self.driver()
        return cleanly(lambda: dict(fs.info(path)))

    def stat(self) -> Size:
        """Raises: OSError."""
        return Size(int(self.info().get("size") or 0))

    def files(self, ending: str = "") -> list[str]:
        """The paths of all files below with that ending, relative to it. Raises: OSError."""
        if self._lists_nothing:
            return []
        fs, path = self.driver()
        found = cleanly(lambda: [str(name).lstrip("/") for name in fs.find(path)])
        start = path.strip("/") + "/"
        return sorted(
            n.removeprefix(start) for n in found if n.startswith(start) and n.endswith(ending)
        )

    def open(self, mode: str = "rb") -> BinaryIO:
        """To read forward. Raises: OSError, here and while it is read."""
        assert mode == "rb"
        fs, path = self.driver()
        how = {"block_size": _BLOCK, "cache_type": "readahead"}
        return cast(BinaryIO, CleanFile(cleanly(lambda: fs.open(path, "rb", **how))))

    def read_bytes(self) -> bytes:
        """Raises: OSError."""
        fs, path = self.driver()
        return cleanly(lambda: bytes(fs.cat_file(path)))

    def put(self, file: Path) -> None:
        """Write the content of a local file to this place. Raises: OSError."""
        fs, path = self.driver(to_write=True)
        if self.url.startswith("memory:"):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        cleanly(lambda: fs.put_file(str(file), path))

    def driver(self, *, to_write: bool = False) -> tuple[Any, str]:
        """The file system of fsspec, and this place's path in it.

        Args:
            to_write: or else, on a hub, the path is of one commit.

        Raises:
            UserError: the driver is not installed.
            OSError: it has no credentials, or the hub does not tell its commit.
        """
        scheme = self.url.partition(":")[0]
        # What another process writes is seen at once, and a try that fails is tried again, and counted,
        # in one place: `patience.py`.
        options: dict[str, Any] = {"use_listings_cache": False}
        if scheme == "s3":
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": CONNECT_S,
                "read_timeout": ANSWER_S,
                "max_pool_connections": CONNECTIONS,
                # Some servers send the checksum of the whole object with a part of it, as rclone does.
                "response_checksum_validation": "when_required",
            }
        elif scheme == "az":
            options |= {"connection_timeout": CONNECT_S, "read_timeout": ANSWER_S}
        try:
            if scheme in ("http", "https", "gs"):
                from aiohttp import ClientTimeout

                timeout = ClientTimeout(total=None, connect=CONNECT_S, sock_read=ANSWER_S)
                options |= (
                    {"requests_timeout": timeout}
                    if scheme == "gs"
                    else {"client_kwargs": {"timeout": timeout}}
                )
            if scheme == "gs":
                # It prints its tries and their tracebacks, with the names that it asked for.
                logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            fs, path = self._of_driver(options)
        except ImportError as e:
            raise UserError(
                f"{self}: the driver of {scheme}:// can't be imported ({type(e).__name__}): "
                f"pip install 'salsa-dist[{EXTRAS.get(scheme)}]'"
            ) from e
        if scheme == "s3":
            fs.retries = 1
        if scheme == "hf":
            if to_write:
                _commits.clear()
            else:
                path = cleanly(lambda: _at_commit(fs, path))
        return fs, str(path)

    def _of_driver(self, options: dict[str, Any]) -> tuple[Any, str]:
        import fsspec.core

        try:
            return cleanly(lambda: fsspec.core.url_to_fs(self.url, **options))
        except OSError:
            if not self.url.startswith("az:"):
                raise
        # It wants an account even to read what is public. What it says may repeat a variable's value.
        used = next((name for name in _AZURE if os.environ.get(name)), None)
        raise PermissionError(
            errno.EACCES,
            f"the driver can't connect by {used}: look at its format"
            if used
            else f"no credentials: set {_AZURE[0]}, or {_AZURE[1]}",
        )

    @property
    def _lists_nothing(self) -> bool:
        return self.url.startswith(("http:", "https:"))


Folder = Union[Path, Remote]  # noqa: UP007 - where shards lie


def place(text: str | Path | Remote, cache: Cache = Cache()) -> Folder:
    """The place that a name stands for.

    Raises:
        UserError: an unknown scheme, or credentials in the name.
    """
    if isinstance(text, Path | Remote):
        return text
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Path(os.path.expanduser(text))
    shown = f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"
    if scheme == "file":
        return Path(rest)
    if scheme not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise UserError(f"{shown}: {scheme}:// is unknown; known are {known} and folders")
    of_revision = scheme == "hf" and _OF_REVISION.fullmatch(rest)
    if re.search("[?#@]", rest) and not of_revision:
        raise UserError(
            f"{shown}: a name of shards has no '?', '#' or '@'; credentials come from the environment "
            "or a profile, as the store's own tools have them"
        )
    if not rest.strip("/"):
        raise UserError(f"{shown}: name a bucket, or a folder in it")
    return Remote(f"{scheme}://{rest.rstrip('/')}", cache)


def absolute(folder: Folder) -> str:
    """A name that means the same from any folder of this machine."""
    return str(folder.absolute()) if isinstance(folder, Path) else str(folder)


def cache_folder() -> Path:
    """The folder of this user's caches: `$SALSA_DIST_CACHE`, else in the user's cache folder."""
    if named := os.environ.get("SALSA_DIST_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "salsa-dist"


def _at_commit(fs: Any, path: str) -> str:
    """A path on a hub, as of the commit that this process saw first.

    So a push changes nothing while a run reads. Of a branch, the driver would keep what it was told of
    a file first, whatever its options say, and read bytes of the new one.
    """
    named = "@" in path
    # Some servers answer only if a revision is asked for.
    found = fs.resolve_path(path, **({} if named else {"revision": "main"}))
    name = getattr(found, "repo_id", None)
    if name is None:  # a bucket, which has no commits
        fs.invalidate_cache(path)
        return path
    key = f"{found.repo_type} {name} {found.revision}"
    if key not in _commits:
        from huggingface_hub import HfApi

        told = HfApi().repo_info(name, repo_type=found.repo_type, revision=found.revision)
        _commits[key] = str(told.sha)
    bare = re.sub("@[^/]+", "", path) if named else path
    return str(fs.resolve_path(bare, revision=_commits[key]).unresolve())


def identity(info: dict[str, Any]) -> str:
    """A value that changes when a file is replaced, if the store provides one."""
    names = ("ETag", "etag", "generation", "blob_id", "md5Hash", "mtime", "Last-Modified", "created")
    told = {name: str(info[name]) for name in names if info.get(name)}
    # One that is made from the content, where there is one: a copy is no other file.
    first = next(iter(told.items()), ("", ""))
    return f"{first[0]}={first[1]} {info.get('size')}"
