"""Shards of a store on this node's disk: all processes of the node fetch each block only once.

    FOLDER/                       data.cache; bounded by data.cache_gb
    ├── 3f9c2a71….shard           one a shard and node, by the node's host name, the shard's name and
    │                             the sha256 that the index has of it (cached_shard.py)
    └── evict.lock                held by whoever removes the shards used longest ago

Nodes may share the folder, such as one in a home on NFS: each has its own files, since blocks and marks
that one node writes reach another in any order. The limit of size counts the files of all nodes, also
of those that are gone. A host's name stays after a reboot, and so does what is complete.

Where processes and threads want the same blocks, one fetches (fetching.py), the others find them. What
a machine that went down may have torn is fetched again. A shard whose blocks are all there is checked
by its sha256, once. One that was replaced while a run goes on, by its identity, is fetched whole and
checked before another sample of it is used. A sample is checked by its CRC-32, where the index has it,
each time that it is read. A shard that is removed stays readable to whoever has it open. Where the disk
is full, blocks are held in memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from salsa_dist.data.cached_shard import BLOCK, CachedShard, gaps, locked
from salsa_dist.data.fetching import FetchThreads, NotAsIndexed, ShardFetcher
from salsa_dist.data.index import Entry, Shard
from salsa_dist.data.patience import Waited
from salsa_dist.data.shards import MAX_BYTES, BadSample, Bytes, read_open, runs
from salsa_dist.data.store_object import AnotherObject
from salsa_dist.data.traffic import count
from salsa_dist.errors import UserError
from salsa_dist.places import ANSWER_S, Cache, Remote, cache_folder

_caches: dict[Cache, ShardCache] = {}
_making = threading.Lock()


def cache_of(settings: Cache) -> ShardCache:
    """This process's view of a cache."""
    with _making:
        if settings not in _caches:
            _caches[settings] = ShardCache(settings)
        return _caches[settings]


