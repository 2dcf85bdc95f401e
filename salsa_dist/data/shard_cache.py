"""Shards of a store on this node's disk: what is read of one is fetched once, for all that run here.

    FOLDER/                       data.cache; bounded by data.cache_gb
    ├── 3f9c2a71….shard           one a shard, by its name and the sha256 that the index has of it
    │   ├── its bytes             a sparse file: what was not fetched yet takes no room
    │   ├── head                  JSON: the machine's boot, the object's identity (ETag) at the start
    │   └── marks                 a byte a block of 64 KiB: 1 where it is there; first: verified
    └── evict.lock                held by whoever removes the shards used longest ago

Processes and threads that want the same blocks lock them (`F_OFD_SETLK`, which ends with its holder);
one fetches, the others find them. A block's mark is written after the block. What a machine that went
down may have torn is told by the boot and fetched again. A shard whose blocks are all there is checked
by its sha256, once. One that was replaced while a run goes on, by its identity, is fetched whole and
checked before another sample of it is used. A sample is checked by its CRC-32, where the index has it,
each time that it is read. A shard that is removed stays readable to whoever has it open. Where the disk
is full, blocks are held in memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.patience import Patience
from salsa_dist.data.shards import MAX_BYTES, BadSample, Bytes, read_open, runs
from salsa_dist.data.store_object import AnotherObject, Replaced, StoreObject, opened
from salsa_dist.errors import UserError
from salsa_dist.places import ANSWER_S, Cache, Remote, cache_folder

T = TypeVar("T")
BLOCK = 1 << 16
MOST_A_REQUEST = 8 << 20  # bytes
AT_ONCE = 16  # requests of a process, beside as many ahead
_HEAD = 1024  # bytes, the mark of a verified shard behind it
_LOCKED_S = 0.01  # between two looks at what another process fetches


@dataclass
class Traffic:
    """What this process had of stores.

    Attributes:
        requests: that were sent, heads included.
        fetched_bytes: that came.
        cached_bytes: that were asked for and were there.
        retries: tries after one that failed.
        waited_s: seconds for which a reader had to wait.
    """

    requests: float = 0
    fetched_bytes: float = 0
    cached_bytes: float = 0
    retries: float = 0
    waited_s: float = 0

    def since(self, before: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


class NotAsIndexed(AnotherObject):
    """The object has another content than the index says."""


_counting = threading.Lock()
_traffic = Traffic()
_caches: dict[Cache, ShardCache] = {}


def traffic() -> Traffic:
    """So far, of this process."""
    with _counting:
        return Traffic(*(getattr(_traffic, f.name) for f in fields(_traffic)))


def cache_of(settings: Cache) -> ShardCache:
    """This process's view of a cache."""
    with _counting:
        if settings not in _caches:
            _caches[settings] = ShardCache(settings)
        return _caches[settings]


