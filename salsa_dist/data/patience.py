"""Retries of reads from a store: fewer if retries did not help just before.

A read that fails is tried again for `retry_s`; one that finds no such file for ABSENT_S, since copies
of a store may lag. A shard that was given up is tried once a read from then on, and so is every
other one until the store answers again. After two that were given up nothing is asked for some seconds:
else each of a step's samples, and each that stands in for it, would wait for a time-out of its own.

However many shards are missing, a step waits as long as for one: those of a pool are asked for at
once, and the wait for one is taken off the wait for the next, which may stand in for it.

A read that has failed for TELL_S is told in one line, the next one of this process TELL_AGAIN_S later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from salsa_dist.data import last_read
from salsa_dist.log import log

T = TypeVar("T")
ABSENT_S = 30.0
SLOWEST_WAIT_S = 10.0  # between two tries
TELL_S = 3.0
TELL_AGAIN_S = 60.0


@dataclass
class Waited:
    """Seconds for which one step has tried to get shards that it then gave up."""

    seconds: float = 0.0


class Patience:
    """This process's knowledge of a store's failures."""

    def __init__(self, retry_s: float) -> None:
        self.retry_s = retry_s
        self._given_up: set[str] = set()
        self._silent: set[str] = set()  # of those, what failed since the store last gave anything
        self._last: tuple[float, OSError] | None = None
        self._lock = threading.Lock()

    def tried(
        self,
        name: str,
        read: Callable[[], T],
        waited: Waited | None,
        *,
        final: tuple[type[OSError], ...],
        again: Callable[[], None],
    ) -> T:
        """The result of `read` for the object `name`, with retries.

        Args:
            waited: by the step that needs it; None: no other try, and a failure is no matter.
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
        before_s = 0.0 if waited is None else waited.seconds
        retry_s = 0.0 if once or waited is None else max(0.0, self.retry_s - before_s)
        absent_s = max(0.0, ABSENT_S - before_s)
        try:
            found = tried(name, retry_s, read, final=final, again=again, absent_s=absent_s)
        except final:
            raise
        except OSError as e:
            if waited is not None:
                own_s = min(absent_s, retry_s) if isinstance(e, FileNotFoundError) else retry_s
                waited.seconds = max(waited.seconds, before_s + own_s)
                # After another shard used up the step's time, one failed try says little.
                if once or retry_s > 0:
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


class _Teller:
    """Reports failing reads, but not all of them."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._lock = threading.Lock()

    def tell(self, name: str, error: BaseException, left_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            if self._last is not None and now - self._last < TELL_AGAIN_S:
                return
            self._last = now
        why = getattr(error, "strerror", None) or error
        log.warning(f"{name}: {why}; trying again for up to {max(left_s, 1):.0f} s")


_teller = _Teller()


def tried(
    name: str,
    retry_s: float,
    read: Callable[..., T],
    *args: Any,
    final: tuple[type[OSError], ...] = (),
    again: Callable[[], None] = lambda: None,
    absent_s: float = 0.0,
) -> T:
    """The result of `read`, with retries for `retry_s` seconds.

    Args:
        name: of what is read, for the line that tells of failures.
        final: errors that no other try will change.
        again: called before another try.
        absent_s: seconds after which to believe that nothing is there.

    Raises:
        OSError: that of the last try.
    """
    # Takes a sixth of a second to import, which no command without a store need spend.
    from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

    def left_s(state: RetryCallState) -> float:
        failed = state.outcome.exception() if state.outcome else None
        absent = isinstance(failed, FileNotFoundError)
        return (min(absent_s, retry_s) if absent else retry_s) - (state.seconds_since_start or 0.0)

    def before_another(state: RetryCallState) -> None:
        failed = state.outcome.exception() if state.outcome else None
        if failed is not None and (state.seconds_since_start or 0.0) >= TELL_S:
            _teller.tell(name, failed, left_s(state))
        last_read.now()  # for at most `retry_s`: a rank that waits for a store does not hang
        again()

    return Retrying(
        stop=lambda state: left_s(state) <= 0,
        wait=wait_random_exponential(0.1, max=SLOWEST_WAIT_S),
        retry=retry_if_exception(lambda e: isinstance(e, OSError) and not isinstance(e, final)),
        before_sleep=before_another,
        reraise=True,
    )(read, *args)
