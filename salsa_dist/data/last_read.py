"""When this rank last read something: a sample came, or a store that had failed was asked again.

    worker process ── now() ──► shared memory ◄── at() ── the rank's watchdog (run/watchdog.py)

Processes that read ahead note it for their rank, in memory that they share with it.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Protocol


class Moment(Protocol):
    """Holds seconds of the machine's clock, which all its processes share."""

    value: float


@dataclass
class _Own:
    value: float = 0.0


_last: Moment = _Own()


def now() -> None:
    """Something was read."""
    _last.value = time.monotonic()


def at() -> float:
    """The moment of the last call of `now`, here or in a process that reads for this one."""
    return _last.value


def shared() -> Moment:
    """The moment, in memory for processes that read for this one; each gives it to `note_in`."""
    note_in(RawValue(ctypes.c_double, _last.value))
    return _last


def note_in(moment: Moment) -> None:
    """From now on, `now` notes in `moment`."""
    global _last
    _last = moment
