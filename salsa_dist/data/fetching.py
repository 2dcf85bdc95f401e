"""Reads bytes of a shard from its store, with retries, length checks and counts.

ShardFetcher.part(shard, start, end, identity) ──► bytes of that very object, or an error
FetchThreads                                       AT_ONCE requests at a time
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from salsa_dist.data import last_read
from salsa_dist.data.index import Shard
from salsa_dist.data.patience import Patience, Waited
from salsa_dist.data.store_object import AnotherObject, Replaced, StoreObject, opened
from salsa_dist.data.traffic import count
from salsa_dist.places import Remote

T = TypeVar("T")
AT_ONCE = 16  # requests of a process, beside as many ahead


class NotAsIndexed(AnotherObject):
    """The object has another content than the index says."""


class ShardFetcher:
    """Asks for shards of stores, and tries again for up to `retry_s` seconds."""

    def __init__(self, retry_s: float) -> None:
        self._patience = Patience(retry_s)
        self._opened: dict[str, list[StoreObject]] = {}
        self._lock = threading.Lock()

    def part(
        self,
        remote: Remote,
        shard: Shard,
        start: int,
        end: int,
        expected: str,
        waited: Waited | None,
    ) -> bytes:
        """Bytes `[start, end)` of the object whose identity is `expected`.

        Args:
            waited: by the step that needs them; None: nobody waits yet.

        Raises:
            AnotherObject: there is another now; OSError: they could not be had.
        """
        return self._tried(remote, waited, partial(self._once, remote, shard, start, end, expected))

    def identity(self, remote: Remote, shard: Shard, waited: Waited | None) -> str:
        """The current version of the object. Raises: as `part`."""

        def once() -> str:
            found = self._open(remote, shard)
            self._put_back(remote, found)
            return found.identity

        return self._tried(remote, waited, once)

    def forget(self, remote: Remote) -> None:
        """Close the object; the next read opens it again."""
        with self._lock:
            self._opened.pop(str(remote), None)

    def _tried(self, remote: Remote, waited: Waited | None, read: Callable[[], T]) -> T:
        again = partial(count, retries=1)
        return self._patience.tried(str(remote), read, waited, final=(AnotherObject,), again=again)

    def _once(self, remote: Remote, shard: Shard, start: int, end: int, expected: str) -> bytes:
        found = self._open(remote, shard)
        if found.identity != expected:
            raise Replaced(errno.EIO, "it was replaced")
        count(requests=1)
        raw = found.read(start, end)
        if len(raw) != end - start:
            raise OSError(errno.EIO, f"the store gave {len(raw)} bytes of {end - start}")
        count(fetched_bytes=len(raw))
        last_read.now()  # a sample may be many requests
        self._put_back(remote, found)
        return raw

    def _put_back(self, remote: Remote, found: StoreObject) -> None:
        """Keep the open object for its next reads, which saves a request."""
        if found.pinned:
            with self._lock:
                self._opened.setdefault(str(remote), []).append(found)

    def _open(self, remote: Remote, shard: Shard) -> StoreObject:
        """Open the current version of an object, or take one that is open and idle."""
        with self._lock:
            idle = self._opened.get(str(remote))
            if idle:
                return idle.pop()
            if len(self._opened) > 8 * AT_ONCE:
                self._opened.pop(next(iter(self._opened)))
        count(requests=1)
        found = opened(remote)
        if found.size is not None and found.size != shard.bytes:
            raise NotAsIndexed(
                errno.EIO,
                f"it has {found.size} bytes, the index says {shard.bytes}: was it replaced?",
            )
        return found


class FetchThreads:
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
