"""Reading tar files that others made: nothing is written outside, nothing absurd is believed.

    members(path) ──► Member: name, size, offset, end, read()      in the order of the file
    unpack(path, folder, wanted)                                   plain files only, their own names

Bounded are: bytes taken from the file at a time (a header may claim gigabytes), bytes unpacked for a
byte packed (bombs), members, and the length of a name.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.places import Folder

MAX_READ = 1 << 30  # bytes of one member
MAX_MEMBERS = 20_000_000
MAX_NAME = 1000
# Speech hardly shrinks in gzip; long silence does, and small archives may hold any.
MAX_RATIO = 50
FREE_BYTES = 1 << 30

_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One entry of a tar; its headers and content are bytes `[offset, end)` of the unpacked tar."""

    name: str
    size: int
    offset: int
    end: int
    plain: bool
    read: Callable[[], bytes]


class DamagedTar(UserError):
    """A tar that ends too early or isn't one; its text says where and how."""


def unsafe_name(name: str) -> str | None:
    """Why `name` can't be a file in a folder of ours; None where it can."""
    path = PurePosixPath(name)
    if not name or len(name) > MAX_NAME:
        return "is empty or too long"
    if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
        return "points outside its folder"
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in name):
        return "has control characters or is not UTF-8"
    return None


def members(path: Folder) -> Iterator[Member]:
    """The entries of a tar, with or without gzip; content is read only on request.

    Raises:
        DamagedTar: it is cut off, no tar, or larger than anyone would make it.
    """
    packed = path.name.endswith((".gz", ".tgz"))
    limit = max(FREE_BYTES, MAX_RATIO * path.stat().st_size) if packed else None
    try:
        with (
            closing(_opened(path, packed)) as raw,
            tarfile.open(fileobj=_Bounded(raw, limit), mode="r:") as tar,
        ):
            end = 0
            for count, info in enumerate(tar, 1):
                if count > MAX_MEMBERS:
                    raise DamagedTar(f"has more than {MAX_MEMBERS} members")
                if info.size > MAX_READ:
                    raise DamagedTar(f"claims {info.size} bytes for {info.name[:80]!r}")
                plain = info.isreg() and not info.issparse()
                # Only plain files have content; a link's size is no bytes in the tar.
                size = info.size if plain else 0
                end = info.offset_data + -(-size // _BLOCK) * _BLOCK
                read = _reader(tar, info)
                yield Member(info.name, size, info.offset, end, plain, read)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
            _ends_well(raw, end)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as e:
        raise DamagedTar(f"is damaged or no tar ({e})") from e


def _opened(path: Folder, packed: bool) -> Any:
    if packed:
        return gzip.open(path if isinstance(path, Path) else path.open("rb"))
    return path.open("rb")


def unpack(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the plain files whose names are `wanted` below `folder`; others are skipped.

    Raises:
        UserError: a name that points outside the folder, or a damaged or absurd archive.
    """
    try:
        for member in members(path):
            if why := unsafe_name(member.name):
                raise UserError(f"{path}: {member.name[:80]!r} {why}: don't use this archive")
            if member.plain and wanted(member.name):
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(member.read())
    except DamagedTar as e:
        raise UserError(f"{path} {e}: fetch it again") from e
    except OSError as e:
        raise UserError(f"{path} can't be unpacked into {folder} ({e.strerror})") from e


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        content = tar.extractfile(info)
        try:
            return content.read() if content else b""
        except (tarfile.TarError, EOFError) as e:
            raise DamagedTar(f"is cut off in {info.name[:80]!r}") from e
        except (zlib.error, gzip.BadGzipFile) as e:
            raise DamagedTar(f"is damaged in {info.name[:80]!r}") from e

    return read


def _ends_well(raw: Any, end: int) -> None:
    """tarfile takes a damaged header for the end; a whole tar ends with a block of zeros."""
    raw.seek(end)
    block = raw.read(_BLOCK)
    if len(block) < _BLOCK:
        raise DamagedTar(f"is cut off: it ends at byte {end + len(block)} without an end mark")
    if block.strip(b"\0"):
        raise DamagedTar(f"has a damaged header at byte {end}")


class _Bounded(io.RawIOBase):
    """A file that gives at most `MAX_READ` bytes at a time, and ends with an error behind `limit`."""

    def __init__(self, file: Any, limit: int | None) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise DamagedTar(f"claims a header or file of {size} bytes")
        raw: bytes = self._file.read(size)
        self._check()
        return raw

    def seek(self, offset: int, whence: int = 0) -> int:
        if self._limit is not None and offset > self._limit:
            raise DamagedTar(f"unpacks to more than {self._limit} bytes")
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def _check(self) -> None:
        if self._limit is not None and self._file.tell() > self._limit:
            raise DamagedTar(f"unpacks to more than {self._limit} bytes")
