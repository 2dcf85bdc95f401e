"""The speed of the links between ranks, measured two by two around a ring.

0─1─2─3─0     two rounds of neighbours at once, three where the number of ranks is odd
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from salsa_dist.placement.ranks import Ranks

# A message of the next size is sent where one of this size took no longer than so many seconds. The
# first limit is 20 Mbit/s. The second is 34 Gbit/s: there, most of the time of 4 MiB is latency, while
# 256 MiB take 1.2 ms on NVLink at 450 GB/s.
_SIZES = ((2**16, 0.05), (4 * 2**20, 0.002), (256 * 2**20, 0.0))
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
    mine = None  # of two ranks, only the first has a link: there is one
    for first_of in _rounds(world):
        dist.barrier(group=control)
        for first in first_of:
            second = (first + 1) % world
            if rank not in (first, second):
                continue
            there = second if rank == first else first
            gbps = _exchange(ranks.device, rank == first, there)
            if rank == first:
                mine = gbps
    return mine


def _exchange(device: torch.device, first: bool, peer: int) -> float:
    """Gbit/s of sending a message and receiving it; the faster the link, the larger the message."""
    gbps = 0.0
    for size, limit_s in _SIZES:
        message = torch.zeros(size, dtype=torch.uint8, device=device)
        took = best_of(partial(_there_and_back, message, first, peer), device)
        gbps = 2 * 8 * size / took / 1e9
        # Both sides go on, or neither: the first one's clock counts.
        go_on = torch.tensor([took < limit_s], dtype=torch.uint8, device=device)
        (dist.send if first else dist.recv)(go_on, peer)
        if not go_on.item():
            break
    return gbps


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
