"""Counts this process's traffic with stores: requests, bytes, retries and waiting."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields


@dataclass
class Traffic:
    """Counts of one process, or sums over several.

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


_traffic = Traffic()
_lock = threading.Lock()


def traffic() -> Traffic:
    """The counts of this process so far."""
    with _lock:
        return Traffic(*(getattr(_traffic, f.name) for f in fields(_traffic)))


def count(**more: float) -> None:
    """Add to what `Traffic` has by such names."""
    with _lock:
        for name, value in more.items():
            setattr(_traffic, name, getattr(_traffic, name) + value)
