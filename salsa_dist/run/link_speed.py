"""The speed of the links between ranks, measured two by two around a ring.

0─1─2─3─0     two rounds of neighbours at once, three where the number of ranks is odd
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.placement.ranks import Ranks

_MESSAGE_BYTES = 4 * 2**20
_PROBE_BYTES = 2**16
_PROBE_S = 0.05  # a link on which the probe takes longer is too slow for more: 20 Mbit/s
_TIMES = 3  # the best counts: the others warm up


def best_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that `call` takes on `device`, the best of three."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return min(timed() for _ in range(_TIMES))


def link_gbps(ranks: Ranks, control: Any) -> float | None:
    """Gigabits a second from this rank to the next one of the ring, there and back.

    Neighbours measure at the same time where no rank is part of two pairs.
    """
    world, rank = ranks.world_size, ranks.rank
    message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device=ranks.device)
    mine = None  # of two ranks, only the first has a link: there is one
    for first_of in _rounds(world):
        dist.barrier(group=control)
        for first in first_of:
            second = (first + 1) % world
            if rank not in (first, second):
                continue
            there = second if rank == first else first
            gbps = _exchange(message, rank == first, there)
            if rank == first:
                mine = gbps
    return mine


def _exchange(message: torch.Tensor, first: bool, peer: int) -> float:
    """Gbit/s of sending `message`, (bytes,) uint8, and receiving it; a part of it on a slow link."""

    def seconds(part: torch.Tensor) -> float:
        return best_of(lambda: _there_and_back(part, first, peer), message.device)

    part = message[:_PROBE_BYTES]
    took = seconds(part)
    # Both sides go on, or neither: the first one's clock counts.
    go_on = torch.tensor([took < _PROBE_S], dtype=torch.uint8, device=message.device)
    (dist.send if first else dist.recv)(go_on, peer)
    if go_on.item():
        part = message
        took = seconds(part)
    return 2 * 8 * len(part) / took / 1e9


def _there_and_back(message: torch.Tensor, first: bool, peer: int) -> None:
    """`message`, (bytes,) uint8, to the peer and back."""
    for sends in (first, not first):
        (dist.send if sends else dist.recv)(message, peer)


def _rounds(world: int) -> list[list[int]]:
    """The first rank of each pair (r, r + 1) of the ring, in rounds where no rank is in two pairs."""
    if world == 2:
        return [[0]]
    even = list(range(0, world - 1, 2))
    odd = list(range(1, world - 1, 2))
    return [even, odd, [world - 1]] if world % 2 else [even, [*odd, world - 1]]