class ShardCache:
    """Reads shards of a store through a folder on this node."""

    def __init__(self, settings: Cache) -> None:
        if sys.platform != "linux":
            raise UserError(
                "shards in a store are read on Linux only, by its locks and its files in memory: copy "
                "the shards into a folder of this machine"
            )
        self.settings = settings
        self.folder = (settings.folder or cache_folder()) / "shards"
        self._wanted, self._ahead = FetchThreads(), FetchThreads()
        self._fetcher = ShardFetcher(settings.retry_s)
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
        self, folder: Remote, wanted: Sequence[tuple[Shard, Sequence[Entry]]], waited: Waited
    ) -> Iterator[tuple[Shard, Entry, Bytes | BadSample]]:
        """The bytes of samples of several shards, or why a sample has none; as `shards.read_ranges`.

        All are fetched at once.

        Args:
            waited: by the step that needs them; what it waits for here is added.
        """
        coming = [
            (shard, entries, self._wanted.submit(self._fetch, folder, shard, entries, waited))
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
                count(waited_s=time.monotonic() - started)
            try:
                for entry, raw in read_open(fd, path, entries):
                    yield shard, entry, _as_indexed(raw, path, entry)
            finally:
                os.close(fd)

    def start(self, folder: Remote, shard: Shard, entries: Sequence[Entry]) -> None:
        """Begin to fetch what will be asked for soon; what fails is tried again when it is."""

        def ahead() -> None:
            with suppress(OSError):
                os.close(self._fetch(folder, shard, entries, None))

        self._ahead.submit(ahead)

    def doubt(self, folder: Remote, shard: Shard) -> None:
        """A sample of a shard is damaged. It may have come so: unless the shard was verified, it is
        fetched anew when it is read again, whole, and counts only with the sha256 of the index."""
        remote = folder / shard.path
        path = self._path(remote, shard)
        with suppress(OSError):
            file = CachedShard(os.open(path, os.O_RDWR | os.O_CLOEXEC), shard.bytes)
            try:
                if file.sound() and not file.verified and not file.suspect:
                    self._forget(remote, shard, file)
                    CachedShard.make(path, shard.bytes, file.identity, suspect=True)
            finally:
                os.close(file.fd)

    def _fetch(
        self, folder: Remote, shard: Shard, entries: Sequence[Entry], waited: Waited | None
    ) -> int:
        """A descriptor of a file that has the bytes of `entries` at their offsets in the shard.

        Args:
            waited: None: nobody waits yet.

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
                return self._stretches(remote, shard, stretches, suspect, waited)
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
        waited: Waited | None,
    ) -> int:
        file = self._file(remote, shard, suspect, waited)
        try:
            if file.suspect and not file.verified:
                stretches = [(0, shard.bytes)]
            for start, end in stretches:
                file = self._stretch(file, remote, shard, start, min(end, shard.bytes), waited)
            self._verify(file, shard)
        except BaseException as e:
            os.close(file.fd)
            if isinstance(e, AnotherObject):
                self._forget(remote, shard, file)
            raise
        return file.fd

    def _stretch(
        self,
        file: CachedShard,
        remote: Remote,
        shard: Shard,
        start: int,
        end: int,
        waited: Waited | None,
    ) -> CachedShard:
        first, last = start // BLOCK, -(-end // BLOCK)
        fetched = 0
        most_s = ANSWER_S if waited is None else self.settings.retry_s
        for a, b in gaps(file.marks(first, last), first):
            with locked(file, a, b, most_s):
                for c, d in gaps(file.marks(a, b), a):
                    part = (c * BLOCK, min(d * BLOCK, shard.bytes))
                    raw = self._fetcher.part(remote, shard, *part, file.identity, waited)
                    fetched += len(raw)
                    file = self._keep(file, shard, c, raw)
        if waited is not None:
            count(cached_bytes=max(0, end - start - fetched))
        return file

    def _file(self, remote: Remote, shard: Shard, suspect: bool, waited: Waited | None) -> CachedShard:
        """The shard's file in the folder, created if necessary."""
        path = self._path(remote, shard)
        for _ in range(5):
            with suppress(FileNotFoundError):
                file = CachedShard(os.open(path, os.O_RDWR | os.O_CLOEXEC), shard.bytes)
                if file.sound():
                    with suppress(OSError):
                        os.utime(path)  # used now
                    return file
                os.close(file.fd)
                path.unlink(missing_ok=True)
            found = self._fetcher.identity(remote, shard, waited)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                CachedShard.make(path, shard.bytes, found, suspect)
            except FileExistsError:
                continue
            except OSError:
                return CachedShard.in_memory(shard.bytes, found, suspect)
        raise OSError(errno.EIO, f"the cache {self.folder} is being emptied by another program")

    def _path(self, remote: Remote, shard: Shard) -> Path:
        facts = f"{socket.gethostname()}\n{remote}\n{shard.sha256}\n{shard.bytes}"
        return self.folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.shard"

    def _forget(self, remote: Remote, shard: Shard, file: CachedShard) -> None:
        """Remove the cached blocks of a shard, unless another process has just started it anew."""
        self._fetcher.forget(remote)
        with suppress(OSError):
            path = self._path(remote, shard)
            if path.stat().st_ino == file.inode:
                path.unlink()

    def _keep(self, file: CachedShard, shard: Shard, block: int, raw: bytes) -> CachedShard:
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
        held = CachedShard.in_memory(shard.bytes, file.identity, file.suspect)
        held.take(file)
        held.write(block, raw)
        os.close(file.fd)
        return held

    def _evict(self, most: int) -> None:
        """Remove the files used longest ago, until at most `most` bytes are left."""
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

    def _verify(self, file: CachedShard, shard: Shard) -> None:
        """Check a complete shard. Raises: NotAsIndexed: it is not the shard of the index."""
        if file.verified or not all(file.marks(0, file.blocks)):
            return
        with locked(file, file.blocks, file.blocks + 1, ANSWER_S):
            if file.verified:
                return
            if file.sha256() != shard.sha256:
                raise NotAsIndexed(errno.EIO, "its sha256 is not that of the index: was it replaced?")
            file.set_verified()


def _as_indexed(raw: Bytes | BadSample, path: Remote, entry: Entry) -> Bytes | BadSample:
    """The bytes of a sample if they match the index, as far as it has a CRC-32."""
    if isinstance(raw, BadSample) or entry.crc32 in (None, zlib.crc32(raw)):
        return raw
    return BadSample(path, entry.key, "has other bytes than the index says (CRC-32)", "tar")
