"""How far a GPU is, and how long it took: it works long after the host asked it to, so events tell.

    event = reached(device)      event.query(): the GPU has done all that was asked of it before
    in_thread(device)            first of all in a further thread that asks events
    watch = Stopwatch(device)
    with watch.running():        any number of times
        …
    watch.seconds()              waits for the GPU

On the CPU what was asked is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def reached(device: torch.device) -> torch.cuda.Event | None:
    """An event on the stream that `device` computes on; None on the CPU."""
    return _recorded(device, timed=False) if device.type == "cuda" else None


def in_thread(device: torch.device) -> None:
    """Let this thread's calls be of `device`. A new thread begins with the first GPU of the node, and
    asking an event may take half a gigabyte there, once for each rank."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class Stopwatch:
    """Adds up how long a device took between the beginning and the end of blocks.

    Args:
        device: whose clock counts; a GPU's stream also waits inside such a block for other streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._host_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time of the block counts."""
        if self._device.type == "cuda":
            begun = _recorded(self._device, timed=True)
            yield
            self._blocks.append((begun, _recorded(self._device, timed=True)))
        else:
            started = time.perf_counter()
            yield
            self._host_seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """The sum over all blocks so far."""
        if self._blocks:
            self._blocks[-1][1].synchronize()
        return self._host_seconds + sum(begun.elapsed_time(end) for begun, end in self._blocks) / 1e3


def _recorded(device: torch.device, *, timed: bool) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=timed)
    event.record(torch.cuda.current_stream(device))
    return event
