"""How long a read of a store is tried: less where trying did not help just now.

A read that fails is tried again for `retry_s`; one that finds no such file for ABSENT_S, since copies
of a store may lag. A shard that was given up is tried once a read from then on, and so is every
other one until the store answers again. After two that were given up nothing is asked for some seconds:
else each of a step's samples, and each that stands in for it, would wait for a time-out of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from salsa_dist.places import SLOWEST_WAIT_S, tried

T = TypeVar("T")
ABSENT_S = 30.0


class Patience:
    """What one process knows of a store's failures."""

    def __init__(self) -> None:
        self._given_up: set[str] = set()
        self._silent: set[str] = set()  # of those, what failed since the store last gave anything
        self._last: tuple[float, OSError] | None = None
        self._lock = threading.Lock()

    def tried(
        self,
        name: str,
        retry_s: float,
        read: Callable[[], T],
        *,
        final: tuple[type[OSError], ...],
        again: Callable[[], None],
    ) -> T:
        """What `read` gives of the object `name`; 0 seconds: no other try, and a failure is no matter.

        Args:
            final: errors that no other try will change.
            again: called before another try.

        Raises:
            OSError: that of the last try.
        """
        with self._lock:
            if len(self._silent) > 1 and self._last is not None:
                at, error = self._last
                if time.monotonic() - at < SLOWEST_WAIT_S:
                    raise type(error)(error.errno, error.strerror)
            once = bool(self._silent) or name in self._given_up
        try:
            patience_s = 0.0 if once else retry_s
            found = tried(patience_s, read, final=final, again=again, absent_s=ABSENT_S)
        except final:
            raise
        except OSError as e:
            if retry_s:
                self._give_up(name, e)
            raise
        with self._lock:
            self._given_up.discard(name)
            self._silent.clear()
        return found

    def _give_up(self, name: str, error: OSError) -> None:
        with self._lock:
            self._given_up.add(name)
            self._silent.add(name)
            # That there is no such file says nothing of others.
            self._last = None if isinstance(error, FileNotFoundError) else (time.monotonic(), error)
