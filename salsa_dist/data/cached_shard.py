"""One shard's file in the cache: its fetched blocks, and which blocks these are.

    its bytes    a sparse file: what was not fetched yet takes no room
    head         JSON: the machine's boot, the object's identity (ETag) at the start
    marks        a byte a block of 64 KiB: 1 where it is there; first: verified

A block's mark is written after the block. What a machine that went down may have torn is told by the
boot. Processes and threads that want the same blocks lock them (`F_OFD_SETLK`, which ends with its
holder).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from salsa_dist.data import last_read

BLOCK = 1 << 16
MOST_A_REQUEST = 8 << 20  # bytes
_HEAD = 1024  # bytes, the mark of a verified shard behind it
_LOCKED_S = 0.01  # between two looks at what another process fetches


class CachedShard:
    """A shard's file in the cache, open.

    It is not written by `whole_file.py`: it grows block by block under its name, read by others while
    it does. `sound` says what of it counts after a crash.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size = fd, size
        self.blocks = -(-size // BLOCK)
        self._head = self.blocks * BLOCK
        self._marks = self._head + _HEAD + 1
        self.inode = os.fstat(fd).st_ino
        self._facts: dict[str, Any] = {}
        with suppress(ValueError):
            self._facts = json.loads(os.pread(fd, _HEAD, self._head).rstrip(b"\0") or b"{}")

    @classmethod
    def make(cls, path: Path, size: int, found: str, suspect: bool) -> None:
        """Raises: FileExistsError: another was faster; OSError."""
        part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            cls._begin(fd, size, found, suspect)
            os.link(part, path)
        finally:
            os.close(fd)
            part.unlink(missing_ok=True)

    @classmethod
    def in_memory(cls, size: int, found: str, suspect: bool) -> CachedShard:
        fd = os.memfd_create("salsa-shard", os.MFD_CLOEXEC)
        cls._begin(fd, size, found, suspect)
        return cls(fd, size)

    @staticmethod
    def _begin(fd: int, size: int, found: str, suspect: bool) -> None:
        blocks = -(-size // BLOCK)
        os.truncate(fd, blocks * BLOCK + _HEAD + 1 + blocks)
        head = {"boot": _boot(), "identity": found[: _HEAD // 4], "suspect": suspect}
        os.pwrite(fd, json.dumps(head).encode(), blocks * BLOCK)

    @property
    def identity(self) -> str:
        return str(self._facts["identity"])

    @property
    def suspect(self) -> bool:
        """Whether it counts only when all of it is verified."""
        return bool(self._facts["suspect"])

    @property
    def verified(self) -> bool:
        return os.pread(self.fd, 1, self._marks - 1) == b"\1"

    def set_verified(self) -> None:
        os.fsync(self.fd)
        os.pwrite(self.fd, b"\1", self._marks - 1)

    def sound(self) -> bool:
        """Whether it is a file of ours, and no machine went down while it was written."""
        whole = os.fstat(self.fd).st_size == self._marks + self.blocks
        return whole and "identity" in self._facts and (self.verified or self._facts["boot"] == _boot())

    def marks(self, first: int, last: int) -> bytes:
        return os.pread(self.fd, last - first, self._marks + first)

    def write(self, block: int, raw: bytes) -> None:
        at, left = block * BLOCK, memoryview(raw)
        while left:
            done = os.pwrite(self.fd, left, at)
            at, left = at + done, left[done:]
        os.pwrite(self.fd, b"\1" * -(-len(raw) // BLOCK), self._marks + block)

    def take(self, other: CachedShard) -> None:
        """The blocks that another has."""
        for block, mark in enumerate(other.marks(0, other.blocks)):
            if mark:
                own = min(BLOCK, self.size - block * BLOCK)
                self.write(block, os.pread(other.fd, own, block * BLOCK))

    def sha256(self) -> str:
        digest, at = hashlib.sha256(), 0
        while at < self.size:
            raw = os.pread(self.fd, min(1 << 20, self.size - at), at)
            digest.update(raw)
            at += len(raw)
        return digest.hexdigest()


def gaps(marks: bytes, first: int) -> list[tuple[int, int]]:
    """Runs of blocks `[a, b)` that are missing, each of one request at most."""
    found: list[tuple[int, int]] = []
    most = MOST_A_REQUEST // BLOCK
    for block, mark in enumerate(marks, first):
        if mark:
            continue
        if found and found[-1][1] == block and block - found[-1][0] < most:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
    return found


@contextmanager
def locked(file: CachedShard, first: int, last: int, most_s: float) -> Iterator[None]:
    """Lock blocks against other threads and processes. After `most_s`, continue without a lock: at
    worst, the same bytes are fetched twice."""
    # Of an open of its own: threads share the file's.
    fd = os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(first, last))
                break
            except BlockingIOError:
                last_read.now()  # whoever holds the lock may ask a store again and again
                time.sleep(_LOCKED_S)
        yield
    finally:
        os.close(fd)


def _flock(first: int, last: int) -> bytes:
    """C's `struct flock` for an exclusive lock on the bytes that stand for blocks."""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