class ShardCache:
    """Reads shards of a store through a folder on this node."""

    def __init__(self, settings: Cache) -> None:
        self.settings = settings
        self.folder = (settings.folder or cache_folder()) / "shards"
        self._wanted, self._ahead = _Threads(), _Threads()
        self._opened: dict[str, list[StoreObject]] = {}
        self._patience = Patience()
        self._final: dict[str, str] = {}  # by shard, why it can't be used
        self._unchecked = settings.bytes  # bytes written since the folder's size was looked at
        self._lock = threading.Lock()

    def usable_folder(self) -> Path:
        """The folder, which can be written. Raises: UserError: the folder can't be made or written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{os.getpid()}.probe"
            try:
                probe.write_bytes(bytes(BLOCK))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as e:
            raise UserError(
                f"the cache {self.folder} can't be written ({e.strerror}): set data.cache to a folder "
                "on this node's disk"
            ) from e
        return self.folder

    def read(
        self, folder: Remote, wanted: Sequence[tuple[Shard, Sequence[Entry]]]
    ) -> Iterator[tuple[Shard, Entry, Bytes | BadSample]]:
        """The bytes of samples of several shards, or why a sample has none; as `shards.read_ranges`.

        All are fetched at once.
        """
        retry_s = self.settings.retry_s
        coming = [
            (shard, entries, self._wanted.submit(self._fetch, folder, shard, entries, retry_s))
            for shard, entries in wanted
        ]
        for shard, entries, future in coming:
            path = folder / shard.path
            started = time.monotonic()
            try:
                fd = future.result()
            except OSError as e:
                why = f"can't be read ({e.strerror or e})"
                yield from ((shard, x, BadSample(path, x.key, why, "shard")) for x in entries)
                continue
            finally:
                _add(waited_s=time.monotonic() - started)
            try:
                for entry, raw in read_open(fd, path, entries):
                    yield shard, entry, _as_indexed(raw, path, entry)
            finally:
                os.close(fd)

    def start(self, folder: Remote, shard: Shard, entries: Sequence[Entry]) -> None:
        """Begin to fetch what will be asked for soon; what fails is tried again when it is."""

        def ahead() -> None:
            with suppress(OSError):
                os.close(self._fetch(folder, shard, entries, 0.0))

        self._ahead.submit(ahead)

    def doubt(self, folder: Remote, shard: Shard) -> None:
        """A sample of a shard is damaged. It may have come so: unless the shard was verified, it is
        fetched anew when it is read again, whole, and counts only with the sha256 of the index."""
        remote = folder / shard.path
        path = self._path(remote, shard)
        with suppress(OSError):
            file = _File(os.open(path, os.O_RDWR | os.O_CLOEXEC), shard.bytes)
            try:
                if file.sound() and not file.verified and not file.suspect:
                    self._forget(remote, shard, file)
                    _File.make(path, shard.bytes, file.identity, suspect=True)
            finally:
                os.close(file.fd)

    def _fetch(self, folder: Remote, shard: Shard, entries: Sequence[Entry], retry_s: float) -> int:
        """A descriptor of a file in which the bytes of `entries` stand where they do in the shard.

        Raises:
            OSError: they could not be had; its `strerror` says why.
        """
        remote = folder / shard.path
        if why := self._final.get(f"{remote} {shard.sha256}"):
            raise NotAsIndexed(errno.EIO, why)
        fitting = sorted((e for e in entries if e.length <= MAX_BYTES), key=lambda e: e.offset)
        stretches = [(r[0].offset, r[-1].offset + r[-1].length) for r in runs(fitting)]
        if stretches and shard.bytes - stretches[-1][1] < BLOCK:
            # The end mark too, or the shard would never be whole.
            stretches[-1] = (stretches[-1][0], shard.bytes)
        suspect = False
        while True:
            try:
                return self._stretches(remote, shard, stretches, suspect, retry_s)
            except AnotherObject as e:
                # Another object by the same name, or one that came damaged. From now on it is the same
                # shard only if all of its content says so.
                if suspect:
                    self._final[f"{remote} {shard.sha256}"] = e.strerror or ""
                    raise
                suspect = True

    def _stretches(
        self,
        remote: Remote,
        shard: Shard,
        stretches: Sequence[tuple[int, int]],
        suspect: bool,
        retry_s: float,
    ) -> int:
        file = self._file(remote, shard, suspect, retry_s)
        try:
            if file.suspect and not file.verified:
                stretches = [(0, shard.bytes)]
            for start, end in stretches:
                file = self._stretch(file, remote, shard, start, min(end, shard.bytes), retry_s)
            self._verify(file, shard)
        except BaseException as e:
            os.close(file.fd)
            if isinstance(e, AnotherObject):
                self._forget(remote, shard, file)
            raise
        return file.fd

    def _stretch(
        self, file: _File, remote: Remote, shard: Shard, start: int, end: int, retry_s: float
    ) -> _File:
        first, last = start // BLOCK, -(-end // BLOCK)
        fetched = 0
        for a, b in _gaps(file.marks(first, last), first):
            with _locked(file, a, b, retry_s or ANSWER_S):
                for c, d in _gaps(file.marks(a, b), a):
                    part = (c * BLOCK, min(d * BLOCK, shard.bytes))
                    once = partial(self._once, remote, shard, *part, file.identity)
                    raw = self._tried(remote, retry_s, once)
                    fetched += len(raw)
                    file = self._keep(file, shard, c, raw)
        if retry_s:
            _add(cached_bytes=max(0, end - start - fetched))
        return file

    def _tried(self, remote: Remote, retry_s: float, read: Callable[[], T]) -> T:
        again = partial(_add, retries=1)
        return self._patience.tried(str(remote), retry_s, read, final=(AnotherObject,), again=again)

    def _once(self, remote: Remote, shard: Shard, start: int, end: int, expected: str) -> bytes:
        found = self._open(remote, shard)
        if found.identity != expected:
            raise Replaced(errno.EIO, "it was replaced")
        _add(requests=1)
        raw = found.read(start, end)
        if len(raw) != end - start:
            raise OSError(errno.EIO, f"the store gave {len(raw)} bytes of {end - start}")
        _add(fetched_bytes=len(raw))
        self._put_back(remote, found)
        return raw

    def _put_back(self, remote: Remote, found: StoreObject) -> None:
        """What asks for this very object is used again, which spares a request."""
        if found.pinned:
            with self._lock:
                self._opened.setdefault(str(remote), []).append(found)

    def _open(self, remote: Remote, shard: Shard) -> StoreObject:
        """An object as it is now, or as it was when it was last used."""
        with self._lock:
            idle = self._opened.get(str(remote))
            if idle:
                return idle.pop()
            if len(self._opened) > 8 * AT_ONCE:
                self._opened.pop(next(iter(self._opened)))
        _add(requests=1)
        found = opened(remote)
        if found.size is not None and found.size != shard.bytes:
            raise NotAsIndexed(
                errno.EIO,
                f"it has {found.size} bytes, the index says {shard.bytes}: was it replaced?",
            )
        return found

    def _file(self, remote: Remote, shard: Shard, suspect: bool, retry_s: float) -> _File:
        """The shard's file in the folder, made where there is none."""
        path = self._path(remote, shard)
        for _ in range(5):
            with suppress(FileNotFoundError):
                file = _File(os.open(path, os.O_RDWR | os.O_CLOEXEC), shard.bytes)
                if file.sound():
                    with suppress(OSError):
                        os.utime(path)  # used now
                    return file
                os.close(file.fd)
                path.unlink(missing_ok=True)
            found = self._tried(remote, retry_s, partial(self._identity, remote, shard))
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _File.make(path, shard.bytes, found, suspect)
            except FileExistsError:
                continue
            except OSError:
                return _File.in_memory(shard.bytes, found, suspect)
        raise OSError(errno.EIO, f"the cache {self.folder} is being emptied by another program")

    def _identity(self, remote: Remote, shard: Shard) -> str:
        found = self._open(remote, shard)
        self._put_back(remote, found)
        return found.identity

    def _path(self, remote: Remote, shard: Shard) -> Path:
        name = hashlib.sha256(f"{remote}\n{shard.sha256}\n{shard.bytes}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.shard"

    def _forget(self, remote: Remote, shard: Shard, file: _File) -> None:
        """Remove what the folder has of a shard, if nobody began it anew in the meantime."""
        with self._lock:
            self._opened.pop(str(remote), None)
        with suppress(OSError):
            path = self._path(remote, shard)
            if path.stat().st_ino == file.inode:
                path.unlink()

    def _keep(self, file: _File, shard: Shard, block: int, raw: bytes) -> _File:
        """Write blocks, in memory where the disk takes no more; the file that has them."""
        with self._lock:
            self._unchecked += len(raw)
            look = self._unchecked > self.settings.bytes // 16
            if look:
                self._unchecked = 0
        if look:
            self._evict(self.settings.bytes)
        for half in (False, True):
            if half:
                self._evict(self.settings.bytes // 2)
            try:
                file.write(block, raw)
                return file
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                    raise
        held = _File.in_memory(shard.bytes, file.identity, file.suspect)
        held.take(file)
        held.write(block, raw)
        os.close(file.fd)
        return held

    def _evict(self, most: int) -> None:
        """Remove what was used longest ago until no more than `most` bytes are taken."""
        with suppress(OSError), open(self.folder / "evict.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = []
            for path in self.folder.glob("*.shard"):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.stat().st_blocks * 512, path))
            taken = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if taken <= most:
                    break
                path.unlink(missing_ok=True)
                taken -= size

    def _verify(self, file: _File, shard: Shard) -> None:
        """Raises: NotAsIndexed: all of the shard is there, and is not what the index says."""
        if file.verified or not all(file.marks(0, file.blocks)):
            return
        with _locked(file, file.blocks, file.blocks + 1, ANSWER_S):
            if file.verified:
                return
            if file.sha256() != shard.sha256:
                raise NotAsIndexed(errno.EIO, "its sha256 is not that of the index: was it replaced?")
            file.set_verified()


class _File:
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
    def in_memory(cls, size: int, found: str, suspect: bool) -> _File:
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

    def take(self, other: _File) -> None:
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


def _as_indexed(raw: Bytes | BadSample, path: Remote, entry: Entry) -> Bytes | BadSample:
    """The bytes of a sample if they are those of the index, as far as it tells."""
    if isinstance(raw, BadSample) or entry.crc32 in (None, zlib.crc32(raw)):
        return raw
    return BadSample(path, entry.key, "has other bytes than the index says (CRC-32)", "tar")


def _gaps(marks: bytes, first: int) -> list[tuple[int, int]]:
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
def _locked(file: _File, first: int, last: int, most_s: float) -> Iterator[None]:
    """Hold blocks against other threads and processes; after `most_s` go on without: at worst twice is
    fetched what is the same."""
    # Of an open of its own: threads share the file's.
    fd = os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(first, last))
                break
            except BlockingIOError:
                time.sleep(_LOCKED_S)
        yield
    finally:
        os.close(fd)


def _flock(first: int, last: int) -> bytes:
    """C's `struct flock` for an exclusive lock on the bytes that stand for blocks."""
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)


class _Threads:
    """AT_ONCE threads for what waits on a link, started when first used; none outlives the program, or
    holds its end up."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            SimpleQueue()
        )
        self._started = 0

    def submit(self, task: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((future, task, args))
        if self._started < AT_ONCE:
            self._started += 1
            threading.Thread(target=self._work, daemon=True, name="salsa-fetch").start()
        return future

    def _work(self) -> None:
        while True:
            future, task, args = self._tasks.get()
            try:
                future.set_result(task(*args))
            except BaseException as e:
                future.set_exception(e)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _add(**more: float) -> None:
    with _counting:
        for name, value in more.items():
            setattr(_traffic, name, getattr(_traffic, name) + value)
